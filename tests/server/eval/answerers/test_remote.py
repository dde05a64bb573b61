"""What a server is asked, and what is made of its reply: over a transport that records and answers."""

import json

import httpx
import pytest

from engine import ConfigError
from server.eval import questions
from server.eval.answerers.answers import Options
from server.eval.answerers.remote import RemoteModel
from server.eval.policy import PolicyPair

CALL = {"function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.fixture
async def server():
    """`server(choice)`: a model that answers so, and the list of (path, body) that it was asked."""
    clients = []

    def answering(choice, *, plain=False):
        asked = []

        def answer(request):
            asked.append((request.url.path, json.loads(request.content)))
            return httpx.Response(200, json={"choices": [choice], "usage": {"completion_tokens": 3}})

        http = httpx.AsyncClient(base_url="http://model.example/v1/", transport=httpx.MockTransport(answer))
        clients.append(http)
        return RemoteModel(http, "mine", Options(max_tokens=64, plain=plain)), asked

    yield answering
    for http in clients:
        await http.aclose()


def question(task):
    return questions.from_tasks([task], seed=1, limit=1, few_shot=0)[0]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "3"}, "3"),
        ({"content": None}, ""),
        ({"content": "3", "tool_calls": []}, "3"),
        ({"content": None, "tool_calls": [CALL]}, HERMES),
        ({"tool_calls": [CALL]}, HERMES),
        ({"content": "Sure.", "tool_calls": [CALL]}, f"Sure.{HERMES}"),
        ({"content": None, "tool_calls": [CALL, CALL]}, f"{HERMES}\n{HERMES}"),
    ],
)
async def test_calls_are_read_as_the_model_writes_them(server, message, text):
    model, _ = server({"message": message})
    answer = await model.ask(question("tool"), PolicyPair())
    assert (answer.text, answer.tokens, answer.forwards, answer.rows) == (text, 3, None, None)


async def test_a_conversation_is_sent_with_its_tools(server):
    model, asked = server({"message": {"content": "3"}})
    tools = question("tool")
    await model.ask(tools, PolicyPair())
    [(path, body)] = asked
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "mine",
        "temperature": 0,
        "max_tokens": 64,
        "messages": list(tools.messages),
        "tools": list(tools.tools),
    }


async def test_a_schema_is_sent_where_an_answer_is_held_to_it(server):
    model, asked = server({"message": {"content": "{}"}})
    form = question("form")
    await model.ask(form, PolicyPair())
    await model.ask(form, PolicyPair(guidance="model"))
    [(_, free), (_, held)] = asked
    assert "response_format" not in free
    assert held["response_format"]["json_schema"]["schema"] == form.schema
    assert held["diffusion"] == {"guidance": "model"}


async def test_the_first_token_is_judged_in_both_forms(server):
    top = [{"token": "Yes", "logprob": 0.0}, {"token": "No", "logprob": -1000.0}]
    model, _ = server({"logprobs": {"content": [{"top_logprobs": top}]}})
    assert await model.judge(question("yesno")) == {"Yes": 1.0, "No": 0.0}
    model, asked = server({"logprobs": {"top_logprobs": [{"Yes": 0.0}]}}, plain=True)
    assert await model.judge(question("yesno")) == {"Yes": 1.0}
    [(path, body)] = asked
    assert path == "/v1/completions"
    assert body["prompt"].endswith("\nAnswer:")


@pytest.mark.parametrize(
    ("choice", "plain"),
    [({"logprobs": {"content": []}}, False), ({"logprobs": {"top_logprobs": []}}, True)],
)
async def test_an_answer_without_a_token_judges_nothing(server, choice, plain):
    model, _ = server(choice, plain=plain)
    assert await model.judge(question("yesno")) == {}


@pytest.mark.parametrize("choice", [{}, {"message": {"content": "3"}, "logprobs": None}, {"logprobs": {"content": 5}}])
async def test_a_reply_unlike_openais_is_named_where_a_token_is_judged(server, choice):
    model, _ = server(choice)
    with pytest.raises(ConfigError, match="does not answer as OpenAI's API does"):
        await model.judge(question("yesno"))


@pytest.mark.parametrize("message", [{}, {"content": None, "tool_calls": [{"function": {"name": "add"}}]}])
async def test_a_reply_unlike_openais_is_named(server, message):
    model, _ = server({"message": message})
    with pytest.raises(ConfigError, match="does not answer as OpenAI's API does"):
        await model.ask(question("tool"), PolicyPair())
