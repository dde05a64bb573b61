"""Sums, lists, facts and stories: problems of one turn, and what the models were first trained for."""

from random import Random

from engine.demo.families.facts import FACT_GROUPS, FactGroup
from engine.demo.families.problem import Problem
from engine.demo.families.stories import tell
from engine.demo.families.words import GOODS, NAMES, NOUNS, THINGS

MAX_TOTAL = 15
"""Word problems stay between 0 and this number."""
MAX_CHANGE = 6
"""The largest number that one step of a word problem adds or takes away."""
MAX_SUM = 20
"""Bare sums stay between 0 and this number."""
MAX_SORTED = 20
"""The largest number that has to be sorted."""

OUT_OF_RANGE = f"I only know sums from 0 to {MAX_SUM}."

GAINS = ("buys {} more", "finds {} more", "gets {} more")
LOSSES = ("loses {} of them", "sells {} of them", "drops {} of them")
SORT_PROMPTS = ("Sort these numbers: {}.", "Put these numbers in order: {}.", "Order these numbers by size: {}.")
REVERSE_PROMPTS = ("Reverse these words: {}.", "Say these words backwards: {}.", "Turn these words around: {}.")
STORY_PROMPTS = ("Write a short story about {}.", "Tell me a story about {}.", "Make up a story about {}.")
SUM_PROMPTS = (
    "What is {}?",
    "How much is {}?",
    "Calculate {}.",
    "Compute {}.",
    "What's {}?",
    "what is {}",
    "{} = ?",
    "{} =",
    "{}",
    "Please work out {}.",
    "Tell me what {} is.",
    "Can you add up {} for me?",
)
SHORT_TALES = ("tell me a story", "write a story", "tell me a short story", "write me a short story", "tell a story")
LONG_TALES = ("write a long story", "tell me a long story", "make up a long story", "tell me a tale", "write me a tale")
POLITE = ("", "", "please ", "can you ", "could you ", "I want you to ", "now ")

SUBJECTS: list[tuple[FactGroup, str]] = [(group, subject) for group in FACT_GROUPS for subject in group.answers]


def word(rng: Random) -> Problem:
    """Gains and losses of one person's goods, in one to three worked steps."""
    name, goods = rng.choice(NAMES), rng.choice(GOODS)
    total = rng.randint(2, 9)
    told, worked = [f"{name} has {total} {goods}."], []
    for step in range(rng.randint(1, 3)):
        change = drawn_change(rng, total)
        told.append(f"{name} {rng.choice(GAINS if change > 0 else LOSSES).format(abs(change))}.")
        worked.append(f"{'Then' if step else 'First'} {equation(total, change)}")
        total += change
    told.append(f"How many {goods} does {name} have now?")
    return Problem(task="word", prompt=" ".join(told), answer=" ".join([*worked, f"The answer is {total}."]))


def sort(rng: Random) -> Problem:
    """Three to six distinct numbers, smallest first."""
    numbers = rng.sample(range(1, MAX_SORTED + 1), rng.randint(3, 6))
    prompt = rng.choice(SORT_PROMPTS).format(spaced(numbers))
    return Problem(task="sort", prompt=prompt, answer=f"Sorted: {spaced(sorted(numbers))}.")


def reverse(rng: Random) -> Problem:
    """Three to six distinct words, last first."""
    words = rng.sample(NOUNS, rng.randint(3, 6))
    prompt = rng.choice(REVERSE_PROMPTS).format(spaced(words))
    return Problem(task="reverse", prompt=prompt, answer=f"Reversed: {spaced(words[::-1])}.")


def facts(rng: Random) -> Problem:
    """One fact, asked in one of its group's ways."""
    group, subject = rng.choice(SUBJECTS)
    prompt = rng.choice(group.questions).format(subject)
    return Problem(task="facts", prompt=prompt, answer=f"The answer is {group.answers[subject]}.")


def story(rng: Random) -> Problem:
    """A story that keeps to one or two names and one or two things."""
    names = tuple(rng.sample(NAMES, rng.randint(1, 2)))
    things = tuple(rng.sample(THINGS, rng.randint(1, 2)))
    prompt = rng.choice(STORY_PROMPTS).format(_listed(names, things))
    answer = tell(rng, names, things)
    return Problem(task="story", prompt=prompt, answer=answer, names=names, things=things, story="short")


