"""An automaton over tokens does what the automaton over their bytes does."""

from itertools import pairwise

import numpy as np
import pytest

from engine import DEMO_MODEL
from engine.core.constraint import Constraint
from server.structured.automaton import NEVER
from server.structured.budget import Budget
from server.structured.lift import lift
from server.structured.refusals import NoValue, TooLarge
from server.structured.regex.expressions import automaton
from server.structured.regex.regex import parsed
from server.structured.vocabulary import Vocabulary
from server.text.tokenizer import Tokenizer

PATTERNS = [
    r"\d{4}-(0[1-9]|1[0-2])",
    r'"([^"\\]|\\["\\nrt])*"',
    r"(yes|no|yes, but|ye)",
    r"[a-z ]{3,9}(\.|!)?",
    r"(é|ü|€)+x*",
    r".*",
]


def compiled(pattern):
    return automaton(parsed(pattern), Budget(), is_search=False)


@pytest.fixture(scope="module")
def spellings():
    from pathlib import Path

    tokenizer = Tokenizer.load(Path(DEMO_MODEL))
    assert tokenizer.is_byte_level
    return tokenizer.spellings(max(tokenizer.added_tokens) + 1)


@pytest.fixture(scope="module")
def stop_id(spellings):
    return next(id_ for id_, spelling in enumerate(spellings) if not spelling)


def lifted(found, spellings, stop_id):
    return Constraint(**lift(found, Vocabulary(spellings), [stop_id], Budget()))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_lead_where_their_bytes_lead(pattern, spellings, stop_id):
    found = compiled(pattern)
    constraint = lifted(found, spellings, stop_id)
    place = {0: 0}
    """The state of each state over bytes; filled as it is reached, and the same wherever it is reached again."""
    waiting = [0]
    while waiting:
        state = waiting.pop()
        assert constraint.accepts[place[state]] == found.accepts[state]
        for id_, spelling in enumerate(spellings):
            after = int(constraint.step[place[state], constraint.classes[id_]])
            behind = found.after(spelling, state) if spelling else found.dead
            if id_ == stop_id:
                assert after == (constraint.end if found.accepts[state] else constraint.dead)
            elif behind == found.dead:
                assert after == constraint.dead
            elif behind in place:
                assert after == place[behind]
            else:
                place[behind] = after
                waiting.append(behind)
    assert len(place) == constraint.num_states


@pytest.mark.parametrize("pattern", PATTERNS)
def test_edges_are_the_steps_between_live_states(pattern, spellings, stop_id):
    constraint = lifted(compiled(pattern), spellings, stop_id)
    steps = {
        (state, int(after), token_class)
        for state in range(constraint.num_states + 1)
        for token_class, after in enumerate(constraint.step[state])
        if after != constraint.dead
    }
    sets = [constraint.label_classes[start:end].tolist() for start, end in pairwise(constraint.label_start.tolist())]
    edges = zip(constraint.edge_src.tolist(), constraint.edge_dst.tolist(), constraint.edge_label.tolist(), strict=True)
    assert {(src, dst, one) for src, dst, label in edges for one in sets[label]} == steps
    assert len({tuple(one) for one in sets}) == len(sets)
    pairs = list(zip(constraint.edge_src.tolist(), constraint.edge_dst.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_distances_are_least_numbers_of_tokens(pattern, spellings, stop_id):
    constraint = lifted(compiled(pattern), spellings, stop_id)
    for state, distance in enumerate(constraint.distance.tolist()):
        following = constraint.step[state, :-1]
        following = following[following < constraint.num_states]
        nearest = constraint.distance[following].min(initial=NEVER)
        assert distance == (0 if constraint.accepts[state] else nearest + 1)


def test_every_class_tells_states_apart(spellings, stop_id):
    constraint = lifted(compiled(PATTERNS[0]), spellings, stop_id)
    assert len(np.unique(constraint.step, axis=1).T) == constraint.num_classes
    assert (constraint.step[:, 0] == constraint.dead).all()
    assert np.flatnonzero(constraint.classes == constraint.num_classes - 1).tolist() == [stop_id]
    assert {field: getattr(constraint, field).dtype.name for field in ("classes", "step", "edge_src", "accepts")} == {
        "classes": "int64",
        "step": "int32",
        "edge_src": "int32",
        "accepts": "bool",
    }


def test_states_that_tokens_do_not_lead_to_are_left_out():
    """Of `ab` and `cd` there are whole tokens only, and none begins with `x`."""
    found = compiled("(ab|cd)+(x?)")
    constraint = Constraint(**lift(found, Vocabulary([b"ab", b"cd", b"", b"zz"]), [2], Budget()))
    assert constraint.num_states == 2
    assert constraint.distance.tolist() == [1, 0]
    assert constraint.classes.tolist() == [1, 1, 2, 0]


def test_states_from_which_tokens_lead_to_no_end_are_dead():
    constraint = Constraint(**lift(compiled("a|bc"), Vocabulary([b"a", b"b", b""]), [2], Budget()))
    assert constraint.num_states == 2
    assert constraint.classes.tolist() == [1, 0, 2]


def test_what_the_vocabulary_cannot_spell_is_refused():
    with pytest.raises(NoValue, match="vocabulary"):
        lift(compiled("é"), Vocabulary([b"a", b"\xc3", b""]), [2], Budget())


def test_a_stop_token_is_no_text():
    """Even if it has a spelling."""
    constraint = Constraint(**lift(compiled("a+|b"), Vocabulary([b"a", b"b"]), [1], Budget()))
    assert constraint.step[0, constraint.classes[1]] == constraint.dead


def test_the_number_of_maps_is_bounded(spellings, stop_id):
    with pytest.raises(TooLarge, match="class of tokens"):
        lift(compiled(PATTERNS[1]), Vocabulary(spellings), [stop_id], Budget(entries=20))
