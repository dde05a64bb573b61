"""What a step costs the host, in function calls: the same on a busy machine, and for each request in a crowd."""

import sys
from collections import Counter
from pathlib import Path

from engine.bench.host import Crowd

STEPS = 4


def entered(size, **kind):
    """How often Python's and C's functions are called in a crowd's steps, and Python's by the file's name."""
    crowd, counted = Crowd(size, **kind), Counter()

    def count(frame, event, _argument):
        counted[event] += 1
        if event == "call":
            counted[Path(frame.f_code.co_filename).name] += 1

    for _ in range(STEPS):
        sys.setprofile(count)
        try:
            crowd.step({})
        finally:
            sys.setprofile(None)
    return counted


def calls(size):
    """Function calls, Python's and C's, of one step of one request among so many."""
    counted = entered(size)
    return (counted["call"] + counted["c_call"]) / (STEPS * size)


def test_a_request_costs_no_more_in_a_crowd():
    assert calls(256) < 1.1 * calls(16)


def test_a_step_of_a_request_is_few_calls():
    """293 when each policy, the tally and the history worked out confidences for themselves; 156 since."""
    assert calls(64) < 175


def test_where_nobody_watches_nothing_of_the_trace_runs():
    """But for the look, once a step, whether there is anything; where somebody does, as much as there are requests."""
    off, on = entered(16), entered(16, is_traced=True)
    assert off["trace.py"] == 0
    assert on["trace.py"] >= STEPS * 16
