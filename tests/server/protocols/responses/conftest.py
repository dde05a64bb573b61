"""The route, asked: answers and events are checked by OpenAI's own types."""

import pytest
from openai.types.responses import Response

from tests.server.protocols.asking import asking, streaming
from tests.server.protocols.responses.asking import EVENTS


@pytest.fixture
def post(api):
    """`await post(...)`: the response to a body."""

    async def post(**body):
        return await api.client.post("/v1/responses", json={"input": "hi", **body})

    return post


@pytest.fixture
def ask(post):
    return asking(post, Response)


@pytest.fixture
def stream(post):
    read = streaming(post, EVENTS)

    async def stream(**body):
        events = await read(**body)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        return events

    return stream
