"""Checks a request's body on its bytes, before it is parsed.

Python's JSON parser makes an object of every byte or two of a hostile body, and holds the interpreter meanwhile.
"""

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray

MAX_DEPTH = 64
"""Deepest nesting of arrays and objects."""
MAX_NODES = 16_384
"""Arrays, objects, and members of objects: what is costly to build, unlike numbers in an array."""
CHUNK = 1 << 16
"""Bytes that are checked together; they and their masks fit into a core's cache."""

_QUOTE, _COMMA, _COLON = b'",:'
_OPEN, _CLOSE, _LOWER = b"{} "
"""The bit that makes letters lower case also turns `[` and `]` into `{` and `}`."""
_NOT_FINITE = b"NI"
"""First letters of `NaN` and `Infinity`, which Python's parser accepts and JSON lacks; no other token has them."""


def check_json(body: bytes, max_items: int) -> None:
    """Raises HTTPException 400 for a body that is not UTF-8, has non-finite numbers, nests too deep or is too large.

    `max_items`: commas outside strings. Strings are skipped as JSON reads them, so that text may contain anything.
    Invalid JSON may pass: the parser stops at the first error, and up to there the counts are right.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        raise HTTPException(400, "The body is not valid UTF-8.") from None
    if b"\0" in body:  # as UTF-16 does, which the JSON parser would detect and accept
        raise HTTPException(400, "The body is not valid JSON: it holds a null byte.")
    if _is_too_short_to_be_wrong(body, max_items):
        return
    depth = items = nodes = 0
    within_string = False
    # Pairs of backslashes are removed first. A quote that still follows a backslash is then an escaped one.
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


def _is_too_short_to_be_wrong(body: bytes, max_items: int) -> bool:
    """Whether no bound is in reach even if no byte is within a string: most bodies end here, in microseconds."""
    brackets = body.count(b"[") + body.count(b"{")
    return len(body) <= min(max_items, MAX_NODES) and brackets <= MAX_DEPTH and b"N" not in body and b"I" not in body


def _count(letters: NDArray[np.uint8], letter: int) -> int:
    return int(np.count_nonzero(letters == letter))
