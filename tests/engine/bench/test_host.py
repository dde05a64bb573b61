"""The host's share of a step, timed by part."""

from itertools import pairwise

import pytest

from engine import HOST_PARTS, ConfigError, bench_host
from engine.bench import host


def test_each_part_is_timed_by_its_own_clock(monkeypatch):
    """A clock that goes a second at each look: so many pairs of looks, so many seconds."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(host.time, "thread_time", lambda: float(next(ticks)))
    [row] = bench_host([4], 3)
    assert row.microseconds == {part: pytest.approx(1e6 / 4 * (2 if part == "tally" else 1)) for part in HOST_PARTS}
    assert row.total == pytest.approx(6e6 / 4)


def test_all_requests_decode_in_each_step():
    crowd = host.Crowd(3)
    tokens = [crowd.tally.read().tokens_decoded]
    for _ in range(5):
        crowd.step({})
        tokens.append(crowd.tally.read().tokens_decoded)
    assert all(later - before >= 3 for before, later in pairwise(tokens))


def test_progress_counts_steps_of_all_crowds():
    seen = []
    bench_host([1, 2], 2, lambda *at: seen.append(at))
    assert seen == [(0, 4, 1), (1, 4, 1), (2, 4, 2), (3, 4, 2)]


@pytest.mark.parametrize(("crowds", "steps"), [([], 1), ([0], 1), ([1], 0), ([1], 1024)])
def test_what_cannot_be_timed(crowds, steps):
    with pytest.raises(ConfigError, match="requests are 1 or more, steps 1 to 1023"):
        bench_host(crowds, steps)
