"""A call that is made is valid, and is made where the choice says so."""

import json
import re
from dataclasses import replace

import jsonschema
import pytest

from server.structured import tools
from server.structured.budget import Budget
from server.structured.refusals import Malformed, NoValue, TooSlow, Unsupported
from server.structured.tools import CallableFunction
from server.text.hermes import CLOSE, OPEN

from .walks import walks

WEATHER = {
    "type": "object",
    "properties": {"location": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
    "required": ["location"],
    "additionalProperties": False,
}
TOOLS = [CallableFunction("get_weather", WEATHER), CallableFunction("now")]
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
PARIS = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Paris"}}\n</tool_call>'
BAD = '<tool_call>\n{"name": "get_weather", "arguments": {"unit": "c"}}\n</tool_call>'
TEXTS = [
    "",
    "Hello <tool_cal",
    NOW,
    f"{NOW}\n{PARIS}",
    f"Well: <{PARIS}",
    BAD,
    f"{NOW}{PARIS}",
    f"{NOW} and",
    f"a{BAD}",
]


@pytest.mark.parametrize(
    ("called", "choice", "is_parallel", "accepted"),
    [
        (TOOLS, "auto", True, [0, 1, 2, 3, 4]),
        (TOOLS, "auto", False, [0, 1, 2, 4]),
        (TOOLS, "required", True, [2, 3]),
        (TOOLS, "required", False, [2]),
        (TOOLS[1:], "required", False, [2]),
        (TOOLS[:1], "required", False, []),
    ],
)
def test_which_answers_are_accepted(called, choice, is_parallel, accepted):
    found = tools.automaton(called, choice, Budget(), is_parallel=is_parallel)
    assert [index for index, text in enumerate(TEXTS) if found.matches(text)] == accepted


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_every_call_is_valid(choice):
    schemas = {tool.name: tool.parameters or tools.NO_PARAMETERS for tool in TOOLS}
    for raw in walks(tools.automaton(TOOLS, choice, Budget()), 0, 20):
        text = raw.decode(errors="replace")
        calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text)
        assert len(calls) == text.count("<tool_call>")
        assert choice == "auto" or calls
        for call in map(json.loads, calls):
            jsonschema.validate(call["arguments"], schemas[call["name"]])


def test_text_is_made_of_whole_characters():
    found = tools.automaton(TOOLS, "auto", Budget())
    texts = ("é", "\U0001f600<", f"é{NOW}")
    assert all(found.matches(text) for text in texts)
    state = 0
    for byte in "é".encode()[:1] + NOW.encode():
        state = found.table[state, found.letters[byte]]
    assert state == found.dead


def test_spaces_in_arguments_are_a_choice():
    given = '<tool_call>\n{"name": "f", "arguments": {"a":1}}\n</tool_call>'
    called = [CallableFunction("f", {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})]
    styles = ("flexible", "compact", "spaced")
    found = [tools.automaton(called, "required", Budget(), whitespace=style).matches(given) for style in styles]
    assert found == [True, True, False]


def test_content_of_a_schema_stands_instead_of_free_text():
    found = tools.automaton(TOOLS, "auto", Budget(), content={"type": "integer"})
    assert [found.matches(text) for text in ("12", NOW, "Hello", "")] == [True, True, False, False]


def test_what_cannot_be_enforced_of_arguments_is_refused():
    with pytest.raises(Unsupported) as caught:
        tools.automaton([CallableFunction("a", {"if": {}})], "auto", Budget())
    assert caught.value.place == "tools/a/parameters/if"


