"""Texts with everything that may be looked up in them: rows to practise on, which nobody is asked.

A judgement of a text says one bit about it, a form a few words. Here one text is asked for all that it says, so that a
model finds out sooner which word belongs to what is asked for. A judgement comes with its clue, the word of the text
that decides it: yes or no alone does not teach what to compare (docs/demo-model.md).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from random import Random

from engine.demo.families.forms import FIELDS, SENTENCES, drawn
from engine.demo.families.judgements import (
    BALLS,
    GRADES,
    LETTERS,
    NUMBERS,
    bag,
    closed,
    grades,
    lettered,
    listed,
    scene,
)
from engine.demo.families.words import COLOURS, DAYS, GOODS, NAMES, NOUNS, PLACES, THINGS

OPEN_SHARE, LETTERED_SHARE = 0.5, 0.3
"""Of the facts of a scene: those that are asked for in a word, and by the letters of a choice; all, for yes or no."""
REASON_SHARE = 0.4
"""Of the questions for yes or no: those whose answer says what is so, `No, red`."""

_TOLD = (*PLACES, *THINGS, *NUMBERS, *chain.from_iterable(GRADES))
_OF_LETTERS = re.compile(rf"\b([{LETTERS}])[:.)] (\w+)")
_OF_PEOPLE = re.compile(rf"\b({'|'.join(NAMES)})\b[^.?\n]*\b({'|'.join(_TOLD)})\b( \w+)?\.")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a text, its answer, and what helps to find it."""

    question: str
    answer: str
    clue: str | None = None
    """The word of the text that decides a judgement."""
    owned: Mapping[str, str] = field(default_factory=dict)
    """What words of the question belong to in the text."""


def lookups(rng: Random) -> tuple[str, list[Asked]]:
    """A text, and the questions about it with their answers, each at most once: none can be copied from another."""
    kinds = (_about_list, _about_scene, _about_people, _about_bag, _about_sentence, _about_form)
    text, asked = rng.choices(kinds, (6, 18, 6, 4, 1, 1))[0](rng)
    return text, list({one.question: one for one in asked}.values())


def owners(text: str, owned: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Where in a text a word stands, and what it belongs to: of a list, its letter; of a sentence, its person. The last
    of each word of `owned` belongs to what is said there."""
    for pattern in (_OF_LETTERS, _OF_PEOPLE):
        for found in pattern.finditer(text):
            yield found.start(2), found[1]
    for word, owner in owned.items():
        yield text.rindex(word), owner


def _about_list(rng: Random) -> tuple[str, list[Asked]]:
    """Two to four words by letter: which letter a word has, which word a letter, and whether a word is there."""
    pool = rng.choice((NAMES, COLOURS, PLACES, DAYS, GOODS, THINGS, NOUNS, NUMBERS))
    words = rng.sample(pool, rng.randint(2, len(LETTERS)))
    letters = dict(zip(words, LETTERS, strict=False))
    asked = []
    for word, letter in letters.items():
        asked += [
            Asked(f"Which letter is {word}?", letter, owned={word: letter}),
            Asked(f"What is {letter}?", word),
            Asked(f"Is {word} in the list?", "Yes", letter, {word: letter}),
        ]
        if (other := rng.choice(pool)) not in letters:
            asked.append(Asked(f"Is {other} in the list?", "No"))
    return listed(rng, words, rng.choice((" ", "\n"))), _shuffled(rng, asked)


def _about_scene(rng: Random) -> tuple[str, list[Asked]]:
    text, facts = scene(rng)
    asked = []
    for fact in facts:
        for question, answer in (closed(rng, fact), closed(rng, fact)):
            reasoned = f"{answer}, {fact.right}" if rng.random() < REASON_SHARE else answer
            asked.append(Asked(question, reasoned, fact.right))
        if rng.random() < OPEN_SHARE:
            asked.append(Asked(fact.open, fact.right))
        if rng.random() < LETTERED_SHARE:
            asked.append(Asked(*lettered(rng, fact), fact.right))
    return text, _shuffled(rng, asked)


def _about_people(rng: Random) -> tuple[str, list[Asked]]:
    text, graded = grades(rng)
    return text, _shuffled(rng, [Asked(question, answer, said) for asked, answer, said in graded for question in asked])


def _about_bag(rng: Random) -> tuple[str, list[Asked]]:
    """One question about the draw: what a second one said would follow from the first."""
    text, counts, question, colour = bag(rng)
    answer = "Yes" if rng.random() < counts[colour] / BALLS else "No"
    counted = [Asked(f"How many are {colour}?", str(count)) for colour, count in counts.items()]
    return text, _shuffled(rng, [Asked(question, answer, str(counts[colour])), *counted])


def _about_sentence(rng: Random) -> tuple[str, list[Asked]]:
    values = drawn(rng)
    asked = []
    for name in FIELDS:
        if rng.random() < 0.5:
            asked.append(Asked(f"Give {name} as JSON.", json.dumps({name: values[name]})))
        else:
            asked.append(Asked(f"What is the {name}?", f"The {name} is {values[name]}."))
    return rng.choice(SENTENCES).format_map(values), _shuffled(rng, asked)


def _about_form(rng: Random) -> tuple[str, list[Asked]]:
    values = drawn(rng)
    names = rng.sample(FIELDS, rng.randint(2, len(FIELDS)))
    asked = [Asked(f"What is the {name}?", f"The {name} is {values[name]}.") for name in names]
    return json.dumps({name: values[name] for name in names}), _shuffled(rng, asked)


def _shuffled(rng: Random, asked: list[Asked]) -> list[Asked]:
    return rng.sample(asked, len(asked))
