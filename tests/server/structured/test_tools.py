"""A call that is made is valid, and is made where the choice says so."""

import json
import re

import jsonschema
import pytest

from server.structured import tools
from server.structured.budget import Budget
from server.structured.refusals import Unsupported
from server.structured.tools import CallableFunction

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
    for raw in walks(tools.automaton(TOOLS, choice, Budget()), 0, 40):
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
