"""OpenAI's own client, sync and async, over a real socket to one server with the demo model."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import openai
import pytest


@asynccontextmanager
async def synchronous(options):
    with openai.OpenAI(**options) as client:

        def gather(create, body):
            answer = create(model="demo", **body)
            return list(answer) if body.get("stream") else answer

        yield SimpleNamespace(
            complete=lambda **body: asyncio.to_thread(gather, client.completions.create, body),
            chat=lambda **body: asyncio.to_thread(gather, client.chat.completions.create, body),
        )


@asynccontextmanager
async def asynchronous(options):
    async with openai.AsyncOpenAI(**options) as client:

        async def collect(create, body):
            answer = await create(model="demo", **body)
            return [chunk async for chunk in answer] if body.get("stream") else answer

        yield SimpleNamespace(
            complete=lambda **body: collect(client.completions.create, body),
            chat=lambda **body: collect(client.chat.completions.create, body),
        )


@pytest.fixture
def options(demo_server):
    return {"base_url": f"{demo_server}/v1", "api_key": "none", "max_retries": 0}


@pytest.fixture
async def sdk(options):
    """`await sdk.complete(...)` and `await sdk.chat(...)` by the async client; streams come as lists of chunks."""
    async with asynchronous(options) as sdk:
        yield sdk


@pytest.fixture(params=[synchronous, asynchronous])
async def either(request, options):
    """The same by either client: they read answers, streams and errors each in its own way, and ask alike."""
    async with request.param(options) as sdk:
        yield sdk


@pytest.fixture
async def http(demo_server):
    async with httpx.AsyncClient(base_url=demo_server, timeout=60) as client:
        yield client
