"""Objects: which properties there may be, how many, and maps whose names are listed."""

import json

import jsonschema
import pytest

from server.structured.budget import Budget
from server.structured.refusals import Malformed, NoValue, Unsupported
from server.structured.schema import schema

from .calls import clock_of_calls
from .walks import accepts, walks


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


def test_names_of_a_map_are_compiled_once():
    pattern = {"type": "object", "patternProperties": {"^([a-z]{1,20}-){1,20}$": True}, "additionalProperties": False}
    names = {"type": "object", "propertyNames": {"maxLength": 60}, "additionalProperties": {"type": "null"}}
    with clock_of_calls() as clock:
        schema.automaton(names | {"maxProperties": 12}, Budget())
    assert clock.seconds() < 0.9
    assert accepts(pattern, {"a-b-": None})


COLOURS = {"type": "string", "enum": ["red", "green", "blue"]}
OF_COLOURS = {"type": "object", "propertyNames": COLOURS, "additionalProperties": {"type": "integer"}}


@pytest.mark.parametrize(
    ("constraint", "valid", "invalid"),
    [
        (
            OF_COLOURS,
            ["{}", '{"red":1}', '{"red":1,"green":2,"blue":3}', '{"blue":3}'],
            ['{"blue":1,"red":2}', '{"a":1}'],
        ),
        (
            OF_COLOURS | {"required": ["green", "red"]},
            ['{"red":1,"green":2}'],
            ["{}", '{"red":1}', '{"green":1,"red":2}'],
        ),
        (OF_COLOURS | {"minProperties": 1}, ['{"blue":1}', '{"red":1,"blue":1}'], ["{}"]),
        (OF_COLOURS | {"propertyNames": {"const": "red"}}, ["{}", '{"red":1}'], ['{"green":1}', '{"red":1,"red":1}']),
        (OF_COLOURS | {"propertyNames": {"enum": [1, "1", "two"], "maxLength": 2}}, ['{"1":1}'], ['{"two":1}']),
        (
            OF_COLOURS | {"propertyNames": {"anyOf": [{"const": "b"}, {"enum": ["a"]}]}},
            ['{"b":1,"a":2}', '{"a":2}'],
            ['{"a":1,"b":2}'],
        ),
        (
            OF_COLOURS | {"propertyNames": {"$ref": "#/$defs/colour"}, "$defs": {"colour": COLOURS}},
            ['{"red":1,"blue":2}'],
            ['{"a":1}'],
        ),
        (OF_COLOURS | {"properties": {"blue": {"type": "null"}}}, ['{"blue":null,"red":1}'], ['{"blue":1}']),
        ({"propertyNames": {"enum": ["a"]}, "patternProperties": {"^.$": {"const": 1}}}, ['{"a":1}'], ['{"a":2}']),
        ({"type": "object", "propertyNames": {"enum": ["a"]}, "properties": {}}, ["{}"], ['{"a":1}']),
        ({"type": "object", "propertyNames": {"enum": []}}, ["{}"], ['{"a":1}']),
    ],
)
def test_a_map_of_listed_names_has_optional_properties(constraint, valid, invalid):
    """In the order in which they are listed."""
    found = schema.automaton(constraint, Budget())
    assert [text for text in valid if not found.matches(text)] == []
    assert [text for text in invalid if found.matches(text)] == []
    for text in walks(found, 0, 20):
        jsonschema.validate(json.loads(text), constraint)


@pytest.mark.parametrize(
    ("constraint", "refusal", "place"),
    [
        (OF_COLOURS | {"additionalProperties": {"if": {}}}, Unsupported, "#/additionalProperties/if"),
        (OF_COLOURS | {"propertyNames": {"enum": 5}}, Malformed, "#/propertyNames/enum"),
        (OF_COLOURS | {"required": ["a"]}, NoValue, "#/required"),
        (OF_COLOURS | {"propertyNames": {"enum": []}, "minProperties": 1}, NoValue, "#"),
        (OF_COLOURS | {"propertyNames": {"$ref": "#/propertyNames"}}, Unsupported, "#/additionalProperties"),
        (OF_COLOURS | {"additionalProperties": {"enum": []}, "minProperties": 1}, NoValue, "#"),
    ],
)
def test_what_is_refused_of_a_map_of_listed_names(constraint, refusal, place):
    with pytest.raises(refusal) as caught:
        schema.automaton(constraint, Budget())
    assert caught.value.place == place
