"""How the newer APIs are asked, and how their streams are read."""

import asyncio
import json
from itertools import pairwise

from engine import DiffusionParams, FinishReason, Output, Usage
from server.observe.observer import TokenCounts
from server.protocols.forms import Extras
from server.protocols.response import Answer
from server.replies.choice import Choice
from server.replies.completion import Completion
from server.replies.reasoning import ReasoningReader
from server.replies.tool_calls import ToolCallReader


def events_of(text):
    """The events of a stream as (name, data)."""
    *frames, end = text.split("\n\n")
    assert end == ""
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == name.removeprefix("event: ")
        events.append(event)
    return events


def asking(post, kind):
    """`await ask(...)`: the answer to a body, which is one of `kind`, a type of the API's own client."""

    async def ask(**body):
        response = await post(**body)
        assert response.status_code == 200, response.text
        kind.model_validate_json(response.text, strict=True)
        return response.json()

    return ask


def streaming(post, kind):
    """`await stream(...)`: the events of the answer to a body, each one of `kind`; that of a `ping` is no type's."""

    async def stream(**body):
        response = await post(stream=True, **body)
        assert response.status_code == 200, response.text
        events = events_of(response.text)
        for event in events:
            if event["type"] != "ping":
                kind.validate_json(json.dumps(event), strict=True)
        return events

    return stream


class _Texts:
    """A passage whose tokens are characters."""

    length = stop = None

    def push(self, ids, logprobs, steps, *, last):
        return "".join(map(chr, ids)), []


class _Stream:
    def __init__(self, pieces, end):
        self._pieces = pieces
        self._end = end

    async def __aiter__(self):
        count = 0
        for number, piece in enumerate(self._pieces, 1):
            count += len(piece)
            is_last = number == len(self._pieces)
            yield Output(
                request_id="r",
                token_ids=tuple(map(ord, piece)),
                finish_reason=self._end if is_last else None,
                usage=Usage(prompt_tokens=3, completion_tokens=count, forwards=number, rows_computed=count),
            )

    def finish(self, reason, usage):
        pass

    def abort(self):
        pass


def completion(pieces, end=FinishReason.STOP):
    """An answer whose blocks are these texts, with reasoning and calls told apart."""
    choice = Choice(0, _Stream(pieces, end), [_Texts()], reader=ToolCallReader(), reasoning=ReasoningReader())
    return Completion([choice], [3], counts=TokenCounts())


def answer(prefix):
    return Answer(
        prefix=prefix, model="m", fingerprint="fp", diffusion=DiffusionParams(), extras=Extras(), key="k", created=1
    )


def cut(text, cuts):
    """The pieces of a text between the cuts, and an empty last one."""
    return [*(text[start:stop] for start, stop in pairwise(sorted({0, len(text), *cuts}))), ""]


def told(writer, pieces, end=FinishReason.STOP):
    """The events that a writer makes of an answer in these pieces."""

    async def read():
        return [json.loads(event.data) async for event in writer.messages(completion(pieces, end))]

    return asyncio.run(read())


def whole(writer, text, end=FinishReason.STOP):
    return json.loads(asyncio.run(writer.whole(completion([text], end))))
