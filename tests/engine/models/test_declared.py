"""Declarations of JSON: what each type takes, and what is said of what it does not."""

import re
from dataclasses import field
from typing import Annotated, Literal

import pytest

from engine import LoadError
from engine.core.ranges import Ge, Gt, Le
from engine.models.declared import FILLED, LISTED, Contradiction, Declaration


class Inner(Declaration):
    id: Annotated[int, Ge(0)]


class Outer(Declaration):
    count: Annotated[int, Ge(1), Le(9)] = 1
    share: Annotated[float, Gt(0)] | None = None
    is_on: bool = False
    name: Annotated[str, re.compile(r"[a-z]+")] = "a"
    kind: Literal["one", "two", "three"] = "one"
    absent: None = None
    ids: Annotated[list[int], LISTED, FILLED] = field(default_factory=lambda: [0])
    inner: list[Inner] = field(default_factory=list)
    by_id: dict[Annotated[int, Ge(5)], Inner] = field(default_factory=dict)

    def __post_init__(self):
        if self.count == 7:
            raise Contradiction("seven is unlucky")


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("count", 9, 9),
        ("share", 3, 3.0),
        ("share", None, None),
        ("is_on", True, True),
        ("name", "abc", "abc"),
        ("kind", "three", "three"),
        ("absent", None, None),
        ("ids", 4, [4]),
        ("ids", [4, 5], [4, 5]),
        ("inner", [{"id": 3, "more": []}], [Inner(id=3)]),
        ("by_id", {"5": {"id": 3}}, {5: Inner(id=3)}),
    ],
)
def test_what_is_taken(key, value, read):
    value = getattr(Outer.read({key: value, "undeclared": 5}), key)
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("count", 0, "count is 0; it should be greater than or equal to 1"),
        ("count", 10, "count is 10; it should be less than or equal to 9"),
        ("count", True, "count is True; it should be a valid integer"),
        ("count", 1.0, "count is 1.0; it should be a valid integer"),
        ("count", None, "count is None; it should be a valid integer"),
        ("count", 7, "seven is unlucky"),
        ("share", 0, "share is 0; it should be greater than 0"),
        ("share", "1", "share is '1'; it should be a valid number"),
        ("share", float("nan"), "share is nan; it should be a finite number"),
        ("share", float("inf"), "share is inf; it should be a finite number"),
        ("share", 10**400, "it should be a valid number"),
        ("is_on", 1, "is_on is 1; it should be a valid boolean"),
        ("name", "a1", "name is 'a1'; String should match pattern '[a-z]+'"),
        ("name", "a\n", r"name is 'a\n'; String should match pattern '[a-z]+'"),
        ("kind", "four", "kind is 'four'; it should be 'one', 'two' or 'three'"),
        ("absent", 0, "absent is 0; it should be None"),
        ("ids", [], "ids is []; List should have at least 1 item after validation, not 0"),
        ("ids", None, "ids.0 is None; it should be a valid integer"),
        ("ids", [1, "2"], "ids.1 is '2'; it should be a valid integer"),
        ("inner", {}, "inner is {}; it should be a valid list"),
        ("inner", [{"id": 1}, {"id": -1}], "inner.1.id is -1; it should be greater than or equal to 0"),
        ("inner", [5], "inner.0 is 5; it should be a valid dictionary"),
        ("by_id", {"x": {"id": 1}}, "by_id.x.[key] is 'x'; it should be a valid integer"),
        ("by_id", {"4": {"id": 1}}, "by_id.4.[key] is 4; it should be greater than or equal to 5"),
    ],
)
def test_what_is_refused(key, value, said):
    with pytest.raises(LoadError) as refused:
        Outer.read({key: value}, "a.json")
    assert str(refused.value).startswith("a.json: ")
    assert str(refused.value).endswith(said)


def test_what_is_missing():
    with pytest.raises(LoadError, match=r"^a\.json lacks 'id'$"):
        Inner.read({}, "a.json")
    with pytest.raises(LoadError, match=r"^a\.json lacks 'inner\.1\.id'$"):
        Outer.read({"inner": [{"id": 1}, {}]}, "a.json")
