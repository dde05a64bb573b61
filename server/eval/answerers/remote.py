"""Answers from an OpenAI-compatible server over HTTP, this project's or any other.

The `diffusion` object is sent only if a policy sets a field of it; `usage.diffusion` is read if the server sends it.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from math import exp
from typing import Any

import httpx

from engine import MAX_LOGPROBS, ConfigError, demo_calls
from server.decisions.questions import Question as Decision
from server.eval.answerers.answers import EvalAnswer, Options
from server.eval.policy import PolicyPair
from server.eval.questions import Question
from server.remote import call, connect, first_model

AT_ONCE = 400
"""The most questions that /v1/decisions takes."""
MAX_PLAIN_LOGPROBS = 5
"""The most that OpenAI's completions API takes."""


class RemoteModel:
    """One model of a server."""

    def __init__(self, http: httpx.AsyncClient, model: str, options: Options) -> None:
        self._http = http
        self._model = model
        self._options = options

    async def ask(self, question: Question, policy: PolicyPair) -> EvalAnswer:
        room = self._options.room(question)
        body: dict[str, object] = {"max_tokens": room}
        if diffusion := policy.diffusion(room):
            body["diffusion"] = diffusion
        if question.schema is not None and policy.guidance:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "form", "schema": question.schema},
            }
        reply = await self._asked(question, body)
        try:
            [choice] = reply["choices"]
            text = choice["text"] if self._options.plain else _text(choice["message"])
            usage = reply.get("usage") or {}
            cost = usage.get("diffusion") or {}
            return EvalAnswer(
                text=self._options.trim(text or ""),
                tokens=usage.get("completion_tokens"),
                forwards=cost.get("forwards"),
                rows=cost.get("rows_computed"),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._unlike_openai(reply) from None

    async def judge(self, question: Question) -> Mapping[str, float]:
        """By as many forwards as the server needs for one token."""
        chat = {"logprobs": True, "top_logprobs": MAX_LOGPROBS}
        logprobs = {"logprobs": MAX_PLAIN_LOGPROBS} if self._options.plain else chat
        reply = await self._asked(question, {"max_tokens": 1, **logprobs})
        try:
            [choice] = reply["choices"]
            if self._options.plain:
                top = choice["logprobs"]["top_logprobs"][0].items()
            else:
                top = [(one["token"], one["logprob"]) for one in choice["logprobs"]["content"][0]["top_logprobs"]]
            return {token: exp(logprob) for token, logprob in top}
        except IndexError:  # the answer ended, or began to reason, before its text
            return {}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._unlike_openai(reply) from None

    async def decide(self, decisions: Sequence[Decision]) -> Sequence[Sequence[float]]:
        """Many in each request: they do not depend on each other."""
        found: list[Sequence[float]] = []
        for first in range(0, len(decisions), AT_ONCE):
            questions = list(map(_as_body, decisions[first : first + AT_ONCE]))
            body = {"model": self._model, "input": "", "questions": questions}
            reply = await call(self._http, "POST", "decisions", body)
            try:
                found += [_probabilities(answer) for answer in reply["answers"]]
            except (KeyError, TypeError):
                raise self._unlike_openai(reply) from None
        return found

    async def _asked(self, question: Question, body: dict[str, object]) -> Any:
        body = {"model": self._model, "temperature": 0} | body
        if self._options.plain:
            return await call(self._http, "POST", "completions", body | {"prompt": question.plain})
        if question.tools:
            body["tools"] = question.tools
        return await call(self._http, "POST", "chat/completions", body | {"messages": question.messages})

    def _unlike_openai(self, reply: object) -> ConfigError:
        return ConfigError(f"{self._http.base_url} does not answer as OpenAI's API does: {reply!r:.200}")


def _as_body(decision: Decision) -> dict[str, object]:
    body: dict[str, object] = {"type": decision.kind, "instructions": decision.instructions}
    if decision.kind == "choice":
        body["choices"] = [{"value": option.text} for option in decision.options]
    if decision.kind == "score":
        body["levels"] = [{"label": option.text} for option in decision.options]
    return body


def _probabilities(answer: Mapping[str, Any]) -> list[float]:
    if answer["type"] == "predicate":
        return [answer["probability"], 1 - answer["probability"]]
    return [one["probability"] for one in answer["probabilities"]]


def _text(message: Mapping[str, Any]) -> str | None:
    """What the message says, calls of tools in Hermes form behind it. None if nothing."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    if not calls:
        content: str | None = message["content"]
        return content
    return (message.get("content") or "") + demo_calls(
        [(call["name"], json.loads(call["arguments"])) for call in calls]
    )


@asynccontextmanager
async def connected(base_url: str, model: str | None, options: Options, api_key: str) -> AsyncIterator[RemoteModel]:
    """`base_url` may end in /v1 or not. `model` is by default the first that the server lists. Raises ConfigError."""
    async with connect(base_url, api_key) as http:
        yield RemoteModel(http, model or await first_model(http), options)
