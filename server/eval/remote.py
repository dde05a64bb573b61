"""Answers from an OpenAI-compatible server over HTTP, this one or any other.

The `diffusion` object goes along only if a policy asks for something; `usage.diffusion` is read where it is there.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from engine import ConfigError
from server.eval.answers import Answer, Options
from server.eval.policy import Policy
from server.eval.questions import Question

TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""Seconds: an answer may wait behind many others."""
MAX_TRIES = 8
"""For a server that is full or starting."""


class RemoteModel:
    """One model of a server."""

    def __init__(self, http: httpx.AsyncClient, model: str, options: Options) -> None:
        self._http = http
        self._model = model
        self._options = options

    async def ask(self, question: Question, policy: Policy) -> Answer:
        body: dict[str, object] = {"model": self._model, "max_tokens": self._options.max_tokens, "temperature": 0}
        if diffusion := policy.diffusion(self._options.max_tokens):
            body["diffusion"] = diffusion
        if self._options.plain:
            reply = await call(self._http, "POST", "completions", body | {"prompt": question.plain})
        else:
            reply = await call(self._http, "POST", "chat/completions", body | {"messages": question.messages})
        try:
            [choice] = reply["choices"]
            text = choice["text"] if self._options.plain else choice["message"]["content"]
            usage = reply.get("usage") or {}
            cost = usage.get("diffusion") or {}
            tokens, forwards, rows = (
                usage.get("completion_tokens"),
                cost.get("forwards"),
                cost.get("rows_computed"),
            )
            return Answer(text=self._options.trim(text or ""), tokens=tokens, forwards=forwards, rows=rows)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(f"{self._http.base_url} does not answer as OpenAI's API does: {reply!r:.200}") from None


@asynccontextmanager
async def connected(base_url: str, model: str | None, options: Options, api_key: str) -> AsyncIterator[RemoteModel]:
    """`base_url` may end in /v1 or not; without a model, the first that the server lists. Raises ConfigError."""
    base_url = base_url.rstrip("/").removesuffix("/v1") + "/v1/"
    headers = {"Authorization": f"Bearer {api_key}"}
    try:
        client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=TIMEOUT)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"{base_url} is no URL: {error}") from None
    async with client as http:
        yield RemoteModel(http, model or await _first_model(http), options)


async def _first_model(http: httpx.AsyncClient) -> str:
    listed = await call(http, "GET", "models", None)
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ConfigError(f"{http.base_url}models lists no model; name one with --model") from None


async def call(http: httpx.AsyncClient, method: str, path: str, body: object) -> Any:
    """The parsed answer. Raises ConfigError for any that is not a success, in the server's own words."""
    response = None
    for attempt in range(MAX_TRIES):
        try:
            response = await http.request(method, path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(f"{http.base_url}{path}: {error or type(error).__name__}") from None
        if response.status_code not in (429, 503):
            break
        await asyncio.sleep(0.1 * 2**attempt)
    assert response is not None
    if response.status_code == httpx.codes.NOT_FOUND and path.startswith("chat"):
        raise ConfigError(f"{http.base_url}{path} answered 404: {response.text:.200} (--plain asks without chat)")
    if not response.is_success:
        raise ConfigError(f"{http.base_url}{path} answered {response.status_code}: {response.text:.300}")
    try:
        return response.json()
    except ValueError:
        raise ConfigError(f"{http.base_url}{path} did not answer in JSON: {response.text:.200}") from None
