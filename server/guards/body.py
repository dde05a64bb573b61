"""What a request's body may be, judged on its bytes before anything is built from it.

JSON's own parser makes an object of every byte or two of a hostile body, and holds the interpreter while it does.
"""

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray

MAX_DEPTH = 64
"""Arrays and objects inside each other."""
MAX_NODES = 16_384
"""Arrays, objects, and members of objects: what is costly to build, unlike numbers in an array."""
CHUNK = 1 << 16
"""Bytes looked at together; they and their masks fit into a core's cache."""

_QUOTE, _COMMA, _COLON = b'",:'
_OPEN, _CLOSE, _LOWER = b"{} "
"""`[` and `]` are `{` and `}` without the bit that makes letters lower case."""
_NOT_FINITE = b"NI"
"""First letters of what Python's parser takes for numbers and JSON does not know; no other token holds them."""


def check_json(body: bytes, max_items: int) -> None:
    """Raises HTTPException 400 for a body that is no UTF-8 or not finite, nests too deep or holds too much.

    Strings are skipped as JSON reads them, so that text may hold anything. What is no JSON at all may pass: its parser
    stops where the grammar ends, and up to there the counts are right.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        raise HTTPException(400, "The body is not valid UTF-8.") from None
    if b"\0" in body:  # UTF-16 has them, and JSON's parser would follow
        raise HTTPException(400, "The body is not valid JSON: it holds a null byte.")
    depth = items = nodes = 0
    within_string = False
    # Pairs first, so that of the quotes the escaped ones alone have a backslash left in front of them.
    data = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        within = np.bitwise_xor.accumulate(chunk == _QUOTE) ^ within_string
        within_string = bool(within[-1])
        outside = chunk[~within]
        if any(_count(outside, letter) for letter in _NOT_FINITE):
            raise HTTPException(400, "The body is not valid JSON: numbers must be finite.")
        brackets = outside | _LOWER
        opened, closed = brackets == _OPEN, brackets == _CLOSE
        depths = depth + np.cumsum(opened.view(np.int8) - closed.view(np.int8), dtype=np.int64)
        if depths.size:
            depth, deepest = int(depths[-1]), int(depths.max())
            if deepest > MAX_DEPTH:
                raise HTTPException(400, f"The body nests deeper than {MAX_DEPTH} levels.")
        items += _count(outside, _COMMA)
        nodes += _count(outside, _COLON) + int(np.count_nonzero(opened))
        if items > max_items or nodes > MAX_NODES:
            raise HTTPException(
                400, f"The body holds more than {max_items} elements, or than {MAX_NODES} arrays, objects and members."
            )


def _count(letters: NDArray[np.uint8], letter: int) -> int:
    return int(np.count_nonzero(letters == letter))
