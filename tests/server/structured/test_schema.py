"""Corners of schemas: numbers of many digits, values that look alike, counts, and what is refused for them."""

import json
from time import thread_time

import jsonschema
import pytest

from server.structured.budget import Budget
from server.structured.refusals import Malformed, NoValue, Refused, Unsupported
from server.structured.schema import schema

from .walks import walks


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


def test_names_of_a_map_are_compiled_once():
    pattern = {"type": "object", "patternProperties": {"^([a-z]{1,20}-){1,20}$": True}, "additionalProperties": False}
    begun = thread_time()
    names = {"type": "object", "propertyNames": {"maxLength": 200}, "additionalProperties": {"type": "null"}}
    schema.automaton(names | {"maxProperties": 12}, Budget())
    assert thread_time() - begun < 3
    assert accepts(pattern, {"a-b-": None})


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
