"""Streams and times one request. Figures that the server does not report are None; a failure is returned as a reason.

Reads `text_completion` and `chat.completion.chunk` events of any server. Only this project's server sends
`usage.diffusion`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from engine import ConfigError
from server.bench.serve.prompts import LoadRequest
from server.remote import BrokenStream, complaint, error_code, events

Endpoint = Literal["completions", "chat"]
PATHS: Mapping[Endpoint, str] = {"completions": "completions", "chat": "chat/completions"}

STREAM_OPTIONS: tuple[Mapping[str, bool] | None, ...] = (
    {"include_usage": True, "continuous_usage_stats": True},
    {"include_usage": True},
    None,
)
"""From the most detailed to what every server accepts. vLLM, SGLang and unmask have `continuous_usage_stats`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A request that was answered. Times are of `time.perf_counter`, in seconds."""

    sent: float
    blocks: tuple[float, ...]
    """Arrival times of the chunks that add text, or tokens without text (`<|endoftext|>`) if the server counts them."""
    ended: float
    prompt_tokens: int | None
    completion_tokens: int | None
    first_tokens: int | None
    """Completion tokens of the first block."""
    forwards: int | None
    rows: int | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed. The same reason is the same text, so that failures can be counted."""

    reason: str


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body:.300}")
        self.status = status
        self.reason = f"HTTP {status}{error_code(body)}"


class Client:
    """One model of one server, asked over one endpoint."""

    def __init__(
        self, http: httpx.AsyncClient, model: str, endpoint: Endpoint, extra_body: Mapping[str, object]
    ) -> None:
        self.model = model
        self._http = http
        self._path = PATHS[endpoint]
        self._chat = endpoint == "chat"
        self._extra_body = extra_body
        self._stream_options = STREAM_OPTIONS[0]

    async def check(self, request: LoadRequest) -> None:
        """Asks once before the load, to find permanent errors, and to find the stream options that the server accepts.

        Raises ConfigError with the server's own message.
        """
        for self._stream_options in STREAM_OPTIONS:
            try:
                await self._timed(request)
            except Refused as refusal:
                if refusal.status in (400, 422) and self._stream_options is not None:
                    continue  # perhaps the server refuses these options
                raise ConfigError(f"{self._http.base_url}{self._path} answered {refusal}{_hint(refusal)}") from None
            except BrokenStream as error:
                raise ConfigError(f"{self._http.base_url}{self._path}: {error}") from None
            except httpx.HTTPError as error:
                raise ConfigError(complaint(self._http, self._path, error)) from None
            return

    async def send(self, request: LoadRequest) -> Sample | Failure:
        try:
            return await self._timed(request)
        except Refused as refusal:
            return Failure(refusal.reason)
        except BrokenStream as error:
            return Failure(str(error))
        except httpx.HTTPError as error:
            return Failure(type(error).__name__)

    async def _timed(self, request: LoadRequest) -> Sample:
        sent = time.perf_counter()
        blocks: list[float] = []
        usage: Mapping[str, Any] = {}
        tokens, first_tokens = 0, None
        async with self._http.stream("POST", self._path, json=self._body(request)) as response:
            if not response.is_success:
                raise Refused(response.status_code, (await response.aread()).decode(errors="replace"))
            async for event in events(response):
                usage = event.get("usage") or usage
                before, tokens = tokens, usage.get("completion_tokens") or 0
                if event.get("choices") and (_text(event, chat=self._chat) or tokens > before):
                    blocks.append(time.perf_counter())
                    if len(blocks) == 1:
                        first_tokens = tokens or None
        cost = usage.get("diffusion") or {}
        return Sample(
            sent=sent,
            blocks=tuple(blocks),
            ended=time.perf_counter(),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            first_tokens=first_tokens,
            forwards=cost.get("forwards"),
            rows=cost.get("rows_computed"),
        )

    def _body(self, request: LoadRequest) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
        }
        if self._stream_options:
            body["stream_options"] = self._stream_options
        if self._chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        return body | dict(self._extra_body)


def _text(event: Mapping[str, Any], *, chat: bool) -> str:
    """The text of the event's choice; empty for chunks without text, such as the one with the role."""
    try:
        choice = event["choices"][0]
        return str((choice["delta"].get("content") if chat else choice["text"]) or "")
    except (LookupError, AttributeError, TypeError):
        return ""


def _hint(refusal: Refused) -> str:
    match refusal.status:
        case 401 | 403:
            return " (--api-key gives the key)"
        case 404:
            return " (the name of the model, --model, or the route, --endpoint, is not there)"
        case 429 | 503:
            return " (it is busy before the load has begun)"
    return ""
