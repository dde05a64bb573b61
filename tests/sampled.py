"""Long lists of cases: every run meets a few of each kind, and slow tests all others. None is met twice."""

import pytest


def sampled(stride):
    """Parametrizes `part`: `part(cases)` is every `stride`-th of a list, and in slow tests what that leaves."""

    def few(cases):
        return list(cases)[::stride]

    def others(cases):
        return [case for number, case in enumerate(cases) if number % stride]

    slow = pytest.param(others, id="the others", marks=pytest.mark.slow)
    return pytest.mark.parametrize("part", [pytest.param(few, id=f"one in {stride}"), slow])
