"""From the wire types of a request to the engine's parameters."""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from engine import DiffusionParams, InvalidRequest, SamplingParams
from server.schemas import DiffusionRequest, SamplingRequest
from server.text.tokenizer import Tokenizer

ENGINE_NAMES = {"allowed_ids": "allowed_token_ids", "stop_ids": "stop_token_ids", "holes": "prompt"}
"""The engine's words for what the API calls otherwise, in errors that name a field."""


async def sampling_params(
    body: SamplingRequest, tokenizer: Tokenizer, *, max_tokens: int, temperature: float, logprobs: int | None
) -> SamplingParams:
    """`temperature` is the server's default. The seed is left to `seeds`."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_temperature(body, temperature),
        top_p=body.top_p or 1.0,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple({int(token): bias for token, bias in body.logit_bias.items()}.items()),
        allowed_ids=None if body.allowed_token_ids is None else frozenset(body.allowed_token_ids),
        bad_words=await _bad_words(body.bad_words, tokenizer),
        min_tokens=body.min_tokens,
        stop_ids=frozenset(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
    )


def seeds(seed: int | None, count: int) -> list[int]:
    """Of the choices of one prompt: the given one first, then such as follow from it and the choice's number."""
    first = secrets.randbits(63) if seed is None else seed
    return [first, *(_derived(first, number) for number in range(1, count))]


def _derived(seed: int, number: int) -> int:
    return int.from_bytes(sha256(f"{seed}:{number}".encode()).digest()[:8]) >> 1


def _temperature(body: SamplingRequest, default: float) -> float:
    if body.top_p == 0:  # nothing but the most probable token is left
        return 0.0
    return default if body.temperature is None else body.temperature


async def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each as it is and after a space, which most tokenizers make part of the word."""
    for word in words:
        if not word.strip():
            raise InvalidRequest("`bad_words` may not hold words of nothing but space.", "bad_words")
    if not words:
        return ()
    bare = [word.lstrip() for word in words]
    both = [*bare, *(f" {word}" for word in bare)]
    encoded = await tokenizer.encode(both, add_special_tokens=False, param="bad_words")
    return tuple(dict.fromkeys(tuple(ids) for ids in encoded if ids))


def diffusion_params(body: DiffusionRequest | None, defaults: DiffusionParams) -> DiffusionParams:
    """The server's defaults, with what the request says in their place. Raises InvalidRequest for an unknown field."""
    if body is None:
        return defaults
    for name in body.model_extra or {}:
        known = ", ".join(DiffusionRequest.model_fields)
        raise InvalidRequest(
            f"`diffusion.{name:.100}` is not a known field; known are {known}.", f"diffusion.{name:.100}"
        )
    return replace(defaults, **body.model_dump(exclude_unset=True))
