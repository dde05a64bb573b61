"""Structured output over a real socket, from the bundled model, with the calls that people make."""

import json
from typing import Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

QUESTION = [{"role": "user", "content": "Tom has 3 apples and finds 4 more. How many?"}]


class Item(BaseModel):
    name: str = Field(max_length=8)
    size: Literal["small", "large"] | None


class Basket(BaseModel):
    who: str = Field(pattern="^[A-Z][a-z]{1,6}$")
    count: int = Field(ge=0, le=99)
    items: list[Item] = Field(max_length=2)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_parse(client, temperature):
    completion = client.chat.completions.parse(
        model="demo",
        messages=QUESTION,
        response_format=Basket,
        max_tokens=150,
        temperature=temperature,
        seed=3,
        n=3,
        logprobs=True,
    )
    assert all(isinstance(choice.message.parsed, Basket) for choice in completion.choices)
    assert {choice.finish_reason for choice in completion.choices} == {"stop"}
    for choice in completion.choices:
        spelled = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
        assert spelled.decode() == choice.message.content


def test_a_stream_folds_to_the_whole_answer(client):
    body = {
        "model": "demo",
        "messages": QUESTION,
        "max_tokens": 150,
        "temperature": 1,
        "seed": 8,
        "presence_penalty": 0.5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "b", "schema": Basket.model_json_schema()}},
        "extra_body": {"diffusion": {"block_length": 8}},
    }
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)]
    assert len(pieces) > 3
    assert "".join(pieces) == client.chat.completions.create(**body).choices[0].message.content
    Basket.model_validate_json("".join(pieces))


def test_the_helper_for_streams(client):
    with client.chat.completions.stream(
        model="demo", messages=QUESTION, response_format=Basket, max_tokens=150
    ) as events:
        final = events.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Basket)


@pytest.mark.parametrize("guidance", ["posterior", "model"])
def test_completions_in_vllms_words(client, guidance):
    answer = client.completions.create(
        model="demo",
        prompt=["One:", "Two:"],
        max_tokens=40,
        n=2,
        temperature=1,
        extra_body={"structured_outputs": {"regex": "[a-z]{3,9} = [0-9]{1,3}"}, "diffusion": {"guidance": guidance}},
    )
    assert len(answer.choices) == 4
    for choice in answer.choices:
        jsonschema.validate(choice.text, {"pattern": "^[a-z]{3,9} = [0-9]{1,3}$"})


def test_a_refusal_names_the_place(client):
    schema = {"type": "object", "properties": {"a": {"if": {"type": "null"}}}}
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(
            model="demo",
            messages=QUESTION,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert told.value.param == "response_format.json_schema.schema"
    assert "#/properties/a/if: the keyword `if`" in told.value.message


def test_no_room_is_a_400_that_says_how_much_it_takes(client):
    with pytest.raises(openai.BadRequestError, match=r"takes \d+ tokens") as told:
        client.completions.create(
            model="demo", prompt="a", max_tokens=3, extra_body={"structured_outputs": {"regex": "[0-9]{30}"}}
        )
    assert told.value.param == "max_tokens"


def test_the_example_of_the_page(demo_server):
    """docs/structured.md"""
    schema = {
        "type": "object",
        "properties": {"who": {"type": "string", "maxLength": 12}, "count": {"type": "integer", "minimum": 0}},
        "required": ["who", "count"],
        "additionalProperties": False,
    }
    answer = httpx.post(
        f"{demo_server}/v1/chat/completions",
        json={
            "messages": QUESTION,
            "response_format": {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}},
        },
    )
    jsonschema.validate(json.loads(answer.json()["choices"][0]["message"]["content"]), schema)
