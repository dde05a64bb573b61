"""Training rows: problems in chat, question and bare form, solved examples before some of them, EOS to the end.

`engine.demo.training.noise` and `.masks` say which tokens of a row are masked, and why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from tokenizers import Tokenizer

from engine.demo.chat import rendered
from engine.demo.families.basics import sums
from engine.demo.families.lookups import Asked, lookups, owners
from engine.demo.families.problem import Problem, Turn
from engine.demo.tasks import Split, examples, split_of, stream

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are unmask, a small model.",
    "Answer in one sentence.",
    "You are a helpful, honest assistant. Answer the question.",
    "Be brief.",
)
"""System turns that clients send, and that change nothing."""
SYSTEM_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of one length, so that a batch needs no padding but the EOS tail that it learns to write."""

    length: int
    share: tuple[float, float]
    """How often a batch is drawn from this bucket, at the start of training and at its end."""
    shots: tuple[int, int] = (0, 0)
    """Solved examples before the question: the fewest that are drawn and the most, where they fit."""
    oftener: Mapping[str, int] = field(default_factory=dict)
    """Families that occur so many times as often as in FAMILIES: those that shorter rows have no room for."""

    @property
    def families(self) -> dict[str, int]:
        return {task: weight * self.oftener.get(task, 1) for task, weight in FAMILIES.items()}


