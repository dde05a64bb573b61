"""Corners of schemas: what is said in other words and in those of older drafts, references, and what is refused."""

import json

import jsonschema
import pytest

from server.structured.budget import Budget
from server.structured.refusals import Refused, Unsupported
from server.structured.schema import schema

from .walks import accepts, walks


def test_one_is_not_true_within_parts_of_a_schema():
    parts = [{"properties": {"x": {"const": value}}, "required": ["x"]} for value in (1, True)]
    with pytest.raises(Refused):
        schema.automaton({"type": "object", "allOf": parts}, Budget())


LETTERS = ["a", "b", "c"]
NODE = {"type": "object", "properties": {"next": {"$ref": "https://x.org/node#"}}}
SUPPORTED = [
    ({"not": {"required": ["b"]}, "type": "object", "properties": {"a": {}, "b": {}}}, [{}, {"a": 1}], [{"b": 1}]),
    ({"not": {"type": ["string", "number"]}}, [None, [], {}, True], ["", 1, 1.5]),
    ({"not": {"type": "object", "required": ["a"]}}, [1, "x", {}], [{"a": 1}]),
    (
        {
            "properties": {name: {"type": "null"} for name in LETTERS},
            "not": {"anyOf": [{"required": [n]} for n in "ab"]},
        },
        [{}, {"c": None}],
        [{"a": None}, {"b": None, "c": None}],
    ),
    (
        {"properties": {name: {"type": "null"} for name in LETTERS}, "not": {"required": ["a", "b"]}},
        [{}, {"a": None}, {"b": None, "c": None}],
        [{"a": None, "b": None}, {"a": None, "b": None, "c": None}],
    ),
    (
        {"properties": {name: {"type": "null"} for name in LETTERS}, "dependentRequired": {"a": ["b"], "c": ["a"]}},
        [{}, {"b": None}, {"a": None, "b": None}, {"a": None, "b": None, "c": None}],
        [{"a": None}, {"c": None}, {"a": None, "c": None}],
    ),
    (
        {"properties": {name: {"type": "null"} for name in LETTERS}, "dependencies": {"a": ["b"]}},
        [{}, {"a": None, "b": None}],
        [{"a": None}],
    ),
    (
        {"properties": {name: {"type": "null"} for name in LETTERS}, "oneOf": [{"required": [name]} for name in "ab"]},
        [{"a": None}, {"b": None, "c": None}],
        [{}, {"a": None, "b": None}, {"c": None}],
    ),
    (
        {
            "properties": {name: {"type": "null"} for name in LETTERS},
            "oneOf": [{"required": ["a"]}, {"required": ["b", "c"]}],
        },
        [{"a": None}, {"a": None, "b": None}, {"b": None, "c": None}],
        [{}, {"a": None, "b": None, "c": None}, {"b": None}],
    ),
    ({"oneOf": [{"type": ["string", "null"]}, {"type": ["integer", "null"]}]}, ["", 1], [None, 1.5]),
    ({"oneOf": [{"type": ["string", "null"]}, {"type": "integer"}]}, ["", 1, None], [1.5]),
    (
        {"anyOf": [{"type": "integer"}, {"maximum": 5}], "allOf": [{"anyOf": [{"minimum": 3}, {"multipleOf": 2}]}]},
        [3, 4, 2, 100, 3.5],
        [1, 5.5, -1],
    ),
    (
        {"items": {"enum": [*LETTERS, "a"]}, "uniqueItems": True},
        [[], ["a"], ["c", "a"], ["b", "c", "a"]],
        [["a", "a"], ["a", "b", "a"], ["d"]],
    ),
    (
        {"items": {"type": ["boolean", "null"]}, "uniqueItems": True, "minItems": 2},
        [[None, True]],
        [[None], [True] * 2],
    ),
    (
        {"items": {"enum": list("abcdefgh")}, "uniqueItems": True, "minItems": 1, "maxItems": 3},
        [["a"], ["h"], ["a", "c", "h"], ["f", "g"]],
        [[], ["a", "a"], list("abcd")],
    ),
    ({"items": {"type": "string"}, "uniqueItems": True, "maxItems": 1}, [[], ["x"]], [["x", "x"], ["x", "y"]]),
    ({"items": {"type": "string"}, "uniqueItems": False}, [["x", "x"]], [[1]]),
    ({"enum": [[1, 1.0], [1, True], []], "uniqueItems": True}, [[1, True], []], [[1, 1]]),
    ({"$id": "https://x.org/node", **NODE}, [{}, {"next": {"next": {}}}], [{"next": 1}]),
    (
        {"$id": "https://x.org/node", "items": {"$ref": "node#/$defs/a%20b"}, "$defs": {"a b": {"type": "null"}}},
        [[None]],
        [[1]],
    ),
    ({"$ref": "#x", "$defs": {"a": {"$anchor": "x", "type": "null"}}}, [None], [1]),
    (
        {"properties": {"$id": {}, "default": {"$anchor": "x", "type": "null"}, "a": {"$ref": "#x"}}},
        [{"default": None, "a": None}, {"a": None}],
        [{"a": 1}, {"default": 1}],
    ),
    (
        {"properties": {"default": {"$ref": "#"}, "$ref": {"type": "null"}}, "type": "object"},
        [{}, {"default": {"default": {"$ref": None}}}],
        [{"default": 1}, {"$ref": 1}],
    ),
]


