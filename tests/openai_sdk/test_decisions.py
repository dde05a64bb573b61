"""`client.decisions` of OpenAI's client, and LangChain's: their types are the judge of ours."""

import asyncio

import openai
import pytest
from openai.types import Decision

QUESTIONS = [
    {"type": "predicate", "name": "red", "instructions": "Is the box red?"},
    {"type": "choice", "instructions": "What colour is the box?", "choices": [{"value": "red"}, {"value": True}]},
    {"type": "score", "instructions": "How big is it?", "levels": [{"label": "small"}, {"label": "big"}]},
]


@pytest.fixture(params=["sync", "async"])
async def decide(request, demo_server):
    """`await decide(...)` by either client, which are strict about types."""
    options = {"base_url": f"{demo_server}/v1", "api_key": "none", "max_retries": 0}
    options["_strict_response_validation"] = True
    if request.param == "sync":
        with openai.OpenAI(**options) as client:
            yield lambda **body: asyncio.to_thread(client.decisions.create, **body)
    else:
        async with openai.AsyncOpenAI(**options) as client:
            yield client.decisions.create


async def test_the_sdk_takes_every_answer(decide):
    decision = await decide(model="demo", input="Tom has a red box.", questions=QUESTIONS)
    assert isinstance(decision, Decision)
    red, colour, size = decision.answers
    assert (red.type, red.name) == ("predicate", "red")
    assert 0 < red.probability < 1
    assert {(type(one.value), one.value) for one in colour.probabilities} == {(str, "red"), (bool, True)}
    assert colour.choice == max(colour.probabilities, key=lambda one: one.probability).value
    assert [one.label for one in size.probabilities] == ["small", "big"]
    assert size.score == pytest.approx(size.probabilities[1].probability)
    for answer in (colour, size):
        assert sum(one.probability for one in answer.probabilities) == pytest.approx(1)
        assert 0 <= answer.confidence <= 1
    assert decision.usage.output_tokens == decision.usage.output_tokens_details.reasoning_tokens == 0
    again = await decide(model="demo", input="Tom has a red box.", questions=QUESTIONS[::-1])
    assert [one.type for one in again.answers] == ["score", "choice", "predicate"]
    assert again.answers[2].probability == pytest.approx(red.probability, abs=1e-6)


async def test_messages_and_joint_questions(decide):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    options = {"extra_body": {"diffusion": {"joint": True}}}
    decision = await decide(model="demo", input=messages, questions=QUESTIONS, **options)
    assert len(decision.answers) == 3
    assert decision.usage.diffusion["forwards"] == 1


async def test_an_error_names_its_field(decide):
    with pytest.raises(openai.BadRequestError) as error:
        await decide(model="demo", input="a", questions=[{"type": "choice", "instructions": "Which?"}])
    assert error.value.param == "questions.0.choices"


def test_langchain(demo_server):
    from langchain_openai.decisions import Choice, OpenAIDecisions, Predicate, Score  # a second

    with pytest.warns(match="is in beta"):
        decisions = OpenAIDecisions(model="demo", base_url=f"{demo_server}/v1", api_key="none")
    answer = decisions.invoke(
        {
            "input": {"box": {"colour": "red"}},
            "questions": {
                "red": Predicate(instructions="Is the box red?"),
                "colour": Choice(instructions="What colour is it?", choices={"red": None, "blue": "as the sea"}),
                "size": Score(instructions="How big is it?", levels=["small", "middling", "big"]),
            },
        }
    )
    assert 0 < answer.predicates["red"].probability < 1
    assert set(answer.choices["colour"].probabilities) == {"red", "blue"}
    assert answer.scores["size"].legend == {0: "small", 1: "middling", 2: "big"}
    assert answer.request_id
