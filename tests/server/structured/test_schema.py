"""Corners of schemas: numbers of many digits, values that look alike, counts, and what is refused for them."""

import json
from time import thread_time

import pytest

from server.structured.budget import Budget
from server.structured.refusals import Refused, Unsupported
from server.structured.schema import schema


def accepts(constraint, value):
    text = value if isinstance(value, str) else json.dumps(value)
    return schema.automaton(constraint, Budget()).matches(text)


@pytest.mark.parametrize("largest", [2**53 - 1, 2**63 - 1, 10**12 - 1, 10**30 - 1, 10**300 - 1])
def test_bounds_of_many_digits_are_exact_and_soon_compiled(largest):
    begun = thread_time()
    found = schema.automaton({"type": "integer", "minimum": -largest, "maximum": largest}, Budget())
    assert thread_time() - begun < Budget().seconds
    for value in (0, largest, largest - 1, -largest, largest // 7):
        assert found.matches(str(value))
    assert not found.matches(str(largest + 1))
    assert not found.matches(str(-largest - 1))


def test_decimals_keep_all_digits_of_their_bounds():
    least = {"type": "number", "minimum": -(10**30 - 1)}
    assert accepts(least, str(-(10**30 - 1)))
    assert not accepts(least, str(-(10**30)))


@pytest.mark.parametrize("bound", [10**350, -(10**350)])
def test_a_number_beyond_floating_point_is_a_number(bound):
    assert accepts({"type": "integer", "minimum": bound}, str(bound))
    assert not accepts({"type": "integer", "minimum": bound}, str(bound - 1))


def test_numbers_far_apart_have_a_remainder():
    with pytest.raises(Refused):
        schema.automaton({"enum": [1e30], "multipleOf": 7}, Budget())
    assert accepts({"enum": [7, 8], "multipleOf": 7}, 7)


@pytest.mark.parametrize(
    ("kind", "valid", "invalid"),
    [
        ("email", ["a.b@example.org", f"{'a' * 19}@x.de"], [f"{'a' * 65}@x.de", f"{'.'.join(['a' * 22] * 3)}@x.de"]),
        ("hostname", ["a.example.org", f"{'a' * 63}.org"], [f"{'a' * 64}.org", "-a.org", ".".join(["a" * 63] * 4)]),
        ("uri", ["https://a.b:80/c?d=%20"], ["//a", "https://-", "http://a b"]),
        ("uuid", ["01234567-89ab-cdef-0123-456789ABCDEF"], ["0" * 36]),
    ],
)
def test_formats_are_no_longer_than_their_standards_allow(kind, valid, invalid):
    found = schema.automaton({"type": "string", "format": kind}, Budget())
    assert [text for text in valid if not found.matches(json.dumps(text))] == []
    assert [text for text in invalid if found.matches(json.dumps(text))] == []


def test_one_is_not_true_within_parts_of_a_schema():
    parts = [{"properties": {"x": {"const": value}}, "required": ["x"]} for value in (1, True)]
    with pytest.raises(Refused):
        schema.automaton({"type": "object", "allOf": parts}, Budget())


def test_names_that_nobody_declares_cannot_be_counted_beside_declared_ones():
    null = {"type": "null"}
    open_object = {"type": "object", "properties": {"a": null}, "additionalProperties": null, "maxProperties": 2}
    with pytest.raises(Unsupported, match="maxProperties"):
        schema.automaton(open_object, Budget())
    closed = open_object | {"additionalProperties": False}
    assert accepts(closed, {"a": None})


def test_properties_that_are_none_are_all_there_are():
    """As functions without arguments are written."""
    assert accepts({"type": "object", "properties": {}}, {})
    assert not accepts({"type": "object", "properties": {}}, {"a": 1})
    assert accepts({"type": "object", "properties": {}, "additionalProperties": True}, {"a": 1})
    assert accepts({"type": "object"}, {"a": 1})
