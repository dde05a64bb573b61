"""The key of a request: one for all turns of a conversation, another for other tenants and other beginnings."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.ray.routing.affinity import OPENING, affinity

USER, ANSWER, AGAIN = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user"})


def key(tenant="", **fields):
    return affinity(json.dumps(fields).encode(), tenant)


@pytest.mark.parametrize("name", ["messages", "input"])
def test_all_turns_of_a_conversation_have_one_key(name):
    system = {"role": "system", "content": "Be brief."}
    first = key(**{name: [system, USER]})
    assert first == key(**{name: [system, USER, ANSWER, AGAIN]}, temperature=1, stream=True)
    assert first != key(**{name: [system, {**USER, "content": "hi there"}]})
    assert first != key(**{name: [USER]})


def test_what_stands_before_the_conversation_counts():
    assert key(messages=[USER], system="a") != key(messages=[USER], system="b")
    assert key(input="hi", instructions="a") != key(input="hi", instructions="b")
    assert key(input="hi") is not None


def test_a_long_beginning_is_enough():
    text = "x" * OPENING
    assert key(prompt=text + "a") == key(prompt=text + "b")
    assert key(messages=[{"role": "system", "content": text}, USER]) == key(
        messages=[{"role": "system", "content": text}, AGAIN]
    )


def test_the_first_of_several_prompts_counts():
    assert key(prompt=["a", "b"]) == key(prompt="a")
    assert key(prompt=[[1, 2], [3]]) == key(prompt=[1, 2]) != key(prompt=[1, 3])


def test_a_name_outranks_the_prompt():
    assert key(prompt="a", prompt_cache_key="k") == key(messages=[USER], prompt_cache_key="k")
    assert key(prompt="a", prompt_cache_key="k") != key(prompt="a", prompt_cache_key="l")
    assert key(prompt="a", prompt_cache_key="") == key(prompt="a", prompt_cache_key=5) == key(prompt="a")


def test_tenants_share_no_key():
    assert key("a", prompt="x", prompt_cache_key="k") != key("b", prompt="x", prompt_cache_key="k")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff", b"{}", b'{"model": "m", "prompt": []}'])
def test_without_a_prompt_there_is_none(body):
    assert affinity(body, "") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["messages", "input", "prompt", "system", "prompt_cache_key"]), JSON))
@settings(max_examples=40)
def test_any_body_is_read(fields):
    found = affinity(json.dumps(fields).encode(), "")
    assert found is None or len(found) == 64