@pytest.mark.parametrize(("constraint", "accepted", "refused"), SUPPORTED)
def test_what_is_said_in_other_words(constraint, accepted, refused):
    found = schema.automaton(constraint, Budget())
    assert [value for value in accepted if not found.matches(json.dumps(value))] == []
    assert [value for value in refused if found.matches(json.dumps(value))] == []
    if "https" in json.dumps(constraint) or "dependencies" in constraint:
        return
    validator = jsonschema.Draft202012Validator(constraint)
    assert all(validator.is_valid(value) for value in accepted)
    for text in walks(found, 0, 15):
        validator.validate(json.loads(text))


@pytest.mark.parametrize(
    ("constraint", "accepted", "refused"),
    [
        ({"minimum": 1, "exclusiveMinimum": True, "maximum": 3, "exclusiveMaximum": False}, [2, 3, 1.5], [1, 4]),
        ({"items": [{"type": "null"}, {"type": "integer"}]}, [[], [None], [None, 1]], [[1], [None, None]]),
        ({"items": [{"type": "null"}], "additionalItems": {"type": "integer"}}, [[None, 1, 2]], [[None, None]]),
        ({"items": [{"type": "null"}], "additionalItems": False}, [[None]], [[None, None]]),
        ({"items": {"type": "null"}, "additionalItems": False}, [[None, None]], [[1]]),
        (
            {"items": {"$id": "#/items", "$ref": "#/definitions/a"}, "definitions": {"a": {"type": "null"}}},
            [[None]],
            [[1]],
        ),
    ],
)
def test_words_of_older_drafts(constraint, accepted, refused):
    found = schema.automaton(constraint, Budget())
    assert [value for value in accepted if not found.matches(json.dumps(value))] == []
    assert [value for value in refused if found.matches(json.dumps(value))] == []
    validator = jsonschema.Draft4Validator(constraint)
    for text in walks(found, 0, 15):
        validator.validate(json.loads(text))


@pytest.mark.parametrize(
    ("constraint", "cause"),
    [
        ({"not": {"properties": {"a": {"type": "null"}}}}, "`not`"),
        ({"not": {"type": "integer"}}, "`not`"),
        ({"items": {"type": "string"}, "uniqueItems": True}, "`uniqueItems`"),
        ({"items": {"enum": list("abcdefg")}, "uniqueItems": True, "minItems": 7}, "`uniqueItems`"),
        ({"oneOf": [{"required": ["a"]}, {"required": ["a", "b"]}]}, "`oneOf`"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "`oneOf`"),
        ({"oneOf": [{"anyOf": [{}, {"const": 0}]}, {"type": "null"}]}, "`oneOf`"),
        ({"$id": "https://x.org/a", "$ref": "https://y.org/a#/$defs/b", "$defs": {"b": True}}, r"`\$ref`"),
        ({"$ref": "#x"}, r"`\$ref`"),
    ],
)
def test_what_stays_refused(constraint, cause):
    with pytest.raises(Unsupported, match=cause):
        schema.automaton(constraint, Budget())


def test_an_item_is_written_once():
    """An array without bounds costs no second copy of its items."""
    deep = {"type": "string", "maxLength": 100}
    for _ in range(5):
        deep = {"type": "array", "items": deep}
    schema.automaton(deep, Budget(nodes=3000))


@pytest.mark.parametrize(
    "index", ["-1", "+1", "1_0", " 1", "1 ", "01", "\u0661", "\u00b2", "-", "", "2", "%2D1", "9" * 5000]
)
def test_an_index_of_a_pointer_is_written_in_one_way(index):
    constraint = {"anyOf": [{"type": "null"}, {"type": "boolean"}]}
    with pytest.raises(Unsupported, match="leads nowhere"):
        schema.automaton(
            {"properties": {"a": {"$ref": f"#/$defs/a/anyOf/{index}"}}, "$defs": {"a": constraint}}, Budget()
        )
    assert accepts({"$ref": "#/$defs/a/anyOf/1", "$defs": {"a": constraint}}, True)
