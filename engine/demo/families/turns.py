"""Second turns: questions that only the first turn and its answer make sense of."""

import re
from random import Random

from engine.demo.families.basics import (
    GAINS,
    LOSSES,
    MAX_CHANGE,
    MAX_SORTED,
    MAX_TOTAL,
    SUBJECTS,
    equation,
    reverse,
    sort,
    spaced,
    story,
    word,
)
from engine.demo.families.problem import Problem, Turn

_MORE = ("And how many if {} {}?", "How many if {} {}?", "And if {} {}?", "What if {} {}?")
_AND = ("And {}?", "And what about {}?", "And now {}?", "What about {}?")


def turn(rng: Random) -> Problem:
    """A second question about a first problem of one of the basic families."""
    return rng.choices([_word, _sort, _reverse, _facts, _story], [40, 18, 12, 15, 15])[0](rng)


def _follow(first: Problem, prompt: str, answer: str) -> Problem:
    before = (Turn("user", first.prompt), Turn("assistant", first.answer))
    return Problem(task="turn", prompt=prompt, answer=answer, before=before)


def _word(rng: Random) -> Problem:
    """One more change of the same goods."""
    first = word(rng)
    name, total = first.prompt.split()[0], int(first.answer.split()[-1].rstrip("."))
    grows = total == 0 or (total < MAX_TOTAL and rng.random() < 0.5)
    size = rng.randint(1, min(MAX_CHANGE, MAX_TOTAL - total if grows else total))
    change = size if grows else -size
    happens = rng.choice(GAINS if grows else LOSSES).format(size)
    happens = happens if rng.random() < 0.7 else f"then {happens}"
    prompt = rng.choice(_MORE).format(name, happens)
    return _follow(first, prompt, f"Then {equation(total, change)} The answer is {total + change}.")


def _sort(rng: Random) -> Problem:
    """The other way round, or with one number more or less."""
    first = sort(rng)
    numbers = [int(number) for number in re.findall(r"\d+", first.answer)]
    kind = rng.choice(["down", "with", "without"])
    if kind == "down":
        prompt = rng.choice(
            ["And the largest first?", "Now the largest first.", "And from large to small?", "The other way round?"]
        )
        return _follow(first, prompt, f"Sorted: {spaced(numbers[::-1])}.")
    if kind == "with":
        new = rng.choice([n for n in range(1, MAX_SORTED + 1) if n not in numbers])
        return _follow(first, rng.choice(_AND).format(f"with {new} too"), f"Sorted: {spaced(sorted([*numbers, new]))}.")
    gone = rng.choice(numbers)
    numbers.remove(gone)
    return _follow(first, rng.choice(_AND).format(f"without {gone}"), f"Sorted: {spaced(numbers)}.")


def _reverse(rng: Random) -> Problem:
    """The same without one word, or how many words they are."""
    first = reverse(rng)
    words = first.answer.removeprefix("Reversed: ").removesuffix(".").split()
    if rng.random() < 0.5:
        return _follow(
            first, rng.choice(["How many words are those?", "How many words is that?"]), f"The answer is {len(words)}."
        )
    gone = rng.choice(words)
    words.remove(gone)
    return _follow(first, rng.choice(_AND).format(f"without {gone}"), f"Reversed: {spaced(words)}.")


def _facts(rng: Random) -> Problem:
    """The same of another subject."""
    group, subject = rng.choice(SUBJECTS)
    another = rng.choice([other for other in group.answers if other != subject])
    asked = rng.choice(group.questions).format(subject)
    first = Problem(task="facts", prompt=asked, answer=f"The answer is {group.answers[subject]}.")
    return _follow(first, rng.choice(_AND).format(another), f"The answer is {group.answers[another]}.")


def _story(rng: Random) -> Problem:
    """Who, where and what the story was about."""
    first = story(rng)
    names = " and ".join(first.names)
    place = re.search(r" to the (\w+)\.", first.answer)
    kind = re.search(rf" a (\w+) {first.things[0]}\.", first.answer)
    assert place
    assert kind
    asked: dict[str, tuple[tuple[str, ...], str]] = {
        "who": (("Who is the story about?", "Who was it about?", "Who went there?"), f"It is about {names}."),
        "where": (
            ("Where did they go?", "Where was that?", "Where does the story happen?"),
            f"They went to the {place[1]}.",
        ),
        "what": (
            (f"What was the {first.things[0]} like?", f"And the {first.things[0]}?"),
            f"The {first.things[0]} was {kind[1]}.",
        ),
    }
    prompts, answer = asked[rng.choice(list(asked))]
    return _follow(first, rng.choice(prompts), answer)