def sum_(rng: Random) -> Problem:
    """One sum without a story around it; of one in seven the answer says that it is out of range."""
    if rng.random() < 0.15:
        return Problem(task="sum", prompt=_sum_prompt(rng, *_beyond(rng)), answer=OUT_OF_RANGE)
    total = rng.randint(0, MAX_SUM)
    other = rng.randint(0, total)
    left, sign, right, result = rng.choice([(total, "-", other, total - other), (other, "+", total - other, total)])
    return Problem(task="sum", prompt=_sum_prompt(rng, left, sign, right), answer=f"{left} {sign} {right} = {result}.")


def tale(rng: Random) -> Problem:
    """A long story, or one about nobody in particular."""
    is_long = rng.random() < 0.7
    names = tuple(rng.sample(NAMES, rng.choice([0, 1, 1, 2, 2] if is_long else [0, 0, 1])))
    things = tuple(rng.sample(THINGS, rng.choice([0, 1, 2] if is_long else [0, 0, 1])))
    polite, wording = rng.choice(POLITE), rng.choice(LONG_TALES if is_long else SHORT_TALES)
    about = f" about {_listed(names, things)}" if names or things else ""
    ending = "?" if polite.startswith("c") else rng.choice([".", ".", "!", ""])
    prompt = f"{polite}{wording}{about}{ending}"
    prompt = prompt if rng.random() < 0.2 else prompt[0].upper() + prompt[1:]
    answer = tell(rng, names, things, is_long=is_long)
    return Problem(
        task="tale", prompt=prompt, answer=answer, names=names, things=things, story="long" if is_long else "short"
    )


def sums(rng: Random, n: int) -> str:
    """`n` sums of word problems and bare ones, without anything around them, to practise on."""
    return " ".join(_practice(rng) for _ in range(n))


def drawn_change(rng: Random, total: int) -> int:
    """A gain or a loss that keeps the total between 0 and MAX_TOTAL."""
    grows = total == 0 or (total < MAX_TOTAL and rng.random() < 0.5)
    size = rng.randint(1, min(MAX_CHANGE, MAX_TOTAL - total if grows else total))
    return size if grows else -size


def equation(total: int, change: int) -> str:
    """`7 + 5 = 12.`"""
    return f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change}."


def _sum_prompt(rng: Random, left: int, sign: str, right: int) -> str:
    said = rng.choice([sign, sign, "plus" if sign == "+" else "minus"])
    prompts = SUM_PROMPTS if sign == "+" else SUM_PROMPTS[:-1]
    return rng.choice(prompts).format(f"{left} {said} {right}")


def _beyond(rng: Random) -> tuple[int, str, int]:
    """A sum (left, sign, right) of which a number, or the result, is not between 0 and MAX_SUM."""
    left, right = rng.randint(1, MAX_SUM), rng.randint(1, MAX_SUM)
    match rng.randrange(3):
        case 0:
            return left, "+", rng.randint(MAX_SUM + 1 - left, MAX_SUM)
        case 1 if left != right:
            return min(left, right), "-", max(left, right)
    return rng.randint(MAX_SUM + 1, 99 if rng.random() < 0.7 else 9999), rng.choice("+-"), rng.choice([left, left * 7])


def _practice(rng: Random) -> str:
    if rng.random() < 0.6:
        total = rng.randint(0, MAX_TOTAL)
        return equation(total, drawn_change(rng, total))
    total = rng.randint(0, MAX_SUM)
    other = rng.randint(0, total)
    return rng.choice([f"{total} - {other} = {total - other}.", f"{other} + {total - other} = {total}."])


def spaced(items: list[int] | list[str]) -> str:
    return " ".join(map(str, items))


def _listed(names: tuple[str, ...], things: tuple[str, ...]) -> str:
    """`Tom, Mia and a kite`"""
    subjects = [*names, *(f"a {thing}" for thing in things)]
    return f"{', '.join(subjects[:-1])} and {subjects[-1]}" if len(subjects) > 1 else subjects[0]
