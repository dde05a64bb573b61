"""Sampling parameters against each other and against the model's vocabulary."""

from collections.abc import Collection

from engine.core.config import ModelSpec
from engine.core.errors import InvalidRequest
from engine.core.params import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIAS,
    MAX_BIASED,
    MAX_LOGPROB_IDS,
    MAX_STOP_IDS,
    SamplingParams,
    banned_everywhere,
)
from engine.core.requests.submission import Submission
from engine.scheduling.checks.constraint import check_constraint
from engine.scoring.bans import leaves_any


def check_ids(ids: Collection[int], spec: ModelSpec, param: str) -> None:
    """Raises InvalidRequest if any id is not in the model's vocabulary."""
    if ids and not (min(ids) >= 0 and max(ids) < spec.vocab_size):
        wrong = next(token for token in ids if not 0 <= token < spec.vocab_size)
        raise InvalidRequest(f"Token id {wrong} is out of vocabulary: ids are 0 to {spec.vocab_size - 1}.", param)


def check_sampling(submission: Submission, spec: ModelSpec) -> None:
    """Raises InvalidRequest on sampling parameters that cannot be served. Ranges have been checked before."""
    sampling = submission.sampling
    if len(sampling.stop_ids) > MAX_STOP_IDS:
        raise InvalidRequest(
            f"stop_token_ids has {len(sampling.stop_ids)} entries; it must have at most {MAX_STOP_IDS}.",
            "stop_token_ids",
        )
    check_ids(sampling.stop_ids, spec, "stop_token_ids")
    _check_bias(sampling, spec)
    _check_bad_words(sampling, spec)
    if sampling.min_tokens > sampling.max_tokens:
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens}, more than max_tokens, {sampling.max_tokens}.", "min_tokens"
        )
    if sampling.allowed_ids is not None:
        check_ids(sampling.allowed_ids, spec, "allowed_token_ids")
        if sampling.allowed_ids <= spec.never_drawn:
            words = "only holds the mask token, which is never drawn" if sampling.allowed_ids else "is empty"
            raise InvalidRequest(f"allowed_token_ids {words}; it must hold a token to draw.", "allowed_token_ids")
    _check_logprob_ids(sampling, spec)
    _check_that_some_token_is_left(submission, spec)
    if sampling.constraint is not None:
        check_constraint(submission, spec)


def _check_bias(sampling: SamplingParams, spec: ModelSpec) -> None:
    if len(sampling.logit_bias) > MAX_BIASED:
        raise InvalidRequest(
            f"logit_bias has {len(sampling.logit_bias)} entries; it must have at most {MAX_BIASED}.", "logit_bias"
        )
    check_ids([token for token, _ in sampling.logit_bias], spec, "logit_bias")
    for token, bias in sampling.logit_bias:
        if not -MAX_BIAS <= bias <= MAX_BIAS:  # written so that NaN is refused, too
            raise InvalidRequest(
                f"logit_bias of token {token} is {bias}; it must be from {-MAX_BIAS:g} to {MAX_BIAS:g}.", "logit_bias"
            )


def _check_logprob_ids(sampling: SamplingParams, spec: ModelSpec) -> None:
    if len(sampling.logprob_ids) > MAX_LOGPROB_IDS:
        raise InvalidRequest(
            f"logprob_token_ids has {len(sampling.logprob_ids)} entries; it must have at most {MAX_LOGPROB_IDS}.",
            "logprob_token_ids",
        )
    if sampling.logprob_ids and sampling.logprobs is None:
        raise InvalidRequest("logprob_token_ids are only reported with logprobs.", "logprob_token_ids")
    check_ids(sampling.logprob_ids, spec, "logprob_token_ids")


def _check_bad_words(sampling: SamplingParams, spec: ModelSpec) -> None:
    words, total = sampling.bad_words, sum(len(word) for word in sampling.bad_words)
    if len(words) > MAX_BAD_WORDS:
        raise InvalidRequest(f"bad_words has {len(words)} entries; it must have at most {MAX_BAD_WORDS}.", "bad_words")
    if total > MAX_BAD_WORD_TOKENS:
        raise InvalidRequest(
            f"bad_words has {total} tokens in all; it must have at most {MAX_BAD_WORD_TOKENS}.", "bad_words"
        )
    for word in words:
        if not word:
            raise InvalidRequest("bad_words has an empty entry; each must hold at least one token.", "bad_words")
        check_ids(word, spec, "bad_words")


def _check_that_some_token_is_left(submission: Submission, spec: ModelSpec) -> None:
    """Looks at bans that do not depend on the canvas: `scoring.bans` drops those that do if no token is left."""
    sampling, banned = submission.sampling, banned_everywhere(submission.sampling)
    if not leaves_any(sampling, spec, banned):
        param = "bad_words" if sampling.allowed_ids is None else "allowed_token_ids"
        raise InvalidRequest("bad_words leaves no token that may be drawn.", param)
    stops = sampling.stop_ids if sampling.ignore_eos else sampling.stop_ids | spec.eos_ids
    ends_early = not submission.holes
    if sampling.min_tokens and ends_early and not leaves_any(sampling, spec, banned | stops):
        raise InvalidRequest(
            f"min_tokens is {sampling.min_tokens}, but only tokens that end the answer may be drawn.", "min_tokens"
        )
