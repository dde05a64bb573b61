"""The banker's algorithm against every order in which requests might end."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduling.safe_state import Claim, is_safe, most_alike


def some_order_works(free, claims):
    def works(order):
        left = free
        for held, missing in order:
            if missing > left:
                return False
            left += held
        return True

    return any(works(order) for order in permutations(claims))


@given(st.integers(0, 8), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=5))
def test_a_state_is_safe_if_some_order_works(free, claims):
    assert is_safe(free, [Claim(*claim) for claim in claims]) == some_order_works(free, claims)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(0, 9))
def test_how_many_alike(pages, opening, more):
    canvas = opening + more

    def fit(count):
        free = pages - count * opening
        return free >= 0 and is_safe(free, [Claim(opening, more)] * count)

    most = most_alike(pages, opening, canvas)
    assert fit(most)
    assert not fit(most + 1)


@pytest.mark.parametrize(
    ("free", "claims", "safe"),
    [
        (0, [], True),
        (0, [(3, 0)], True),
        (0, [(3, 1)], False),
        (1, [(1, 2), (2, 1), (0, 4)], True),  # each gives what the next one needs
        (1, [(1, 2), (1, 2)], False),  # both would wait for the other
    ],
)
def test_by_hand(free, claims, safe):
    assert is_safe(free, [Claim(*claim) for claim in claims]) is safe
