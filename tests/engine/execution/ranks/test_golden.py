"""Two ranks decode what published code decoded, token for token, in every family."""

from contextlib import nullcontext

import pytest

from tests.golden.__main__ import DRAWS, FAMILIES
from tests.golden.rows import differences, read_rows
from tests.golden.through_engine import engine_of, together

from .in_threads import DATA, FOLDERS

ROWS = 2
"""Of each file, in the default suite."""


def differing(engine, folder, most=None):
    """The golden rows that come out otherwise in one running batch, and how many there are."""
    spec = engine.info.spec
    family, draws = FAMILIES[spec.family], DRAWS.get(spec.family, nullcontext)
    found, count = [], 0
    for path in sorted(folder.glob("generations*.json")):
        rows = [row for row in read_rows(path) if family.takes(row) and row["output"]]
        rows = rows[:: -(-len(rows) // most)] if most else rows
        right = [{"id": number, **family.expected(row, spec)} for number, row in enumerate(rows)]
        with draws():
            found += differences(right, together(engine, [family.asked(row, str(n)) for n, row in enumerate(rows)]))
        count += len(rows)
    return found, count


@pytest.mark.parametrize("name", FOLDERS)
def test_some_rows(ranks, name):
    wrong, count = differing(ranks(DATA / name), DATA / name, ROWS)
    assert not wrong
    assert count >= ROWS


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_all_rows_between_processes(name):
    engine = engine_of(DATA / name, tensor_parallel_size=2)
    wrong, count = differing(engine, DATA / name)
    assert not wrong
    assert count > ROWS
