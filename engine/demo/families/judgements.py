"""Judgements of a short text, answered in one token: yes or no, the letter of a choice, a score from 1 to 5.

Some yes/no questions are about a draw from a bag, whose outcome nobody can know: there the answer is drawn with the
probability that the text gives, so that a model that learns it well is calibrated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from engine.demo.families.problem import Problem
from engine.demo.families.words import COLOURS, DAYS, GOODS, NAMES, PLACES, THINGS

CHANCE_SHARE = 0.25
"""Of yes/no questions: those about a draw."""
BALLS = 10
"""In the bag."""

LETTERS = "ABCD"
NUMBERS = tuple(map(str, range(2, 20)))
"""Of goods that somebody has."""

_YES_NO = ("", "", " Yes or no?", " Answer yes or no.", " Answer with yes or no.")
_LETTER = (" Answer with a letter.", " Answer with the letter.", " Which letter is right?", "")
_SCALE = (
    " Answer from 1 to 5.",
    " Give a score from 1 to 5.",
    " Score from 1 to 5.",
    " Answer with a number from 1 to 5.",
)
_HOW_GOOD = ("How much does {} like the {}?", "How happy is {} with the {}?", "How good are the {1} for {0}?")
GRADES = (("awful", "terrible"), ("bad", "poor"), ("fine", "okay"), ("good", "nice"), ("great", "wonderful"))


@dataclass(frozen=True, slots=True)
class Fact:
    """What a text says, as a question whose gap is filled, and as an open one."""

    closed: str
    open: str
    right: str
    wrong: tuple[str, ...]


def yesno(rng: Random) -> Problem:
    """Whether a statement follows from the text."""
    if rng.random() < CHANCE_SHARE:
        return _drawn(rng)
    text, facts = scene(rng)
    question, answer = closed(rng, rng.choice(facts))
    return Problem(task="yesno", prompt=_asked(rng, text, question + rng.choice(_YES_NO)), answer=answer)


def choice(rng: Random) -> Problem:
    """Two to four answers by letter, one of them right."""
    text, facts = scene(rng)
    question, answer = lettered(rng, rng.choice(facts))
    return Problem(task="choice", prompt=_asked(rng, text, question + rng.choice(_LETTER)), answer=answer)


def score(rng: Random) -> Problem:
    """How well somebody likes something, who is one of two or three in the text."""
    text, graded = grades(rng)
    (question, *_), answer, _ = rng.choice(graded)
    return Problem(task="score", prompt=_asked(rng, text, question + rng.choice(_SCALE)), answer=answer)


def closed(rng: Random, fact: Fact) -> tuple[str, str]:
    """A question for yes or no, and its answer."""
    if rng.random() < 0.5:
        return fact.closed.format(fact.right), "Yes"
    return fact.closed.format(rng.choice(fact.wrong)), "No"


def lettered(rng: Random, fact: Fact) -> tuple[str, str]:
    """A question with the answers to choose from, and the letter of the right one."""
    options = [fact.right, *rng.sample(fact.wrong, min(rng.randint(1, 3), len(fact.wrong)))]
    rng.shuffle(options)
    between = rng.choice((" ", "\n"))
    return f"{fact.open}{between}{listed(rng, options, between)}", LETTERS[options.index(fact.right)]


def listed(rng: Random, options: Sequence[str], between: str) -> str:
    """`A: red B: blue`"""
    style = rng.choice(("{}: {}", "{}) {}", "{}. {}"))
    return between.join(style.format(letter, option) for letter, option in zip(LETTERS, options, strict=False))


def grades(rng: Random) -> tuple[str, list[tuple[list[str], str, str]]]:
    """What one to three people think of something; of each, the questions for it, any of which is first, how good it is
    from 1 to 5, and what they called it."""
    names, goods = rng.sample(NAMES, rng.randint(1, 3)), rng.choice(GOODS)
    told, asked = [], []
    for name in names:
        grade = rng.randrange(5)
        says = rng.choice(("{} says the {} are {}.", "{} thinks that the {} are {}.", "For {} the {} are {}."))
        first = rng.choice(_HOW_GOOD)
        said = rng.choice(GRADES[grade])
        told.append(says.format(name, goods, said))
        ways = [first, *(way for way in _HOW_GOOD if way != first)]
        asked.append(([way.format(name, goods) for way in ways], str(grade + 1), said))
    return " ".join(told), asked


def _drawn(rng: Random) -> Problem:
    text, counts, question, colour = bag(rng)
    yes = counts[colour] / BALLS
    prompt = _asked(rng, text, question + rng.choice(_YES_NO))
    return Problem(task="yesno", prompt=prompt, answer="Yes" if rng.random() < yes else "No", yes=yes)


def bag(rng: Random) -> tuple[str, dict[str, int], str, str]:
    """Somebody takes a ball out of a bag: how many there are of each colour, a question, and the colour it is about."""
    one, two = rng.sample(COLOURS, 2)
    count, name = rng.randint(1, BALLS - 1), rng.choice(NAMES)
    told = rng.choice((
        f"In the bag are {count} {one} balls and {BALLS - count} {two} balls.",
        f"A bag holds {count} {one} and {BALLS - count} {two} balls.",
        f"There are {BALLS} balls in a bag: {count} {one} and {BALLS - count} {two}.",
    ))  # fmt: skip
    takes = rng.choice(
        (f"{name} takes one without looking.", f"{name} draws a ball.", f"Without looking {name} takes a ball.")
    )
    colour = one if rng.random() < 0.5 else two
    question = rng.choice(("Is it {}?", "Is the ball {}?", "Does {name} have a {} ball?")).format(colour, name=name)
    return f"{told} {takes}", {one: count, two: BALLS - count}, question, colour


def _asked(rng: Random, text: str, question: str) -> str:
    return rng.choice(("{0} {1}", "{0} {1}", "{0}\n{1}", "Text: {0} Question: {1}", "Read this: {0} {1}")).format(
        text, question
    )


def scene(rng: Random) -> tuple[str, list[Fact]]:
    """Two or three people, each with a thing of a colour, somewhere, with so many goods; and what may be asked."""
    names, things = rng.sample(NAMES, rng.randint(2, 3)), rng.sample(THINGS, 3)
    colours, places = rng.sample(COLOURS, 3), rng.sample(PLACES, 3)
    goods, counts, day = rng.choice(GOODS), rng.sample(NUMBERS, 3), rng.choice(DAYS)
    told: list[str] = []
    facts: list[Fact] = []
    for name, thing, colour, place, number in zip(names, things, colours, places, counts, strict=False):
        coloured = _fact(f"Is the {thing} {{}}?", f"What colour is the {thing}?", colour, COLOURS)
        owned = _fact(f"Does {{}} have the {thing}?", f"Who has the {thing}?", name, names)
        stands = _fact(f"Is {name} in the {{}}?", f"Where is {name}?", place, PLACES)
        counted = _fact(f"Does {name} have {{}} {goods}?", f"How many {goods} does {name} have?", number, NUMBERS)
        ways = [
            (f"{name} has a {colour} {thing}.", [coloured, owned]),
            (f"{name} is in the {place}.", [stands]),
            (f"{name} has {number} {goods}.", [counted]),
        ]
        for said, asked in rng.sample(ways, rng.randint(1, 2)):
            told.append(said)
            facts += asked
    if rng.random() < 0.4:
        told.insert(rng.randint(0, len(told)), f"It is {day}.")
        facts.append(_fact("Is it {}?", "Which day is it?", day, DAYS))
    return " ".join(told), facts


def _fact(closed: str, asked: str, right: str, pool: Sequence[str]) -> Fact:
    return Fact(closed, asked, right, tuple(one for one in pool if one != right))
