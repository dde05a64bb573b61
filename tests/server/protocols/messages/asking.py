"""How /v1/messages is asked, and the form of its errors.

Anthropic's package takes seconds to import: what needs it imports it where it is used, not where tests are collected.
"""

from functools import cache

from pydantic import TypeAdapter

from tests.server.tools.asking import PLACE

TOOLS = [
    {"name": "look", "description": "Look there.", "input_schema": PLACE},
    {"type": "custom", "name": "now", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}},
]
USER = {"role": "user", "content": "hi"}
HEADERS = {"anthropic-version": "2023-06-01", "anthropic-beta": "what-nobody-knows-2027-01-01,context-1m"}


@cache
def event_type():
    """Anthropic's own, of one event of a stream."""
    from anthropic.types import RawMessageStreamEvent

    return TypeAdapter(RawMessageStreamEvent)


def result(*blocks):
    """A message with the result of a call."""
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [*blocks]}]}


def error_of(response, status):
    """The error, which is in Anthropic's form."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert set(body["error"]) - {"details"} == {"type", "message"}
    return body["error"]
