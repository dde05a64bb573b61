"""What a step costs the host, in function calls: the same on a busy machine, and for each request in a crowd."""

import sys
from collections import Counter

import pytest

from engine.bench.host import Crowd

STEPS = 4


def calls(size):
    """Function calls, Python's and C's, of one step of one request among so many."""
    crowd, counted = Crowd(size), Counter()

    def count(_frame, event, _argument):
        counted[event] += 1

    for _ in range(STEPS):
        sys.setprofile(count)
        try:
            crowd.step({})
        finally:
            sys.setprofile(None)
    return (counted["call"] + counted["c_call"]) / (STEPS * size)


@pytest.mark.parametrize("size", [64, 256])
def test_a_request_costs_no_more_in_a_crowd(size):
    assert calls(size) < 1.1 * calls(16)


def test_a_step_of_a_request_is_few_calls():
    """293 when each policy, the tally and the history worked out confidences for themselves; 156 since."""
    assert calls(64) < 175
