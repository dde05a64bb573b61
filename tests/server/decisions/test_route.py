"""/v1/decisions over HTTP around the fake engine, in which token t is exp(-t/256) as probable as token 0."""

import json
from dataclasses import replace
from math import exp

import jsonschema
import pytest

from engine import FinishReason, Hole
from server.decisions.labels import MOST_LEVELS
from server.http.app import create_app
from server.protocols.decisions.request import turns_of
from server.protocols.decisions.schema import DecisionRequest
from server.settings.tree import build

PREDICATE = {"type": "predicate", "instructions": "Is it so?"}
CHOICE = {
    "type": "choice",
    "name": "which",
    "instructions": [{"type": "input_text", "text": "Which"}, {"type": "input_json", "data": {"of": ["é"]}}],
    "choices": [{"value": "true"}, {"value": True, "description": "so"}, {"value": False}],
}
SCORE = {"type": "score", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high", "description": "x"}]}
QUESTIONS = [PREDICATE, CHOICE, SCORE]


@pytest.fixture
def app(engine, tokenizer):
    return create_app(engine, tokenizer, build({"served_model_name": ["fake"]}))


@pytest.fixture
def decide(api, engine):
    """`await decide(...)`: the response."""
    engine.script = lambda submission: [b"A" * submission.sampling.max_tokens, FinishReason.LENGTH]
    engine.stats = replace(engine.stats, waiting=0)

    async def post(**body):
        return await api.client.post("/v1/decisions", json={"input": "Hi.", "questions": QUESTIONS, **body})

    return post


def shares(*tokens):
    weights = [exp(-ord(token) / 256) for token in tokens]
    return pytest.approx([weight / sum(weights) for weight in weights])


async def test_the_answers(decide, api):
    response = await decide(model="fake")
    assert response.status_code == 200, response.text
    predicate, choice, score = response.json()["answers"]
    [yes, _] = shares("A", "B").expected
    assert predicate == {"type": "predicate", "name": None, "probability": pytest.approx(yes)}
    assert (choice["type"], choice["name"], choice["choice"]) == ("choice", "which", "true")
    assert [one["value"] for one in choice["probabilities"]] == ["true", True, False]
    assert [one["probability"] for one in choice["probabilities"]] == shares("A", "B", "C")
    assert 0 < choice["confidence"] < 0.01
    assert [(one["value"], one["label"]) for one in score["probabilities"]] == [(0, "low"), (1, "high")]
    assert [one["probability"] for one in score["probabilities"]] == shares("1", "2")
    assert score["score"] == pytest.approx(shares("1", "2").expected[1])
    usage = response.json()["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] > 3 * len("<user>Hi.")
    assert usage["output_tokens"] == 0
    assert usage["diffusion"] == {"forwards": 6, "rows_computed": 30}
    figures = (await api.client.get("/metrics")).text
    assert f'unmask_prompt_tokens_total{{model_name="fake"}} {usage["input_tokens"]:.1f}' in figures
    assert 'unmask_generation_tokens_total{model_name="fake"} 0.0' in figures


async def test_the_description_fits(decide, api):
    described = (await api.client.get("/openapi.json")).json()
    route = described["paths"]["/v1/decisions"]["post"]
    refer = {"components": described["components"]}
    answer = route["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate((await decide()).json(), {**answer, **refer})
    body = route["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate({"input": [{"role": "user", "content": "a"}], "questions": QUESTIONS}, {**body, **refer})
    jsonschema.validate({"input": "a", "questions": QUESTIONS}, {**body, **refer})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"input": "a", "questions": [{"type": "other", "instructions": "a"}]}, {**body, **refer})


def test_a_conversation_with_tools():
    called = {"call_id": "1", "name": "look"}
    items = [
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_json", "data": [{}]}]},
        {"role": "assistant", "phase": "final_answer", "content": [{"type": "output_text", "text": "ok"}]},
        {"type": "function_call", **called, "arguments": '{"x": 1}', "status": "completed"},
        {"type": "custom_tool_call", **called, "call_id": "2", "input": "free"},
        {"type": "function_call_output", "call_id": "1", "output": "seen"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "it"}]},
    ]
    turns = turns_of(DecisionRequest.model_validate({"input": items, "questions": [PREDICATE]}))
    functions = [{"name": "look", "arguments": '{"x": 1}'}, {"name": "look", "arguments": '{"input": "free"}'}]
    assert turns == [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "a\n[{}]"},
        {
            "role": "assistant",
            "content": "ok",
            "tool_calls": [
                {"id": id_, "type": "function", "function": one} for id_, one in zip("12", functions, strict=True)
            ],
        },
        {"role": "tool", "content": "seen", "tool_call_id": "1"},
        {"role": "tool", "content": "it", "tool_call_id": "2"},
    ]


CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("param", "words", "body"),
    [
        ("input", "valid list", {"input": 1}),
        ("input", "at least 1", {"input": []}),
        ("input.0.content", "message", {"input": [{"role": "user"}]}),
        ("input.0.role", "message", {"input": [{"content": "a"}]}),
        ("input.0.content", "no images", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        ("input.0.content", "parts", {"input": [{"role": "user", "content": [{"type": "input_json", "data": [1]}]}]}),
        ("input.0.arguments", "function_call", {"input": [{**CALL, "arguments": None}]}),
        ("input", "JSON text", {"input": [{**CALL, "arguments": "["}]}),
        ("input", "item 1", {"input": [CALL, {"type": "function_call_output", "call_id": "2", "output": ""}]}),
        ("input.0.content", "Unicode", {"input": "\ud800"}),
        ("questions", "at least 1", {"questions": []}),
        ("questions", "at most 400", {"questions": [PREDICATE] * 401}),
        ("questions.0.type", "predicate", {"questions": [{"type": "other", "instructions": "a"}]}),
        ("questions.0.instructions", "provide", {"questions": [{"type": "predicate"}]}),
        ("questions.0.instructions", "asked", {"questions": [{**PREDICATE, "instructions": " "}]}),
        ("questions.1.choices", "choice", {"questions": [PREDICATE, {**CHOICE, "choices": None}]}),
        ("questions.0.choices", "only", {"questions": [{**PREDICATE, "choices": CHOICE["choices"]}]}),
        ("questions.0.choices", "at least 2", {"questions": [{**CHOICE, "choices": [{"value": "a"}]}]}),
        ("questions.0.choices", "at most 255", {"questions": [{**CHOICE, "choices": [{"value": "a"}] * 256}]}),
        ("questions.0.choices", "once", {"questions": [{**CHOICE, "choices": [{"value": "a"}] * 2}]}),
        ("questions.0.choices.0.value", "boolean", {"questions": [{**CHOICE, "choices": [{"value": 1}] * 2}]}),
        ("questions.0.levels", "score", {"questions": [{**SCORE, "levels": None}]}),
        ("questions.0.levels", "at most", {"questions": [{**SCORE, "levels": [{"label": "a"}] * (MOST_LEVELS + 1)}]}),
        ("diffusion.cache", "not a known field", {"diffusion": {"cache": "none"}}),
        ("diffusion.joint", "boolean", {"diffusion": {"joint": "yes"}}),
        ("model", "does not exist", {"model": "other"}),
        ("tools", "not supported", {"tools": [{}]}),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(decide, api, param, words, body):
    content = json.dumps({"input": "Hi.", "questions": QUESTIONS, **body})
    response = await api.client.post("/v1/decisions", content=content, headers={"content-type": "application/json"})
    error = api.error_of(response, 404 if param == "model" else 400)
    assert error["param"] == param
    assert words in error["message"]


async def test_a_template_that_ends_with_the_answer(decide, engine, tokenizer):
    """As the fake's does: the last blank has nothing behind it, and those before it are holes all the same."""
    response = await decide(questions=[PREDICATE, SCORE], diffusion={"joint": True})
    assert response.status_code == 200, response.text
    [submission] = engine.submissions
    text = await tokenizer.decode_all(submission.prompt_ids)
    assert text.endswith("<assistant>1:\n\n2:\n")
    assert submission.holes == (Hole(len(text) - 4, 1), Hole(len(text), 1))
    assert len(response.json()["answers"]) == 2


async def test_unknown_and_harmless_fields_pass(decide):
    more = {"prompt_cache_key": "a", "prompt_cache_options": {"ttl": "30m"}, "safety_identifier": "b", "new": 1}
    assert (await decide(**more)).status_code == 200


async def test_an_engine_that_stops(decide, engine):
    engine.accepting = False
    assert (await decide()).status_code == 503


@pytest.mark.parametrize("is_silent", [True, False])
async def test_an_engine_that_says_nothing(decide, api, engine, monkeypatch, caplog, is_silent):
    """No token at all, or a token without its probabilities."""
    monkeypatch.setattr("tests.server.fake_engine.said_of", lambda *_: None)
    engine.script = lambda _: [b"" if is_silent else b"A", FinishReason.LENGTH]
    assert api.error_of(await decide(), 500)["type"] == "server_error"
    assert f"The engine {'said nothing' if is_silent else 'did not say'}" in caplog.text


async def test_a_model_without_a_template(decide, api, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", None)
    error = api.error_of(await decide(), 400)
    assert error["param"] == "input"
    assert "no chat template" in error["message"]
