"""Two ranks decode what published code decoded, token for token, in every family."""

from contextlib import nullcontext

import pytest

from tests.golden.__main__ import DRAWS, FAMILIES
from tests.golden.rows import differences, rather_short, read_rows
from tests.golden.through_engine import together

from .in_threads import DATA, FOLDERS

UNLIKE = ("dream-tiny", "llada22-tiny", "nemotron-tiny")
"""Folders with most that is cut: biases, shared heads, experts beside an MLP, an adapter. The slow test has all."""


def differing(engine, folder, chosen):
    """The golden rows that come out otherwise in one running batch, and how many there are. `chosen`: of a file's."""
    spec = engine.info.spec
    family, draws = FAMILIES[spec.family], DRAWS.get(spec.family, nullcontext)
    found, count = [], 0
    for path in sorted(folder.glob("generations*.json")):
        rows = chosen([row for row in read_rows(path) if family.takes(row) and row["output"]])
        right = [{"id": number, **family.expected(row, spec)} for number, row in enumerate(rows)]
        with draws():
            found += differences(right, together(engine, [family.asked(row, str(n)) for n, row in enumerate(rows)]))
        count += len(rows)
    return found, count


@pytest.mark.parametrize("name", UNLIKE)
def test_some_rows(ranks, name):
    wrong, count = differing(ranks(DATA / name), DATA / name, lambda rows: rather_short(rows, lambda _: None))
    assert not wrong
    assert count


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_a_sixth_of_all_rows(ranks, name):
    """All of them, between processes: `python -m tests.golden FOLDER --tensor-parallel-size 2`."""
    wrong, count = differing(ranks(DATA / name), DATA / name, lambda rows: rows[::6])
    assert not wrong
    assert count > 4
