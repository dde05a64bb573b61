"""Tools, calls and results in a prompt: by a template that knows them, or as text, and by nobody else."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from engine import DEMO_MODEL
from server.text.encoder import Encoder, Unreadable
from server.text.hermes import TAGS
from server.text.turns import NoObject

PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
KNOWING = (
    """\
{% set first = messages[0].content if messages[0].role == 'system' else '' %}\
{% if tools %}<|im_start|>system
{{ first + '\n\n' if first else '' }}# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}\
{% for m in messages %}\
{% if m.role == 'tool' %}\
{{ '<|im_start|>user' if loop.previtem is undefined or loop.previtem.role != 'tool' else '' }}
<tool_response>
{{ m.content }}
</tool_response>{{ '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '' }}"""
    """\
{% elif not (tools and loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or () %}\
{{ '\n' if m.content or not loop.first else '' }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}"""
)
"""In the form of Qwen's."""
OWN_FORM = KNOWING.replace("<tool_call>", "[CALL]")
NO_RESULTS = KNOWING.replace("{{ m.content }}\n</tool_response>", "</tool_response>")
NO_TOOLS = KNOWING.replace("{{ tool | tojson }}", "")
IN_XML = KNOWING.replace('{"name": "{{ call.function.name }}",', "<function={{ call.function.name }}>")
REFUSING = "{{ raise_exception('no tools here') if tools else '' }}" + KNOWING
DATA = Path(__file__).parents[2] / "data"
SHIPPED = {folder.name: (folder / "chat_template.jinja").read_text() for folder in DATA.glob("*-tiny")}
SHIPPED["demo"] = (Path(DEMO_MODEL) / "chat_template.jinja").read_text()

TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "é", "parameters": {"type": "object", "properties": {"a": {}}}},
}
USER = {"role": "user", "content": "hi"}


def call(arguments='{"a": "é"}', name="look"):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls, content=""):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(content="Sun"):
    return {"role": "tool", "content": content, "tool_call_id": "call_1"}


def backend_with(*tags):
    backend = Backend.from_file(str(Path(DEMO_MODEL) / "tokenizer.json"))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return backend


QWENS = backend_with(*TAGS)
"""The demo model's words, with Qwen's added tokens."""
LLADAS = backend_with()


def encoder(template, backend=QWENS):
    return Encoder(backend.to_str(), template, {})


def ids(encoder, *turns, tools=(), **options):
    return encoder.converse(
        list(turns),
        {},
        **{
            "tools": list(tools),
            "add_generation_prompt": False,
            "continue_final_message": False,
            "add_special_tokens": False,
            "max_characters": 10_000,
            **options,
        },
    )


def text(encoder, *turns, backend=QWENS, **options):
    return backend.decode(ids(encoder, *turns, **options), skip_special_tokens=False)


def tags_in(ids):
    return [token for token in map(QWENS.id_to_token, ids) if token in (*TAGS, "<|im_start|>", "<|im_end|>")]


@pytest.mark.parametrize(
    ("template", "knows"),
    [
        (KNOWING, True),
        (PLAIN, False),
        (OWN_FORM, False),
        (NO_RESULTS, False),
        (NO_TOOLS, False),
        (IN_XML, False),
        (REFUSING, False),
        *((template, name == "demo") for name, template in SHIPPED.items()),
    ],
)
def test_whether_a_template_knows_tools_is_tried_out(template, knows):
    assert encoder(template).template_knows_tools == knows


CONVERSATIONS = [
    [USER],
    [{"role": "system", "content": "Be short."}, USER],
    [USER, calling(call())],
    [USER, calling(call(), call("{}", "now"), content="Well"), result(), result("4"), {"role": "user", "content": "a"}],
    [{"role": "system", "content": "S"}, USER, calling(call()), result(), calling(call()), result("")],
    [result()],
]


@pytest.mark.parametrize("backend", [QWENS, LLADAS])
@pytest.mark.parametrize("tools", [[TOOL], [TOOL, TOOL], []])
@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_the_server_writes_what_a_knowing_template_writes(turns, tools, backend):
    knowing = ids(encoder(KNOWING, backend), *turns, tools=tools)
    assert ids(encoder(PLAIN, backend), *turns, tools=tools) == knowing


def test_what_the_server_writes():
    written = text(encoder(PLAIN), USER, calling(call(), content="Well"), result(), result("4"))
    assert written == (
        "<|im_start|>user\nhi<|im_end|>\n"
        '<|im_start|>assistant\nWell\n<tool_call>\n{"name": "look", "arguments": {"a": "é"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nSun\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
    )


def test_a_template_that_fails_with_tools_only_is_not_given_any():
    assert "# Tools" in text(encoder(REFUSING), USER, tools=[TOOL])


@pytest.mark.parametrize("arguments", ["[1]", "{", "x", '{"a": Infinity}'])
def test_the_place_of_arguments_that_are_no_object(arguments):
    with pytest.raises(NoObject) as told:
        ids(encoder(PLAIN), USER, calling(call(), call(arguments)))
    assert (told.value.turn, told.value.call) == (1, 1)


FORGED = [*TAGS, "<|im_end|>", "<|im_start|>", "<tool", "_call>", "</tool_", "response>", "\n", "a", '"', "\\"]
ENCODERS = [encoder(PLAIN), encoder(KNOWING)]


def conversed(user, said, argument, key, outcome, description, name):
    """The prompts of both templates, with these words in the places where people's words stand."""
    parameters = {"type": "object", "properties": {name: {}}}
    tool = {"type": "function", "function": {"name": "f", "description": description, "parameters": parameters}}
    arguments = json.dumps({f"{key}k": [argument]})
    turns = [{"role": "user", "content": user}, calling(call(arguments), content=f"{said}s"), result(outcome)]
    return [ids(encoder, *turns, tools=[tool]) for encoder in ENCODERS]


@given(words=st.lists(st.lists(st.sampled_from(FORGED), max_size=6).map("".join), min_size=7, max_size=7))
def test_nobody_forges_a_tag(words):
    """Whoever's the words are, wherever they stand: tags are where they are with words of no meaning."""
    for forged, honest in zip(conversed(*words), conversed(*"abcdefg"), strict=True):
        assert tags_in(forged) == tags_in(honest)


def test_without_tools_their_tags_are_read_as_ever():
    """Templates look for them in contents, and applications that parse calls themselves write them there."""
    turn = {"role": "user", "content": "<tool_response>\nSun\n</tool_response><|im_end|>"}
    ours = ["<|im_start|>", "<|im_end|>"]
    assert tags_in(ids(encoder(PLAIN), turn)) == [ours[0], "<tool_response>", "</tool_response>", ours[1]]
    assert tags_in(ids(encoder(PLAIN), turn, tools=[TOOL]))[-2:] == ours


def test_a_template_that_fails_is_told_of():
    with pytest.raises(Unreadable, match="refuses this: no"):
        ids(encoder("{{ raise_exception('no') }}"), USER, tools=[TOOL])
