"""Rows of `generations*.json`, and what a decoder made of them. Knows no family and no decoder."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from engine import Submission
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

    def expected(self, row: Row) -> Made:
        """What the engine must make of that request: `output`, and `forwards` where the row says how many it takes."""
        ...


def read_rows(path: Path) -> list[Row]:
    return json.loads(path.read_text())


def differences(rows: Iterable[Row], made: Iterable[Made]) -> list[str]:
    """One line for each row that came out otherwise: its name, and the keys that differ of those that both have."""
    return [
        f"row {row.get('id', number)}: {', '.join(wrong)}"
        for number, (row, got) in enumerate(zip(rows, made, strict=True))
        if (wrong := [key for key, value in got.items() if key in row and value != row[key]])
    ]
