"""The order in which replicas are asked."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ray.routing.placement import EXCESS, SLACK, order

LOADS = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 50), max_size=8)
KEYS = st.none() | st.text(max_size=4)


@given(KEYS, LOADS, st.sets(st.text(min_size=1, max_size=4)))
def test_every_replica_is_asked_once_and_those_that_refused_last(key, loads, tried):
    asked = order(key, loads, tried)
    assert sorted(asked) == sorted(loads)
    refused = [replica in tried for replica in asked]
    assert refused == sorted(refused)


@given(st.text(max_size=4), LOADS.filter(bool))
def test_none_that_is_far_busier_than_the_mean_comes_first(key, loads):
    [first, *_] = order(key, loads)
    assert loads[first] < max(SLACK, EXCESS * (sum(loads.values()) + 1) / len(loads))


@given(st.text(max_size=4), st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=8))
def test_a_replica_that_goes_takes_only_its_own_keys_along(key, replicas):
    before = order(key, dict.fromkeys(replicas, 0))
    for gone in replicas:
        after = order(key, dict.fromkeys(replicas - {gone}, 0))
        assert after == [replica for replica in before if replica != gone]


@given(LOADS)
def test_without_a_key_the_least_busy_comes_first(loads):
    assert [loads[replica] for replica in order(None, loads)] == sorted(loads.values())


def test_keys_are_spread():
    first = Counter(order(f"key {number}", {"a": 0, "b": 0, "c": 0})[0] for number in range(3000))
    assert set(first) == {"a", "b", "c"}
    assert min(first.values()) > 900


@pytest.mark.parametrize("load", range(SLACK))
def test_a_little_load_is_no_reason_to_leave(load):
    [home, other] = order("key", {"a": 0, "b": 0})
    assert order("key", {home: load, other: 0}) == [home, other]
    assert order("key", {home: SLACK + 20, other: 0}) == [other, home]
