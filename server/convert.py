"""Between the wire types of `server/schemas.py` and the engine's: requests one way, answers the other."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from engine import DiffusionParams, FinishReason, InvalidRequest, SamplingParams, Usage
from server.completion import Completion, Delta
from server.schemas import (
    CompletionChoice,
    CompletionRequest,
    CompletionResponse,
    CompletionUsage,
    DiffusionRequest,
    DiffusionUsage,
    StreamOptions,
)

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for completions."""


def sampling_params(body: CompletionRequest, default_temperature: float) -> SamplingParams:
    return SamplingParams(
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        temperature=_temperature(body, default_temperature),
        top_p=body.top_p or 1.0,
        top_k=max(body.top_k or 0, 0),
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        stop_ids=frozenset(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
    )


def _temperature(body: CompletionRequest, default: float) -> float:
    if body.top_p == 0:  # nothing but the most probable token is left
        return 0.0
    return default if body.temperature is None else body.temperature


def diffusion_params(body: DiffusionRequest | None, defaults: DiffusionParams) -> DiffusionParams:
    """The server's defaults, with what the request says in their place. Raises InvalidRequest for an unknown field."""
    if body is None:
        return defaults
    for name in body.model_extra or {}:
        known = ", ".join(DiffusionRequest.model_fields)
        raise InvalidRequest(
            f"`diffusion.{name:.100}` is not a known field; known are {known}.", f"diffusion.{name:.100}"
        )
    return replace(defaults, **body.model_dump(exclude_none=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What all parts of one answer share, and how they look on the wire."""

    model: str
    diffusion: DiffusionParams
    """As it was decoded, the server's defaults included."""
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(16)}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, completion: Completion) -> str:
        deltas = await completion.fold()
        return self._render(deltas, completion.usage).model_dump_json()

    async def chunks(self, completion: Completion, options: StreamOptions) -> AsyncIterator[str]:
        """One for each completed block; `usage` as the options ask for it."""
        hidden = None if options.include_usage else {"usage"}
        async for delta in completion.deltas():
            running = completion.usage if options.continuous_usage_stats else None
            yield self._render([delta], running).model_dump_json(exclude=hidden)
        if options.include_usage:
            yield self._render([], completion.usage).model_dump_json()

    def _render(self, deltas: Sequence[Delta], usage: Usage | None) -> CompletionResponse:
        return CompletionResponse(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[_choice(delta) for delta in deltas],
            usage=_usage(usage, self.diffusion) if usage else None,
        )


def _choice(delta: Delta) -> CompletionChoice:
    match delta.finish_reason:
        case None:
            return CompletionChoice(index=delta.index, text=delta.text, finish_reason=None)
        case FinishReason.LENGTH:
            return CompletionChoice(index=delta.index, text=delta.text, finish_reason="length")
        case _:
            return CompletionChoice(index=delta.index, text=delta.text, finish_reason="stop")


def _usage(usage: Usage, diffusion: DiffusionParams) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        diffusion=DiffusionUsage(
            cache=diffusion.cache,
            unmask=diffusion.unmask,
            forwards=usage.forwards,
            rows_computed=usage.rows_computed,
            tokens_per_forward=usage.tokens_per_forward,
        ),
    )
