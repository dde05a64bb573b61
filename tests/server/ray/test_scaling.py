"""How many replicas are wanted, by what they tell of themselves."""

from types import SimpleNamespace

import pytest

from engine import Distribution
from server.ray.scaling import FULLNESS, WAITING, Load, desired


def wanted(waiting, fullness, *, current=2):
    told = {WAITING: dict(enumerate(waiting)), FULLNESS: dict(enumerate(fullness))}
    context = SimpleNamespace(current_num_replicas=current, target_num_replicas=3, aggregated_metrics=told)
    return desired(context)[0]


@pytest.mark.parametrize(
    ("waiting", "fullness", "count"),
    [
        ((0, 0), (0, 0), 0),
        ((8, 12), (0, 0), 5),
        ((0, 0), (0.8, 0.8), 2),
        ((0, 0), (1.0, 0.6), 2),
        ((0, 0), (1.0, 1.0), 2.5),
        ((8, 12), (1.0, 1.0), 5),
    ],
)
def test_the_larger_count_wins(waiting, fullness, count):
    assert wanted(waiting, fullness) == pytest.approx(count)


@pytest.mark.parametrize("told", [None, {}, {WAITING: {}, FULLNESS: {}}, {WAITING: {"a": 9.0}}])
def test_nothing_known_changes_nothing(told):
    context = SimpleNamespace(current_num_replicas=1, target_num_replicas=3, aggregated_metrics=told)
    assert desired(context) == (3, {})


def reading(waiting, *rows):
    seen = Distribution((50.0,), (len(rows), 0), float(sum(rows)))
    return SimpleNamespace(waiting=waiting, decoding=SimpleNamespace(batch_rows=seen))


def test_fullness_is_that_of_the_forwards_since_the_last_reading():
    load = Load(max_batch_rows=100)
    assert load.read(reading(0)) == {WAITING: 0.0, FULLNESS: 0.0}
    assert load.read(reading(3, 20, 40)) == {WAITING: 3.0, FULLNESS: 0.3}
    assert load.read(reading(3, 20, 40)) == {WAITING: 3.0, FULLNESS: 0.0}
    assert load.read(reading(1, 20, 40, 50)) == {WAITING: 1.0, FULLNESS: 0.5}
