"""Labels: texts of one token each, which stand for the answers to a question."""

import asyncio
import re
from collections.abc import Sequence
from itertools import islice, product
from string import ascii_uppercase
from typing import NamedTuple

from server.text.tokenizer import Tokenizer

MOST_OPTIONS = 255
"""Answers that a question may have."""
MOST_LEVELS = 10
"""Levels of a score."""
MOST_WORDS = 2048
"""Words of the vocabulary that are looked at, with a space before them and without, where letters and pairs of letters
are too few."""
_WORDS = (re.compile(r"[A-Za-z0-9]{1,12}"), re.compile(r" [A-Za-z0-9]{1,12}"))
"""Words without a space before them come first: letters have none, and behind the same text a token with a space is
less probable for its space alone."""


class Label(NamedTuple):
    """A text, and the token that it is."""

    text: str
    id: int


class Labels(NamedTuple):
    """The labels of one tokenizer."""

    yes_no: tuple[Label, Label] | None
    """None if one of the words takes several tokens."""
    numbers: Sequence[Label]
    """From 1 on without a gap, up to `MOST_LEVELS`."""
    names: Sequence[Label]
    """Letters, then pairs of them, then words of the vocabulary, last those with a space: up to `MOST_OPTIONS`."""


async def read_labels(tokenizer: Tokenizer, vocab_size: int) -> Labels:
    """The labels that this tokenizer has."""
    pairs = ["".join(pair) for pair in product(ascii_uppercase, repeat=2)]
    words = await asyncio.to_thread(_words, tokenizer, vocab_size)  # it may take a second
    numbers = [str(number) for number in range(1, MOST_LEVELS + 1)]
    texts = ["Yes", "No", *numbers, *ascii_uppercase, *pairs, *words]
    encoded = await tokenizer.encode(texts, add_special_tokens=False)
    single = {
        text: Label(text.strip(), ids[0])
        for text, ids in zip(texts, encoded, strict=True)
        if len(ids) == 1 and tokenizer.spell(ids[0]).strip() == text.strip()  # a token for unknown texts is no label
    }
    names: dict[str, Label] = {}
    for text in (*ascii_uppercase, *pairs, *words):
        if text in single:
            names.setdefault(text.strip().lower(), single[text])  # `no` and ` No` would look like one label
    return Labels(
        yes_no=(single["Yes"], single["No"]) if {"Yes", "No"} <= single.keys() else None,
        numbers=_without_gap([single.get(number) for number in numbers]),
        names=[*names.values()][:MOST_OPTIONS],
    )


def _words(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    return [
        word
        for pattern in _WORDS
        for word in islice(filter(pattern.fullmatch, map(tokenizer.spell, range(vocab_size))), MOST_WORDS)
    ]


def _without_gap(labels: Sequence[Label | None]) -> list[Label]:
    found: list[Label] = []
    for label in labels:
        if label is None:
            break
        found.append(label)
    return found
