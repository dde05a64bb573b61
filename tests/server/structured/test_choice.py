"""A choice is one of its texts, whole."""

import pytest

from server.structured import choice
from server.structured.budget import Budget
from server.structured.refusals import Malformed, TooLarge


def test_each_choice_is_accepted_and_nothing_else():
    texts = ["yes", "no", "yes, but", "ye", "größer", "no"]
    found = choice.automaton(texts, Budget())
    assert all(found.matches(text) for text in texts)
    assert not any(found.matches(text) for text in ["", "y", "yesno", "no ", "größe"])


@pytest.mark.parametrize(
    ("texts", "error"),
    [([], Malformed), (["\ud800"], Malformed), (["a"] * 1001, TooLarge), (["a" * 65_536, "b"], TooLarge)],
)
def test_what_is_refused(texts, error):
    with pytest.raises(error):
        choice.automaton(texts, Budget())
