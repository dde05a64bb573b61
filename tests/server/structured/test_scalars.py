"""Numbers of many digits, and strings of formats and patterns."""

import json

import pytest

from server.structured.budget import Budget
from server.structured.refusals import Refused
from server.structured.schema import schema

from .calls import clock_of_calls
from .walks import accepts


@pytest.mark.parametrize("largest", [2**53 - 1, 2**63 - 1, 10**12 - 1, 10**30 - 1, 10**300 - 1])
def test_bounds_of_many_digits_are_exact_and_soon_compiled(largest):
    with clock_of_calls() as clock:
        found = schema.automaton({"type": "integer", "minimum": -largest, "maximum": largest}, Budget())
    assert clock.seconds() < 3
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


ZODS_EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"  # zod 4's
)


@pytest.mark.parametrize(
    ("constraint", "valid", "invalid"),
    [
        ({"format": "email", "pattern": ZODS_EMAIL}, ["a.b@example.org"], [".a@b.org", "a..b@c.org", "a.@b.org"]),
        ({"pattern": ZODS_EMAIL}, ["a.b@example.org", "'a@b.org"], [".a@b.org", "a..b@c.org", 'a"@b.org']),
        ({"format": "hostname", "pattern": r"^(?=.{1,12}\.?$)[a-z.]+$"}, ["a.example.de"], ["a.example.org"]),
        ({"format": "duration", "pattern": r"^P(?:\d+W|(?!.*W)(?=\d|T\d).*)$"}, ["P1W", "P2D", "PT1H"], ["P", "PT"]),
        ({"pattern": r"^(?!.*\n)[\s\S]{2}$"}, ["\t\\", '""'], ["a\n", "\n\n"]),
    ],
)
def test_look_aheads_of_patterns(constraint, valid, invalid):
    found = schema.automaton({"type": "string", **constraint}, Budget())
    assert [text for text in valid if not found.matches(json.dumps(text))] == []
    assert [text for text in invalid if found.matches(json.dumps(text))] == []
    listed = schema.automaton({"type": "string", **constraint, "enum": [*invalid, valid[0]]}, Budget())
    assert listed.matches(json.dumps(valid[0], ensure_ascii=False))
    assert not any(listed.matches(json.dumps(text)) for text in invalid)
