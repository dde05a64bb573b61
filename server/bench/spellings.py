"""Spellings of tokens like those of a large byte-level BPE vocabulary, made up: what lifting and classes depend on.

Needs no tokenizer and no network. Shares of kinds and lengths follow Qwen2.5's vocabulary.
"""

import random
from collections.abc import Callable

LETTERS = "etaoinsrhldcumfpgwybvkxjqz"
MARKS = '""""\',,,::..;!?(())[[]]{{}}<>/\\|-_=+*&^%$#@~`'
"""As often as they stand in code: values are full of quotes, commas and brackets."""
ENDS = ("", "", "", "", "\n", "\n\n", "\r\n", " ")
COMMON = (
    "name age email id tags address street city zip day at steps explanation output final kind red green blue location "
    "unit celsius fahrenheit days true false null com org http www type value data text user date time number"
)
"""Words that a real vocabulary has, whole and in parts."""
SHARES = {
    "word": 0.54,
    "letters of three bytes": 0.25,
    "letters of two bytes": 0.106,
    "word behind a mark": 0.04,
    "marks": 0.036,
    "letters of four bytes": 0.011,
    "part of a letter": 0.01,
    "whitespace": 0.003,
}
"""Of tokens beside the 256 bytes."""


def spellings(size: int, seed: int = 0) -> list[bytes]:
    """`size` different spellings, at least 256: all bytes first, then some of each kind by its share."""
    rng = random.Random(seed)
    found = dict.fromkeys(bytes([byte]) for byte in range(256))
    parts = dict.fromkeys(word[:end].encode() for word in COMMON.split() for end in range(2, len(word) + 1))
    found |= dict.fromkeys([*parts, *(b" " + part for part in parts)][: size - len(found)])
    kinds, shares = list(SHARES), list(SHARES.values())
    while len(found) < size:
        for kind in rng.choices(kinds, shares, k=size - len(found)):
            found[_KINDS[kind](rng)] = None
    return list(found)


def _word(rng: random.Random) -> bytes:
    # Some letters are far more common than others, so that words share their beginnings.
    length = min(2 + int(rng.expovariate(0.25)), 16)
    word = "".join(LETTERS[min(int(rng.expovariate(0.15)), 25)] for _ in range(length))
    word = rng.choices((word, word.capitalize(), word.upper()), (0.65, 0.25, 0.1))[0]
    return (rng.choice(("", " ")) + word).encode()


def _word_behind_a_mark(rng: random.Random) -> bytes:
    return rng.choice(MARKS).encode() + _word(rng).lstrip()


def _marks(rng: random.Random) -> bytes:
    marks = rng.choices(MARKS, k=rng.choice((1, 2, 2, 3, 3, 4)))
    return (rng.choice(("", "", " ")) + "".join(marks) + rng.choice(ENDS)).encode()


def _letters(first: int, last: int, most: int) -> Callable[[random.Random], bytes]:
    def made(rng: random.Random) -> bytes:
        length = rng.randint(1, most)
        text = "".join(chr(rng.randint(first, last)) for _ in range(length))
        return (rng.choice(("", "", " ")) + text).encode()

    return made


def _part_of_a_letter(rng: random.Random) -> bytes:
    return chr(rng.randint(0x800, 0xD7FF)).encode()[:2]


def _whitespace(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return b" " * rng.randint(2, 80)
    return "".join(rng.choices("\n\t \r", k=rng.randint(2, 8))).encode()


_KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "word": _word,
    "letters of three bytes": _letters(0x4E00, 0x9FFF, 3),
    "letters of two bytes": _letters(0x400, 0x5FF, 6),
    "word behind a mark": _word_behind_a_mark,
    "marks": _marks,
    "letters of four bytes": _letters(0x1F300, 0x1FAFF, 1),
    "part of a letter": _part_of_a_letter,
    "whitespace": _whitespace,
}
