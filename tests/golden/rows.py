"""Rows of `generations*.json`, and what a decoder made of them. Knows no family and no decoder."""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine import ModelSpec, Submission
from tests.golden.checkpoint import Checkpoint

Row = Mapping[str, Any]
Made = Mapping[str, Any]
"""Keys of a row -> what was made where the row says what is right."""


class Family(Protocol):
    """What a family's module provides."""

    def takes(self, row: Row) -> bool:
        """Whether the row pins what this project does, too."""
        ...

    def through_plain_loop(self, checkpoint: Checkpoint, rows: Iterable[Row]) -> Iterator[Made]: ...

    def asked(self, row: Row, name: str) -> Submission:
        """The request whose answer the row is, of the id `name`."""
        ...

    def expected(self, row: Row, spec: ModelSpec) -> Made:
        """What the engine must make of that request: `output`, and its `forwards` or the `most_forwards`.

        Either only where the row says so.
        """
        ...


def read_rows(path: Path) -> list[Row]:
    return json.loads(path.read_text())


def rather_short(rows: Iterable[Row], kind: Callable[[Row], Hashable]) -> list[Row]:
    """Of each kind the row whose output is longer than those of a quarter of its kind.

    For tests that cannot wait for all; `python -m tests.golden` decodes them.
    """
    kinds: dict[Hashable, list[Row]] = {}
    for row in sorted(rows, key=lambda row: len(row["output"])):
        kinds.setdefault(kind(row), []).append(row)
    return [own[len(own) // 4] for own in kinds.values()]


def covering(rows: Sequence[Row], most: int = 9) -> list[Row]:
    """Few and short rows that have each value of what is told of rows, as far as that has no more than `most` values.

    What a decoder does is chosen by these: which rule, how long a block, whether anything ends early. In their order.
    """
    values: dict[str, set[object]] = {}
    for row in rows:
        for key, value in row.items():
            if not isinstance(value, list | dict):
                values.setdefault(key, set()).add(value)
    kinds = [{(key, row[key]) for key in values if key in row and len(values[key]) <= most} for row in rows]
    missing, chosen = set().union(*kinds), set()
    while missing:
        best = max(range(len(rows)), key=lambda number: len(kinds[number] & missing) / len(rows[number]["output"]))
        missing -= kinds[best]
        chosen.add(best)
    return [rows[number] for number in sorted(chosen)]


def differences(rows: Iterable[Row], made: Iterable[Made]) -> list[str]:
    """One line for each row that came out otherwise: its name, and the keys that differ of those that both have."""
    return [
        f"row {row.get('id', number)}: {', '.join(wrong)}"
        for number, (row, got) in enumerate(zip(rows, made, strict=True))
        if (wrong := [*_differing(row, got)])
    ]


def _differing(row: Row, got: Made) -> Iterator[str]:
    yield from (key for key, value in got.items() if key in row and value != row[key])
    if {"forwards", "most_forwards"} <= {*got, *row} and got["forwards"] > row["most_forwards"]:
        yield "most_forwards"
