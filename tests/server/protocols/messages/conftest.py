"""The route, asked: answers and events are checked by Anthropic's own types."""

import pytest

from tests.server.protocols.asking import asking, streaming
from tests.server.protocols.messages.asking import HEADERS, USER, event_type


@pytest.fixture
def post(api):
    """`await post(...)`: the response to a body; `path` is what follows the route's."""

    async def post(path="", **body):
        length = {} if path else {"max_tokens": 50}
        body = {**length, "messages": [USER], **body}
        return await api.client.post(f"/v1/messages{path}", json=body, headers=HEADERS)

    return post


@pytest.fixture
def ask(post):
    from anthropic.types import Message

    return asking(post, Message)


@pytest.fixture
def stream(post):
    return streaming(post, event_type())
