"""Answers from a model in this process."""

import asyncio
import json
from dataclasses import replace

import jsonschema
import pytest

from engine import DEMO_MODEL, ConfigError
from server.constraints import MAX_RUNNING
from server.eval import questions
from server.eval.answerers.answers import Options
from server.eval.answerers.local import running
from server.eval.policy import PolicyPair


def test_guided_forms_fit_their_schema():
    """Whatever a model says that has never seen a form."""
    forms = questions.from_tasks(["form"], 1, 6, 0)

    async def answers():
        async with running(DEMO_MODEL, Options(max_tokens=64, plain=False), 8) as model:
            asked = [model.ask(question, PolicyPair(guidance="posterior")) for question in forms]
            return [answer.text for answer in await asyncio.gather(*asked)]

    for question, text in zip(forms, asyncio.run(answers()), strict=True):
        jsonschema.validate(json.loads(text), dict(question.schema))
        assert list(json.loads(text)) == list(question.schema["properties"])


UNENFORCEABLE = {"type": "object", "properties": {"a": {"$ref": "https://schemas.example/a"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "asked",
    [
        {"schema": UNENFORCEABLE},
        {"tools": ({"type": "function", "function": {"name": "f", "parameters": UNENFORCEABLE}},)},
    ],
)
def test_what_cannot_be_enforced_is_named_where_it_would_be(asked):
    [question] = questions.from_tasks(["sort"], 1, 1, 0)
    question = replace(question, **asked)

    async def answer(guidance):
        async with running(DEMO_MODEL, Options(max_tokens=4, plain=False), 1) as model:
            return await model.ask(question, PolicyPair(guidance=guidance))

    assert asyncio.run(answer(None)).forwards
    with pytest.raises(ConfigError, match="the schema or tools of sort: "):
        asyncio.run(answer("posterior"))


def test_a_judgement_takes_one_forward(monkeypatch):
    """As many steps as a decisions endpoint would take."""
    [question] = questions.from_tasks(["yesno"], 1, 1, 0)

    async def judged():
        async with running(DEMO_MODEL, Options(max_tokens=64, plain=False), 8) as model:
            outputs = []
            submit = model._engine.submit
            monkeypatch.setattr(model._engine, "submit", lambda them: [_noted(s, outputs) for s in submit(them)])
            return await model.judge(question), outputs

    probabilities, outputs = asyncio.run(judged())
    assert outputs[-1].usage.forwards == 1
    assert 0.5 < sum(probabilities.values()) <= 1 + 1e-6


async def _noted(stream, outputs):
    async for output in stream:
        outputs.append(output)
        yield output


def test_an_evaluation_waits_for_more_constraints_than_a_server_takes_at_once():
    """Each field has a name of its own, so that none is compiled for another."""
    number = MAX_RUNNING + 4
    forms = [
        replace(
            questions.from_tasks(["form"], 7, 1, 0)[0],
            schema={"type": "object", "properties": {f"field_{i}": {"type": "boolean"}}, "required": [f"field_{i}"]},
        )
        for i in range(number)
    ]

    async def answers():
        async with running(DEMO_MODEL, Options(max_tokens=64, plain=False), number) as model:
            return await asyncio.gather(*(model.ask(form, PolicyPair(guidance="posterior")) for form in forms))

    assert [set(json.loads(answer.text)) for answer in asyncio.run(answers())] == [
        {f"field_{i}"} for i in range(number)
    ]
