"""Calls are read out of a text as it arrives, whatever the pieces."""

import json
from itertools import cycle, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.replies.tool_calls import MAX_NAME_LENGTH, CallDelta, Content, ToolCallReader
from server.structured import tools
from server.structured.budget import Budget
from server.structured.tools import CallableFunction
from server.text.hermes import CLOSE, OPEN
from tests.server.structured.walks import walks


def call(arguments, name="f"):
    return f'{OPEN}\n{{"name": "{name}", "arguments": {arguments}}}\n{CLOSE}'


def fold(parts):
    """(content, [(name, arguments)])."""
    content, calls = "", []
    for part in parts:
        if isinstance(part, Content):
            content += part.text
        elif part.name is not None:
            assert part.index == len(calls)
            assert not part.arguments
            calls.append((part.name, ""))
        else:
            assert part.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return content, calls


def read(*pieces):
    """What is folded from a text in pieces, and whether it ends amid a call."""
    reader, parts = ToolCallReader(), []
    for number, piece in enumerate(pieces):
        more = reader.push(piece, last=number == len(pieces) - 1)
        assert all(part.text if isinstance(part, Content) else part != CallDelta(index=0) for part in more)
        parts += more
    text = "".join(pieces)
    assert all(text[part.start : part.end] == part.text for part in parts if isinstance(part, Content))
    content, calls = fold(parts)
    assert reader.num_calls == len(calls)
    return content, calls, reader.is_amid_call


ONE = [("f", '{"a": 1}')]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        ("Hello.\n", "Hello.\n", []),
        ("a < b, <tool_cal", "a < b, <tool_cal", []),
        (call('{"a": 1}'), "", ONE),
        ("Well:\n" + call('{"a": 1}'), "Well:", ONE),
        (call('{"a": 1}') + "\n" + call("{}", "g"), "", [*ONE, ("g", "{}")]),
        (call('{"a": 1}') + "\n", "", ONE),
        (call('{"a": 1}') + "\nDone. ", "\nDone.", ONE),
        ("<" + call('{"a": 1}'), "<", ONE),
        (call('{"a": "}\\"</tool_call>{"}'), "", [("f", '{"a": "}\\"</tool_call>{"}')]),
        (call('{"a": [{"b": {}}, "\\\\"]}'), "", [("f", '{"a": [{"b": {}}, "\\\\"]}')]),
        (f'{OPEN}{{"name":"f","arguments":{{"a": 1}}}}{CLOSE}', "", ONE),
        (f'{OPEN}\n {{ "name" : "f" , "arguments" : {{"a": 1}} }} \n{CLOSE}', "", ONE),
        (call("{}", '\\u00e9"'.replace('"', '\\"')), "", [('é"', "{}")]),
    ],
)
def test_calls_and_content(text, content, calls):
    assert read(text) == (content, calls, False)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("a " + OPEN, "a", []),
        (f'{OPEN}\n{{"name": "f', "", []),
        (f'{OPEN}\n{{"name": "f", "arguments": ', "", []),
        (f'{OPEN}\n{{"name": "f", "arguments": {{', "", [("f", "{")]),
        (f'{OPEN}\n{{"name": "f", "arguments": {{"a": "b{CLOSE}', "", [("f", '{"a": "b' + CLOSE)]),
        (call('{"a": 1}') + f'\n{OPEN}\n{{"na', "", ONE),
    ],
)
def test_an_answer_that_ends_amid_a_call(text, content, calls):
    assert read(text) == (content, calls, True)


@pytest.mark.parametrize("end", ["", "}", "}\n", "}\n</tool_ca"])
def test_a_call_is_complete_with_its_arguments(end):
    assert read(f'{OPEN}\n{{"name": "f", "arguments": {{"a": 1}}{end}') == ("", ONE, False)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"{OPEN}nonsense{CLOSE}", f"{OPEN}nonsense{CLOSE}", []),
        (f"a \n{OPEN} b", f"a \n{OPEN} b", []),
        (f'{OPEN}\n{{"name": 5, "arguments": {{}}}}', f'{OPEN}\n{{"name": 5, "arguments": {{}}}}', []),
        (call("{}", "\\x"), call("{}", "\\x"), []),
        (call("{}", "\\ud800"), call("{}", "\\ud800"), []),
        (call("{}", "n" * MAX_NAME_LENGTH), call("{}", "n" * MAX_NAME_LENGTH), []),
        (OPEN + call('{"a": 1}'), OPEN, ONE),
        (call('{"a": 1}')[: -len(CLOSE)] + call('{"a": 1}'), "", ONE * 2),
        (f'{OPEN}{{"name": "f", "arguments": {{"a": 1}}, "id": 3}}{CLOSE}', "", ONE),
        (f'{OPEN}{{"name": "f", "arguments": {{"a": 1}}\n{CLOSE}a', "a", ONE),
        (f'{OPEN}{{"name": "f", "arguments": {{"a": 1\n{CLOSE}a', "a", [("f", '{"a": 1\n')]),
        (call("12 "), "", [("f", "12")]),
        (call('"a"'), "", [("f", '"a"')]),
        (call("[1]"), "", [("f", "[1]")]),
        (call(""), "", [("f", "")]),
    ],
)
def test_texts_that_no_constraint_has_made(text, content, calls):
    assert read(text) == (content, calls, False)


PIECES = [
    OPEN,
    CLOSE,
    OPEN[:4],
    OPEN[4:],
    *(
        '{"name": "f", "arguments": ',
        '{"name": "',
        '"',
        "\\",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "<",
        " ",
        "\n",
        "a",
        "é\u00a0",
    ),
    call('{"a": {"b": "c}"}}'),
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.data())
def test_any_cut_of_any_text_gives_the_same(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    whole = read(text)
    assert read(*(text[start:stop] for start, stop in pairwise(cuts)), "") == whole
    assert read(*text, "") == whole


WEATHER = {
    "type": "object",
    "properties": {"place": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["place"],
    "additionalProperties": False,
}


@pytest.mark.slow
def test_what_a_constraint_lets_through_is_read_whole():
    """Of every answer that the automaton accepts, its calls are those that were written, whatever stands before."""
    called = [CallableFunction("get_weather", WEATHER), CallableFunction("now")]
    any_answer = tools.automaton(called, "auto", Budget())
    num_calls = 0
    answers = walks(tools.automaton(called, "required", Budget()), 0, 45)
    for raw, content in zip(answers, cycle(["", "Well: <", "{}\n<tool_cal"]), strict=False):
        text = content + raw.decode(errors="replace")
        assert any_answer.matches(text)
        found, calls, is_amid = read(*text, "")
        assert (found, is_amid) == (content, False)
        written = (f'{OPEN}\n{{"name": {json.dumps(name)}, "arguments": {given}}}\n{CLOSE}' for name, given in calls)
        assert text == content + "\n".join(written)
        assert all(isinstance(json.loads(given), dict) for _, given in calls)
        num_calls += len(calls)
    assert num_calls > 45


def test_arguments_come_as_they_grow():
    """The name first and alone, nothing of a call before it is known that there is one, no brace too many."""
    reader = ToolCallReader()
    assert reader.push(f"Well\n{OPEN}", last=False) == [Content("Well", 0)]
    assert reader.push('\n{"name": "f", "arguments": ', last=False) == []
    assert reader.push('{"a": "x', last=False) == [
        CallDelta(index=0, name="f"),
        CallDelta(index=0, arguments='{"a": "x'),
    ]
    assert reader.push('y"}}\n', last=False) == [CallDelta(index=0, arguments='y"}')]
    assert reader.push(f"{CLOSE}", last=True) == []
