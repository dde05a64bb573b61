"""Answers from an OpenAI-compatible server over HTTP, this project's or any other.

The `diffusion` object is sent only if a policy sets a field of it; `usage.diffusion` is read if the server sends it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from engine import ConfigError
from server.eval.answers import EvalAnswer, Options
from server.eval.policy import PolicyPair
from server.eval.questions import Question
from server.remote import call, connect, first_model


class RemoteModel:
    """One model of a server."""

    def __init__(self, http: httpx.AsyncClient, model: str, options: Options) -> None:
        self._http = http
        self._model = model
        self._options = options

    async def ask(self, question: Question, policy: PolicyPair) -> EvalAnswer:
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
            return EvalAnswer(text=self._options.trim(text or ""), tokens=tokens, forwards=forwards, rows=rows)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(f"{self._http.base_url} does not answer as OpenAI's API does: {reply!r:.200}") from None


@asynccontextmanager
async def connected(base_url: str, model: str | None, options: Options, api_key: str) -> AsyncIterator[RemoteModel]:
    """`base_url` may end in /v1 or not. `model` is by default the first that the server lists. Raises ConfigError."""
    async with connect(base_url, api_key) as http:
        yield RemoteModel(http, model or await first_model(http), options)
