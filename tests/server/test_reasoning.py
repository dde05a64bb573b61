"""Chats with a model whose template has a place for reasoning: `reasoning_content`, whole and in streams."""

import shutil
from contextlib import closing

import httpx
import pytest

from engine import FinishReason
from server.http.app import create_app
from server.settings.tree import build
from server.text.tokenizer import Tokenizer

from .conftest import Api

TEMPLATE = """\
{% for tool in tools or () %}{{ tool.function.name }} {% endfor %}\
{% for m in messages %}<{{ m.role[0] }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
{{ m.content }}{% for call in m.tool_calls %}\
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>\
{% endfor %}{% endfor %}{% if add_generation_prompt %}<a>{% if think %}<think>\n{% endif %}{% endif %}"""
TOOL = {"type": "function", "function": {"name": "look"}}


@pytest.fixture(scope="module")
def thinking(tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with closing(Tokenizer.load(folder)) as tokenizer:
        yield tokenizer


@pytest.fixture
async def thinker(engine, thinking):
    """An Api whose model says "Two and two." to itself, and then "Four."."""
    engine.script = lambda _: ["<think>\nTwo ", "and two.\n</thi", "nk>\n\nFo", "ur."]
    app = create_app(engine, thinking, build({"served_model_name": ["fake"]}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield Api(client)


def message(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


async def test_a_whole_answer(thinker):
    told = message(await thinker.chat())
    assert (told["reasoning_content"], told["content"]) == ("Two and two.", "Four.")


async def test_a_stream(thinker):
    chunks = thinker.events_of((await thinker.chat(stream=True)).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Two and two."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Four."
    assert [("reasoning_content" in delta) for delta in deltas] == [False, True, True, False, False]


async def test_a_template_that_opens_it(thinker, engine):
    engine.script = lambda _: ["Two.</think>", "Four."]
    told = message(await thinker.chat(chat_template_kwargs={"think": True}))
    assert (told["reasoning_content"], told["content"]) == ("Two.", "Four.")


@pytest.mark.parametrize(
    ("begun", "reasoning", "content"),
    [
        ("<think>", "Two.", "Four."),
        ("<think>One and", "Two.", "Four."),
        ("\n<think>\nOne and\n", "Two.", "Four."),
        ("<think>One.</think>So", None, "Two.</think>Four."),
        ("One and", None, "Two.</think>Four."),
        ("Write <think> and", None, "Two.</think>Four."),
    ],
)
async def test_an_answer_that_goes_on(thinker, engine, begun, reasoning, content):
    """What is gone on with is a part of the answer: what it opens is open."""
    engine.script = lambda _: ["Two.</think>", "Four."]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": begun}]
    told = message(await thinker.chat(messages=messages, continue_final_message=True))
    assert (told.get("reasoning_content"), told["content"]) == (reasoning, content)
    body = {"max_tokens": 50, "messages": messages}
    told = (await thinker.client.post("/v1/messages", json=body)).json()["content"]
    assert [block.get("thinking", block.get("text")) for block in told] == [*filter(None, [reasoning]), content]


async def test_log_probabilities_are_of_the_content(thinker):
    body = {"input": "a", "include": ["message.output_text.logprobs"]}
    reasoning, message = (await thinker.client.post("/v1/responses", json=body)).json()["output"]
    assert "logprobs" not in reasoning["content"][0]
    assert "".join(entry["token"] for entry in message["content"][0]["logprobs"]) == "Four."
    [choice] = (await thinker.chat(logprobs=True)).json()["choices"]
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == "Four."
    chunks = thinker.events_of((await thinker.chat(stream=True, logprobs=True)).text)
    told = [chunk["choices"][0] for chunk in chunks]
    for choice in told[1:]:
        spelled = "".join(entry["token"] for entry in choice["logprobs"]["content"])
        assert spelled == (choice["delta"].get("content") or "")


async def test_reasoning_may_be_left_out(thinker):
    told = message(await thinker.chat(include_reasoning=False))
    assert told["content"] == "Four."
    assert "reasoning_content" not in told


async def test_tools_are_read_behind_it(thinker, engine):
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    engine.script = lambda _: ["<think>I look.</think>", call, FinishReason.STOP]
    answer = await thinker.chat(tools=[TOOL])
    told = message(answer)
    assert told["reasoning_content"] == "I look."
    assert told["content"] is None
    assert told["tool_calls"][0]["function"]["name"] == "look"
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "form", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"choice": ["a"]}}]
)
async def test_what_an_answer_must_be_is_all_content(thinker, engine, form):
    engine.script = lambda _: ["<think>"]
    assert message(await thinker.chat(**form))["content"] == "<think>"


async def test_each_choice_has_its_own(thinker):
    choices = (await thinker.chat(n=2)).json()["choices"]
    assert [choice["message"]["reasoning_content"] for choice in choices] == ["Two and two."] * 2


async def test_completions_and_other_models_have_none(thinker, api, engine):
    text = (await thinker.complete()).json()["choices"][0]["text"]
    assert text == "<think>\nTwo and two.\n</think>\n\nFour."
    assert message(await api.chat())["content"] == text
