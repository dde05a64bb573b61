"""What a body may be, judged on its bytes: against JSON's own parser, at the bounds, and on the event loop."""

import asyncio
import json
import threading
import time

import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st

from server.guards import limits
from server.guards.body import CHUNK, MAX_DEPTH, MAX_NODES, check_json

JSON = {"content-type": "application/json"}
MEBIBYTE = 1 << 20


def refusal(body, max_items=100):
    """Why a body is refused, or None."""
    try:
        check_json(body if isinstance(body, bytes) else body.encode(), max_items)
    except HTTPException as error:
        return error.status_code == 400 and error.detail
    return None


def measure(value, depth=1):
    """The slow twin: (depth, elements behind the first of each, containers and members) of a parsed value."""
    if not isinstance(value, list | dict):
        return 0, 0, 0
    children = value.values() if isinstance(value, dict) else value
    parts = [measure(child) for child in children]
    deepest = 1 + max((part[0] for part in parts), default=0)
    items = max(len(parts) - 1, 0) + sum(part[1] for part in parts)
    nodes = 1 + (len(parts) if isinstance(value, dict) else 0) + sum(part[2] for part in parts)
    return deepest, items, nodes


TRICKY = st.text(alphabet='"\\[]{},:NIx\u00e9\n', max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | TRICKY,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TRICKY, inner, max_size=5),
    max_leaves=40,
)


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_the_counts_are_those_of_the_parsed_value(monkeypatch_module, value, ascii_only, indent):
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    depth, items, nodes = measure(value)
    for name, count in (("MAX_DEPTH", depth), ("MAX_NODES", nodes)):
        for limit in (count, count - 1):
            with monkeypatch_module(name, limit):
                assert (refusal(body, items) is None) == (limit == count)
    assert refusal(body, items - 1) is not None if items else True


@pytest.fixture(scope="module")
def monkeypatch_module():
    """`with monkeypatch_module(name, value)`: one of the module's bounds set otherwise."""

    def change(name, value):
        patch = pytest.MonkeyPatch.context()

        class Changed:
            def __enter__(self):
                patch.__enter__().setattr(f"server.guards.body.{name}", value)

            def __exit__(self, *error):
                patch.__exit__(*error)

        return Changed()

    return change


def test_depth_is_bounded():
    assert refusal("[" * MAX_DEPTH + "]" * MAX_DEPTH) is None
    assert "nests deeper" in refusal("[" * (MAX_DEPTH + 1))
    assert "nests deeper" in refusal('{"a":' * (MAX_DEPTH + 1))
    assert refusal('["' + "[" * 1000 + '"]') is None


def test_elements_are_bounded():
    assert refusal("[" + "1," * 100 + "1]") is None
    assert "more than 100 elements" in refusal("[" + "1," * 101 + "1]")


def test_members_and_containers_are_bounded():
    members = "{" + ",".join(f'"{i}":1' for i in range(MAX_NODES)) + "}"
    assert "members" in refusal(members, 10**6)
    assert "members" in refusal("[" + "[]," * MAX_NODES + "1]", 10**6)


@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("piece", ['\\"', "\\\\", "x", '","'])
def test_strings_cross_from_one_chunk_to_the_next(offset, piece):
    body = '["' + "x" * (CHUNK - 4 + offset) + piece + "[" * 100 + '"]'
    assert json.loads(body)
    assert refusal(body) is None


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_numbers_are_finite(word):
    assert "finite" in refusal(f'{{"a": {word}}}')
    assert refusal(f'{{"{word}": "{word}", "b": null, "c": 1E5}}') is None


@pytest.mark.parametrize(
    "body", [b'{"a": "\xff"}', b"\xed\xa0\x80", '{"a": 1}'.encode("utf-16"), '{"a": 1}'.encode("utf-16-le")]
)
def test_only_utf8_is_read(body):
    assert refusal(body) is not None


HOSTILE = {
    "deep": b"[" * 4 * MEBIBYTE,
    "numbers": b"[" + b"1," * (2 * MEBIBYTE - 2) + b"1]",
    "lists": b"[" + b"[]," * MEBIBYTE + b"1]",
    "strings": b'["' + b'","' * MEBIBYTE + b'"]',
    "members": b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b"}",
    "escapes": b'{"made_up": "' + b"\\n" * (2 * MEBIBYTE - 10) + b'"}',
    "quotes": b'{"made_up": "' + b'\\"' * (2 * MEBIBYTE - 10) + b'"}',
    "one number": b"1" * 4 * MEBIBYTE,
    "one name": b'{"' + b"x" * (4 * MEBIBYTE - 10) + b'":1}',
    "nodes within the bound": b"{" + b",".join(b'"%d":1' % i for i in range(MAX_NODES - 2)) + b"}",
}

CHEAP = ("escapes", "quotes", "one number", "one name", "nodes within the bound")
"""They are long, and hold few objects."""


@pytest.mark.parametrize("name", HOSTILE)
async def test_no_body_holds_the_event_loop(engine, tokenizer, listening, monkeypatch, name):
    """A thread judges it, piece by piece, and the event loop parses none that is costly to parse."""
    loop, threads, parsed, pieces = threading.get_ident(), [], [], []
    parse, accumulate = json.loads, np.cumsum

    def check(body, max_items):
        threads.append(threading.get_ident())
        check_json(body, max_items)

    def watched(text, *arguments, **options):
        if threading.get_ident() == loop:
            parsed.append(text)
        return parse(text, *arguments, **options)

    def cumsum(piece, **options):
        pieces.append(len(piece))
        return accumulate(piece, **options)

    monkeypatch.setattr(limits, "check_json", check)
    monkeypatch.setattr(json, "loads", watched)
    monkeypatch.setattr(np, "cumsum", cumsum)
    async with listening(engine, tokenizer) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as client:
        response = await client.post("/v1/completions", content=HOSTILE[name], headers=JSON)
    assert 400 <= response.status_code < 500
    assert threads
    assert loop not in threads
    assert max(pieces) <= CHUNK
    assert bool(parsed) == (name in CHEAP)


async def test_long_bodies_are_handed_on_one_by_one(monkeypatch):
    """The next is not even checked before the event loop is done with the one before."""
    at_work, most = 0, 0

    def check(body, max_items):
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.02)
        at_work -= 1

    async def app(scope, receive, send):
        await receive()

    async def receive():
        return {"type": "http.request", "body": b" " * (limits.CHECKED_AT_ONCE + 1)}

    monkeypatch.setattr(limits, "check_json", check)
    limit = limits.BodyLimit(app, max_bytes=MEBIBYTE, max_items=100, seconds=60)
    await asyncio.gather(*(limit({"type": "http", "headers": []}, receive, None) for _ in range(4)))
    assert most == 1