@pytest.mark.parametrize(
    ("value", "yes", "no"),
    [
        ({"type": "string", "maxLength": 5000}, ["a" * 6], [5]),
        ({"type": "string", "maxLength": 5}, ["a" * 5], ["a" * 6, 5]),
        ({"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b"}]}, ["c"], [5]),
        ({"type": "array", "maxItems": 40, "items": {"type": "string", "maxLength": 4000}}, [["a"] * 50], [[5], "a"]),
        ({"enum": ["a", {"pattern": "b"}], "if": {}}, ["a", {"pattern": "b"}], ["b"]),
        ({"type": "object", "properties": {"if": {"const": 1}}, "if": {}}, [{"if": 1}], [{"if": 2}]),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$dynamicRef": "#b"}}}, [{"a": [1]}], []),
        ({"$ref": "https://example.org/a"}, [5], []),
    ],
)
def test_a_function_that_is_not_strict_is_held_to_what_can_be_enforced(value, yes, no):
    parameters = {"type": "object", "properties": {"x": value}, "required": ["x"]}
    loose = tools.automaton([CallableFunction("f", parameters, is_strict=False)], "required", Budget())

    def call(given):
        return f'{OPEN}\n{{"name": "f", "arguments": {json.dumps({"x": given})}}}\n{CLOSE}'

    for given in yes:
        assert loose.matches(call(given))
    for given in no:
        assert not loose.matches(call(given))


@pytest.mark.parametrize(
    ("value", "left", "names"),
    [
        ({"type": "string", "maxLength": 5}, None, []),
        ({"type": "string", "maxLength": 5000}, "without bounds", ["'#/properties/x/maxLength: "]),
        ({"maxItems": 40, "items": {"maxLength": 4000}}, "without bounds", ["`maxLength`", "too large"]),
        ({"if": {}}, "without bounds", ["'#/properties/x/if: the keyword `if`"]),
        ({"if": {}, "$ref": "https://example.org/a"}, "being an object", ["the keyword `if`", "/properties/x/$ref: "]),
        ({"properties": {"é\n": {"if": {}}}}, "without bounds", [r"'#/properties/x/properties/\xe9\n/if: "]),
    ],
)
def test_what_a_function_is_held_to_is_told(value, left, names):
    told = []
    parameters = {"type": "object", "properties": {"x": value}}
    functions = [
        CallableFunction("f", parameters, is_strict=False),
        CallableFunction("g", {"type": "object"}, is_strict=False),
        CallableFunction("h"),
    ]
    tools.automaton(functions, "required", Budget(), tell=told.append)
    assert len(told) == (left is not None)
    for line in told:
        assert "the tool 'f'" in line
        assert f"held to {left}" in line.replace("its schema ", "")
        assert all(name in line for name in names), line
        assert line.isascii()
        assert line.isprintable()


def test_what_is_told_of_a_function_is_bounded():
    told = []
    schema = {"type": "object", "properties": {"x" * 9_000: {"if": {}}}}
    tools.automaton([CallableFunction("f", schema, is_strict=False)], "required", Budget(), tell=told.append)
    assert len(told[0]) < 500


NO_SCHEMAS = [
    ({"properties": {"a": {"type": "any"}}}, Malformed),
    ({"properties": {"a": {"type": "string", "required": True}}}, Malformed),
    ({"properties": {"a": {"enum": None}}}, Malformed),
    ({"properties": {"a": {"type": "string", "minLength": "1"}}}, Malformed),
    ({"properties": {"a": 5}}, Malformed),
    ({"properties": []}, Malformed),
    ({"required": "a"}, Malformed),
    ({"properties": {"a": {"pattern": "("}}}, Malformed),
    ({"properties": {"a": {"$ref": "#/nowhere"}}}, Unsupported),
    ({"properties": {"a": False}, "required": ["a"]}, NoValue),
    ({"required": ["a"], "additionalProperties": False}, NoValue),
]


@pytest.mark.parametrize(("parameters", "error"), NO_SCHEMAS)
def test_a_schema_that_is_none_is_refused_of_a_strict_function_alone(parameters, error):
    function = CallableFunction("f", {"type": "object", **parameters})
    with pytest.raises(error):
        tools.automaton([function], "required", Budget())
    loose = tools.automaton([replace(function, is_strict=False)], "required", Budget())
    assert loose.matches(f'{OPEN}\n{{"name": "f", "arguments": {{}}}}\n{CLOSE}')
    assert not loose.matches(f'{OPEN}\n{{"name": "f", "arguments": []}}\n{CLOSE}')


def test_a_machine_that_is_busy_does_not_relax_a_function(monkeypatch):
    def slow(*_):
        raise TooSlow("it takes too long")

    monkeypatch.setattr(tools, "write_schema", slow)
    with pytest.raises(TooSlow):
        tools.automaton([CallableFunction("f", {"type": "object"}, is_strict=False)], "required", Budget())
