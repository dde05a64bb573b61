"""The end of a stream whose replica has died: an error event, in the form of the API that the stream is in.

The writers of `server.protocols` cannot say it: they died with the replica. So this reads what has gone by.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from starlette.types import Scope

from server.errors import ApiError, is_anthropic
from server.http.sse import frame
from server.protocols.response import END, Event, Message

_RESPONSES = re.compile(r"/v1/responses(/|$)")
_LAST = re.compile(rb"^(data: \[DONE\]$|event: (message_stop|error|response\.(completed|incomplete|failed))$)", re.M)
"""The event that ends a stream, in each of its forms."""
_FIRST = re.compile(rb"^event: response\.created\ndata: (.*)$", re.M)
_NUMBER = re.compile(rb'(?<!\\)"sequence_number":\s*(\d+)')


class Ending:
    """Watches one stream of events, and says how to end it."""

    def __init__(self, scope: Scope) -> None:
        self._is_anthropic = is_anthropic(scope)
        self._is_response = _RESPONSES.search(str(scope["path"])) is not None
        self._response: dict[str, Any] = {}
        """What OpenAI's newer API calls the response: the object of its first event."""
        self._number = -1
        self.is_complete = False
        """Whether the event has gone by that ends the stream."""

    def saw(self, events: bytes) -> None:
        """Whole events, as they are sent."""
        self.is_complete = self.is_complete or _LAST.search(events) is not None
        if self._is_response:
            if created := _FIRST.search(events):
                self._response = json.loads(created[1])["response"]
            self._number = max([self._number, *(int(found[1]) for found in _NUMBER.finditer(events))])

    def failure(self, error: ApiError) -> bytes:
        """The events that end the stream."""
        return "".join(map(frame, self._messages(error))).encode()

    def _messages(self, error: ApiError) -> Sequence[Message]:
        if self._is_anthropic:
            return (Event("error", json.dumps(error.body)),)
        if not self._is_response:
            return json.dumps(error.body), END
        code = error.code or "server_error"
        told = {"code": code, "message": error.message, "param": error.param}
        failed = {**self._response, "status": "failed", "error": {"code": code, "message": error.message}}
        return (
            self._numbered(1, "error", {**told, "error": {"type": error.type, **told}}),
            self._numbered(2, "response.failed", {"response": failed}),
        )

    def _numbered(self, ahead: int, kind: str, fields: dict[str, Any]) -> Event:
        return Event(kind, json.dumps({"type": kind, "sequence_number": self._number + ahead, **fields}))