FAMILIES = {
    "word": 12,
    "sort": 7,
    "reverse": 6,
    "facts": 5,
    "story": 5,
    "sum": 6,
    "tale": 6,
    "turn": 14,
    "greet": 4,
    "other": 6,
    "form": 18,
    "value": 10,
    "tool": 12,
    "yesno": 16,
    "choice": 14,
    "score": 8,
}
"""How often each family occurs, among those that fit."""
SUMS_SHARE = (0.12, 0.05)
"""How often a batch is nothing but sums: problems alone show too few of them to learn the table."""
SUMS_PER_ROW = 8
SUM_LENGTH = 6
"""Tokens of ` 7 + 8 = 15.`"""
RESULT = 4
"""Where a sum's result is among them."""
LOOKUPS_SHARE = (0.35, 0.12)
"""How often a batch is nothing but texts with all that may be looked up in them, in a run that says nothing else."""
LOOKUPS_LENGTH = 128
"""Most tokens of such a row."""


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids, and where the answers are [first, end). EOS follows the last one, if it ends the row."""

    ids: list[int]
    answers: list[tuple[int, int]]
    clues: Mapping[int, int] = field(default_factory=dict)
    """By where an answer begins, the token that decides it."""
    owners: Mapping[int, int] = field(default_factory=dict)
    """By where a word of the text stands, the token of what it belongs to."""

    def followed_by(self, other: "Row") -> "Row":
        start = len(self.ids)
        return Row(
            self.ids + other.ids,
            self.answers + [(start + first, start + end) for first, end in other.answers],
            {**self.clues, **{start + first: clue for first, clue in other.clues.items()}},
            {**self.owners, **{start + at: owner for at, owner in other.owners.items()}},
        )


def chat_form(problem: Problem, shots: Sequence[Problem] = (), system: str = "") -> list[tuple[str, bool]]:
    """What the chat template renders, and the answer that follows: pieces of text, true where they are answers."""
    solved = (turn for shot in shots for turn in (*shot.turns, Turn("assistant", shot.answer)))
    opening = [Turn("system", system)] if system else []
    return [*rendered([*opening, *solved, *problem.turns], problem.tools), (problem.answer, True)]


def question_form(problem: Problem, shots: Sequence[Problem] = (), system: str = "") -> list[tuple[str, bool]]:
    """The plain form of the few-shot literature."""
    return _plain(problem, shots, f"{system}\n\n" if system else "", "Question: {}\nAnswer:", " {}", "\n\n")


def bare_form(problem: Problem, shots: Sequence[Problem] = (), system: str = "") -> list[tuple[str, bool]]:
    """The prompt as a user of the completions API may type it."""
    return _plain(problem, shots, f"{system}\n" if system else "", "{}", " {}", "\n")


FORMS = (chat_form, question_form, bare_form)
FORM_WEIGHTS = (60, 26, 14)


class Rows:
    """Draws rows; what is drawn follows from the random generator alone."""

    def __init__(self, tokenizer: Tokenizer, split: Split = "train") -> None:
        self.tokenizer, self.split = tokenizer, split

    def draw(self, rng: Random, bucket: Bucket) -> Row:
        """A row that leaves room for at least one EOS."""
        while True:
            weights = bucket.families
            task = rng.choices(list(weights), list(weights.values()))[0]
            for problem in islice(stream(task, rng, self.split), 4):
                form = chat_form if problem.tools else rng.choices(FORMS, FORM_WEIGHTS)[0]
                system = rng.choice(SYSTEMS) if rng.random() < SYSTEM_SHARE else ""
                shots = list(islice(examples(problem, rng, self.split), rng.randint(*bucket.shots)))
                for first in range(len(shots) + 1):
                    row = self.encoded(form(problem, shots[first:], system))
                    if len(row.ids) < bucket.length:
                        return row

    def sums(self, rng: Random) -> Row:
        """Nothing but sums; each result is an answer."""
        ids = self.tokenizer.encode(f" {sums(rng, SUMS_PER_ROW)}").ids
        return Row(ids, [(i + RESULT, i + RESULT + 1) for i in range(0, len(ids), SUM_LENGTH)])

    def lookups(self, rng: Random) -> Row:
        """A text, and about it as many questions of this split as there is room for: a conversation, each of whose
        answers is one."""
        form = rng.choices(FORMS, FORM_WEIGHTS)[0]
        row = Row([], [])
        while not row.answers:
            text, all_asked = lookups(rng)
            # The key of the problem that would ask it.
            asked = [one for one in all_asked if split_of(f"{text}\n{one.question}") == self.split]
            pieces = form(_conversation(text, asked)) if asked else []
            for (told, _), (answer, _), one in zip(pieces[::2], pieces[1::2], asked, strict=True):
                more = self._told(told, one.owned).followed_by(self._judged(answer, one.clue))
                if len(row.ids) + len(more.ids) >= LOOKUPS_LENGTH:
                    break
                row = row.followed_by(more)
        return row

    def _told(self, text: str, owned: Mapping[str, str]) -> Row:
        """A text with the owners of its words, those of `owned` among them."""
        encoding = self.tokenizer.encode(text)
        places = ((encoding.char_to_token(at), owner) for at, owner in owners(text, owned))
        return Row(encoding.ids, [], owners={at: self._word(owner) for at, owner in places if at is not None})

    def _judged(self, answer: str, clue: str | None) -> Row:
        ids = self.tokenizer.encode(answer).ids
        return Row(ids, [(0, len(ids))], {} if clue is None else {0: self._word(clue)})

    def _word(self, word: str) -> int:
        return self.tokenizer.encode(f" {word}").ids[0]

    def encoded(self, pieces: Sequence[tuple[str, bool]]) -> Row:
        """Pieces of text, true where they are answers, as a row."""
        ids: list[int] = []
        answers = []
        for encoding, (_, is_answer) in zip(
            self.tokenizer.encode_batch_fast([text for text, _ in pieces]), pieces, strict=True
        ):
            if is_answer:
                answers.append((len(ids), len(ids) + len(encoding.ids)))
            ids += encoding.ids
        return Row(ids, answers)


def _conversation(text: str, asked: Sequence[Asked]) -> Problem:
    """The text and the first question are what the first turn says."""
    turns = [turn for one in asked for turn in (Turn("user", one.question), Turn("assistant", one.answer))]
    turns[0] = Turn("user", f"{text}\n{asked[0].question}")
    *before, last, answer = turns
    return Problem(task="lookups", prompt=last.content, answer=answer.content, before=tuple(before))


def prompt_of(pieces: Sequence[tuple[str, bool]]) -> str:
    """What stands before the last answer."""
    return "".join(text for text, _ in pieces[:-1])


def _plain(
    problem: Problem, shots: Sequence[Problem], opening: str, ask: str, answer: str, between: str
) -> list[tuple[str, bool]]:
    """The turns of every conversation, one after the other."""
    turns = [turn for shot in shots for turn in (*shot.turns, Turn("assistant", shot.answer))]
    turns += [*problem.turns, Turn("assistant", problem.answer)]
    pieces, text = [], opening
    for turn in turns:
        if turn.role == "assistant":
            pieces += [(text, False), (answer.format(turn.content), True)]
            text = between
        else:
            text += ask.format(turn.content)
    return pieces
