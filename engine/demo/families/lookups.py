"""Texts with everything that may be looked up in them: rows to practise on, which nobody is asked.

A judgement of a text says one bit about it, a form a few words. Here one text is asked for all that it says, so that a
model finds out sooner which word belongs to what is asked for.
"""

import json
from collections.abc import Iterator, Mapping
from random import Random

from engine.demo.families.forms import FIELDS, SENTENCES, drawn
from engine.demo.families.judgements import LETTERS, closed, grades, lettered, listed, scene
from engine.demo.families.words import COLOURS, DAYS, GOODS, NAMES, NOUNS, PLACES, THINGS

OPEN_SHARE, LETTERED_SHARE = 0.5, 0.3
"""Of the facts of a scene: those that are asked for in a word, and by the letters of a choice; all, for yes or no."""
REASON_SHARE = 0.4
"""Of the questions for yes or no: those whose answer says what is so, `No, red`."""


def lookups(rng: Random) -> tuple[str, Iterator[tuple[str, str]]]:
    """A text, and the questions about it with their answers, each at most once: none can be copied from another."""
    about = rng.choices((_about_list, _about_scene, _about_people, _about_sentence, _about_form), (3, 4, 1, 1, 1))[0]
    return about(rng)


def _about_list(rng: Random) -> tuple[str, Iterator[tuple[str, str]]]:
    """Two to four words by letter: which letter a word has, which word a letter, and whether a word is there."""
    pool = rng.choice((NAMES, COLOURS, PLACES, DAYS, GOODS, THINGS, NOUNS, tuple(map(str, range(2, 20)))))
    words = rng.sample(pool, rng.randint(2, len(LETTERS)))
    asked: dict[str, str] = {}
    for letter, word in zip(LETTERS, words, strict=False):
        asked |= {f"Which letter is {word}?": letter, f"What is {letter}?": word}
        for one in (word, rng.choice(pool)):
            asked[f"Is {one} in the list?"] = "Yes" if one in words else "No"
    return listed(rng, words, rng.choice((" ", "\n"))), _shuffled(rng, asked)


def _about_scene(rng: Random) -> tuple[str, Iterator[tuple[str, str]]]:
    text, facts = scene(rng)
    asked = {}
    for fact in facts:
        for question, answer in (closed(rng, fact), closed(rng, fact)):
            asked[question] = f"{answer}, {fact.right}" if rng.random() < REASON_SHARE else answer
        if rng.random() < OPEN_SHARE:
            asked[fact.open] = fact.right
        if rng.random() < LETTERED_SHARE:
            asked |= dict([lettered(rng, fact)])
    return text, _shuffled(rng, asked)


def _about_people(rng: Random) -> tuple[str, Iterator[tuple[str, str]]]:
    text, asked = grades(rng)
    return text, iter(asked)


def _about_sentence(rng: Random) -> tuple[str, Iterator[tuple[str, str]]]:
    values = drawn(rng)

    def asked() -> Iterator[tuple[str, str]]:
        for field in rng.sample(FIELDS, len(FIELDS)):
            if rng.random() < 0.5:
                yield f"Give {field} as JSON.", json.dumps({field: values[field]})
            else:
                yield f"What is the {field}?", f"The {field} is {values[field]}."

    return rng.choice(SENTENCES).format_map(values), asked()


def _about_form(rng: Random) -> tuple[str, Iterator[tuple[str, str]]]:
    values = drawn(rng)
    fields = rng.sample(FIELDS, rng.randint(2, len(FIELDS)))
    asked = ((f"What is the {field}?", f"The {field} is {values[field]}.") for field in rng.sample(fields, len(fields)))
    return json.dumps({field: values[field] for field in fields}), asked


def _shuffled(rng: Random, asked: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return iter(rng.sample(list(asked.items()), len(asked)))
