"""OpenAI's own Python client, pointed at the server over a real socket."""

import openai
import pytest

from engine import RequestFailed


@pytest.fixture
async def openai_client(engine, tokenizer, listening):
    async with (
        listening(engine, tokenizer) as (url, _),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


async def test_create(openai_client):
    answer = await openai_client.completions.create(model="demo", prompt="ab")
    assert answer.choices[0].text == "one two"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 9
    assert answer.usage.diffusion["cache"] == "dual"


async def test_stream(openai_client):
    stream = await openai_client.completions.create(
        model="demo", prompt="ab", stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks] == ["one ", "two"]
    assert last.usage.completion_tokens == 7


async def test_several_prompts(openai_client):
    answer = await openai_client.completions.create(model="demo", prompt=["a", "b", "c"])
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


async def test_the_diffusion_object(openai_client, engine):
    extra = {"diffusion": {"cache": "prefix", "threshold": 0.7}}
    answer = await openai_client.completions.create(model="demo", prompt="ab", extra_body=extra)
    assert engine.submissions[0].diffusion.threshold == 0.7
    assert answer.usage.diffusion["cache"] == "prefix"


async def test_models(openai_client):
    assert [model.id async for model in await openai_client.models.list()] == ["demo"]
    assert (await openai_client.models.retrieve("demo")).owned_by == "unmask"


async def test_errors_have_their_class_and_field(openai_client, engine):
    with pytest.raises(openai.BadRequestError) as error:
        await openai_client.completions.create(model="demo", prompt="ab", temperature=3)
    assert error.value.param == "temperature"
    assert error.value.request_id
    with pytest.raises(openai.NotFoundError) as error:
        await openai_client.completions.create(model="gpt", prompt="ab")
    assert error.value.code == "model_not_found"
    engine.places = 0
    with pytest.raises(openai.RateLimitError):
        await openai_client.completions.create(model="demo", prompt="ab")


async def test_an_error_in_a_stream_is_raised(openai_client, engine):
    engine.script = lambda _: ["one ", RequestFailed("secret")]
    stream = await openai_client.completions.create(model="demo", prompt="ab", stream=True)
    assert (await anext(stream)).choices[0].text == "one "
    with pytest.raises(openai.APIError, match="failed while answering"):
        await anext(stream)
