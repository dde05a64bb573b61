"""Every answer is valid and ends in time: real constraints, every policy, cache and temperature, tight canvases.

`python -m tests.constrained` counts as many as one likes.
"""

import pytest

from tests.constrained.answers import MODELS, Model, faults, shares


def check(folder, count):
    model = Model(folder)
    asked = model.asked(count, seed=count)
    assert list(faults(model, asked, seed=count)) == []


def test_nothing_is_invalid():
    check(MODELS[0], 6)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "count"), list(zip(MODELS, shares(80), strict=True)))
def test_nothing_of_much_is_invalid(folder, count):
    check(folder, count)
