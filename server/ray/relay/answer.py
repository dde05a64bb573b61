"""What has come of an answer, and what of it has been sent.

An answer begins with the first event of a stream, or when all of it has arrived: until then nothing has been sent, so
that the client cannot tell whether another replica is asked.
"""

from dataclasses import dataclass, field

from starlette.types import Message, Scope, Send

from engine import EngineUnavailable
from server.errors import api_error
from server.ray.relay.endings import Ending

HEADER = b"x-unmask-replica"
"""Of answers: the replica that wrote it."""


@dataclass(slots=True)
class Answer:
    """One replica's answer to one request, on its way to the client."""

    scope: Scope
    send: Send
    start: Message | None = None
    ending: Ending | None = None
    """Of a stream of events alone."""
    held: list[Message] = field(default_factory=list)
    has_begun: bool = False
    is_over: bool = False
    """Whether all of it has been sent."""

    def starts(self, start: Message, replica: str) -> None:
        """Status and headers have come. Nothing is sent yet."""
        headers = [*start["headers"], (HEADER, replica.encode())]
        self.start = {**start, "headers": headers}
        kinds = [value for name, value in headers if name == b"content-type"]
        self.ending = Ending(self.scope) if any(kind.startswith(b"text/event-stream") for kind in kinds) else None

    async def goes_on(self, part: Message) -> None:
        """A part of the body has come."""
        self.held.append(part)
        if self.ending:
            self.ending.saw(part.get("body", b""))
        if (self.ending and part.get("body")) or not part.get("more_body", False):
            if not self.has_begun:
                assert self.start, "an answer has headers before it has a body"
                self.has_begun = True
                await self.send(self.start)
            held, self.held = self.held, []
            for message in held:
                await self.send(message)
            self.is_over = not part.get("more_body", False)

    async def breaks_off(self) -> None:
        """Ends a stream that has begun, unless all of it has been sent."""
        if self.is_over:
            return
        assert self.ending, "only streams begin before all of them is there"
        message = "The replica that wrote this answer has ended; what it had still to say is lost."
        told = (
            b"" if self.ending.is_complete else self.ending.failure(api_error(EngineUnavailable(message), self.scope))
        )
        await self.send({"type": "http.response.body", "body": told})
