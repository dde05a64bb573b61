"""Converts the wire types of a request to the engine's parameters."""

import secrets
from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import sha256

from engine import Constraint, DiffusionParams, InvalidRequest, ModelSpec, SamplingParams, resolved
from server.schemas import DiffusionRequest, SamplingRequest
from server.text.tokenizer import Tokenizer

ENGINE_NAMES = {"allowed_ids": "allowed_token_ids", "stop_ids": "stop_token_ids", "holes": "prompt"}
"""The engine's field names and the API's, where they differ. Errors name the API's."""

REPORTS = frozenset(DiffusionRequest.model_fields) - {field.name for field in fields(DiffusionParams)}
"""Fields of `diffusion` that say what is told of decoding, or where keys and values come from: of no policy."""


async def sampling_params(
    body: SamplingRequest,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    temperature: float,
    logprobs: int | None,
    constraint: Constraint | None,
) -> SamplingParams:
    """The parameters, without a seed, which `seeds` makes. `temperature`: the server's default.

    Raises InvalidRequest for `bad_words` of nothing but space.
    """
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
        constraint=constraint,
    )


def seeds(seed: int | None, count: int) -> list[int]:
    """The seeds of one prompt's choices: `seed`, then seeds derived from it and the choice's number.

    If `seed` is None, the first is random.
    """
    first = secrets.randbits(63) if seed is None else seed
    return [first, *(_derived(first, number) for number in range(1, count))]


def _derived(seed: int, number: int) -> int:
    return int.from_bytes(sha256(f"{seed}:{number}".encode()).digest()[:8]) >> 1


def _temperature(body: SamplingRequest, default: float) -> float:
    if body.top_p == 0:  # only the most probable token is left
        return 0.0
    return default if body.temperature is None else body.temperature


async def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The token ids of each word, without and with a space before it, which most tokenizers make part of the word."""
    for word in words:
        if not word.strip():
            raise InvalidRequest("`bad_words` may not hold words of nothing but space.", "bad_words")
    if not words:
        return ()
    bare = [word.lstrip() for word in words]
    both = [*bare, *(f" {word}" for word in bare)]
    encoded = await tokenizer.encode(both, add_special_tokens=False, param="bad_words")
    return tuple(dict.fromkeys(tuple(ids) for ids in encoded if ids))


def cache_salt(tenant: str, salt: str) -> str:
    """The engine's salt for a client's own: equal only where both the tenant and the client's salt are.

    `tenant` is hexadecimal, or empty where all clients are one: no client's salt can say another tenant.
    """
    return sha256(f"{tenant}:{salt}".encode()).hexdigest()


def relay_from(body: SamplingRequest) -> tuple[str, ...]:
    """The answers whose keys and values may be taken over."""
    return tuple(body.diffusion.relay_from) if body.diffusion else ()


def diffusion_params(body: DiffusionRequest | None, defaults: DiffusionParams, spec: ModelSpec) -> DiffusionParams:
    """The server's defaults, overridden by the request's fields, with the model's own values where these leave them.

    Raises InvalidRequest for an unknown field.
    """
    if body is None:
        return resolved(defaults, spec)
    for name in body.model_extra or {}:
        known = ", ".join(DiffusionRequest.model_fields)
        raise InvalidRequest(
            f"`diffusion.{name:.100}` is not a known field; known are {known}.", f"diffusion.{name:.100}"
        )
    return resolved(replace(defaults, **body.model_dump(exclude_unset=True, exclude=REPORTS)), spec)
