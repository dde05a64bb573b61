"""The five families of problems that the demo model is trained for, each with its own exact check.

Pure Python, no torch: benchmarks and tests import it too. Whether a problem is for training or held out is decided by
a hash of its prompt, so the two never meet, whatever the seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal
from zlib import crc32

from engine.demo.facts import FACT_GROUPS
from engine.demo.stories import is_story, tell
from engine.demo.words import GOODS, NAMES, NOUNS, THINGS

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 10
"""One prompt in this many is never trained on."""
MAX_TOTAL = 15
"""Word problems stay between 0 and this number."""
MAX_CHANGE = 6
"""The largest number that one step of a word problem adds or takes away."""
MAX_SORTED = 20
"""The largest number that has to be sorted."""

GAINS = ("buys {} more", "finds {} more", "gets {} more")
LOSSES = ("loses {} of them", "sells {} of them", "drops {} of them")
SORT_PROMPTS = ("Sort these numbers: {}.", "Put these numbers in order: {}.", "Order these numbers by size: {}.")
REVERSE_PROMPTS = ("Reverse these words: {}.", "Say these words backwards: {}.", "Turn these words around: {}.")
STORY_PROMPTS = ("Write a short story about {}.", "Tell me a story about {}.", "Make up a story about {}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A prompt with one right answer; a story has many, of which `answer` is an example."""

    task: str
    prompt: str
    answer: str
    names: tuple[str, ...] = ()
    things: tuple[str, ...] = ()

    def check(self, text: str) -> bool:
        """Whether `text` answers the prompt exactly, white space around it aside."""
        text = text.strip()
        return is_story(text, self.names, self.things) if self.task == "story" else text == self.answer


def word(rng: Random) -> Problem:
    """Gains and losses of one person's goods, in one to three worked steps."""
    name, goods = rng.choice(NAMES), rng.choice(GOODS)
    total = rng.randint(2, 9)
    told, worked = [f"{name} has {total} {goods}."], []
    for step in range(rng.randint(1, 3)):
        change = _change(rng, total)
        told.append(f"{name} {rng.choice(GAINS if change > 0 else LOSSES).format(abs(change))}.")
        worked.append(f"{'Then' if step else 'First'} {_equation(total, change)}")
        total += change
    told.append(f"How many {goods} does {name} have now?")
    return Problem(task="word", prompt=" ".join(told), answer=" ".join([*worked, f"The answer is {total}."]))


def sort(rng: Random) -> Problem:
    """Three to six distinct numbers, smallest first."""
    numbers = rng.sample(range(1, MAX_SORTED + 1), rng.randint(3, 6))
    prompt = rng.choice(SORT_PROMPTS).format(_spaced(numbers))
    return Problem(task="sort", prompt=prompt, answer=f"Sorted: {_spaced(sorted(numbers))}.")


def reverse(rng: Random) -> Problem:
    """Three to six distinct words, last first."""
    words = rng.sample(NOUNS, rng.randint(3, 6))
    prompt = rng.choice(REVERSE_PROMPTS).format(_spaced(words))
    return Problem(task="reverse", prompt=prompt, answer=f"Reversed: {_spaced(words[::-1])}.")


def facts(rng: Random) -> Problem:
    """One fact, asked in one of its group's ways."""
    group, subject = rng.choice(_SUBJECTS)
    prompt = rng.choice(group.questions).format(subject)
    return Problem(task="facts", prompt=prompt, answer=f"The answer is {group.answers[subject]}.")


def story(rng: Random) -> Problem:
    """A story that keeps to one or two names and one or two things."""
    names = tuple(rng.sample(NAMES, rng.randint(1, 2)))
    things = tuple(rng.sample(THINGS, rng.randint(1, 2)))
    subjects = [*names, *(f"a {thing}" for thing in things)]
    prompt = rng.choice(STORY_PROMPTS).format(f"{', '.join(subjects[:-1])} and {subjects[-1]}")
    return Problem(task="story", prompt=prompt, answer=tell(rng, names, things), names=names, things=things)


TASKS: dict[str, Callable[[Random], Problem]] = {
    "word": word,
    "sort": sort,
    "reverse": reverse,
    "facts": facts,
    "story": story,
}
_SUBJECTS = [(group, subject) for group in FACT_GROUPS for subject in group.answers]


def split_of(prompt: str) -> Split:
    """Where a prompt belongs, from the prompt alone."""
    return "train" if crc32(prompt.encode()) % HELD_OUT_SHARE else "held_out"


def stream(task: str, rng: Random, split: Split = "held_out") -> Iterator[Problem]:
    """An endless stream of one family's problems of one split."""
    while True:
        problem = TASKS[task](rng)
        if split_of(problem.prompt) == split:
            yield problem


def problems(task: str, seed: int, n: int, split: Split = "held_out") -> list[Problem]:
    """`n` problems of one family, the same for the same seed."""
    fresh = stream(task, Random(f"{split}/{task}/{seed}"), split)
    return [next(fresh) for _ in range(n)]


def sums(rng: Random, n: int) -> str:
    """`n` steps of word problems without a story around them, to practise on."""
    totals = rng.choices(range(MAX_TOTAL + 1), k=n)
    return " ".join(_equation(total, _change(rng, total)) for total in totals)


def _change(rng: Random, total: int) -> int:
    """A gain or a loss that keeps the total between 0 and MAX_TOTAL."""
    grows = total == 0 or (total < MAX_TOTAL and rng.random() < 0.5)
    size = rng.randint(1, min(MAX_CHANGE, MAX_TOTAL - total if grows else total))
    return size if grows else -size


def _equation(total: int, change: int) -> str:
    return f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change}."


def _spaced(items: list[int] | list[str]) -> str:
    return " ".join(map(str, items))
