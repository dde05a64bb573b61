"""Checks of sampling parameters against each other and against the model's vocabulary.

Ranges of single parameters are declared with them (`engine.core.params`). Errors name the field by its API name.
"""

from collections.abc import Collection

from engine.core.config import ModelSpec
from engine.core.constraint import NEVER, Constraint
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
from engine.core.requests.submission import Submission, effective_constraint
from engine.scoring.bans import leaves_any
from engine.unmask.policies import UNMASKS

MOST_EDGES = 2**24
"""Edges of a constraint times positions of a block: some 200 MB while a request is scored, and some 0.3 s."""
MOST_CLASSES = 2**19
"""Its classes times positions of a block: some 92 MB on the device, and on the host, for each request of a step."""


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
        _check_constraint(submission, spec)


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


def _check_constraint(submission: Submission, spec: ModelSpec) -> None:
    """The constraint says where the answer ends, and it is decided over all of the answer's positions."""
    sampling = submission.sampling
    assert sampling.constraint is not None
    assert len(sampling.constraint.classes) == spec.vocab_size, "a constraint over another vocabulary"
    constraint = effective_constraint(sampling, spec)
    assert constraint is not None
    if submission.holes:
        raise InvalidRequest("Structured outputs cannot fill holes; the answer must come after the prompt.", "prompt")
    for param, is_set in (
        ("stop_token_ids", bool(sampling.stop_ids)),
        ("min_tokens", sampling.min_tokens > 0),
        ("ignore_eos", sampling.ignore_eos),
    ):
        if is_set:
            raise InvalidRequest(f"{param} cannot be combined with structured outputs, which say what ends.", param)
    param = "bad_words" if sampling.allowed_ids is None else "allowed_token_ids"
    if not (constraint.classes == constraint.num_classes - 1).any():
        raise InvalidRequest(f"{param} rules out all tokens that end an answer; structured outputs need one.", param)
    if constraint.least_tokens >= NEVER:
        raise InvalidRequest(f"{param} leaves no answer that the structured output allows.", param)
    if constraint.least_tokens > sampling.max_tokens:
        raise InvalidRequest(
            f"The shortest answer that the structured output allows takes {constraint.least_tokens} tokens, but there "
            f"is room for {sampling.max_tokens}.",
            "max_tokens",
        )
    _check_size(constraint, submission, spec)


def _check_size(constraint: Constraint, submission: Submission, spec: ModelSpec) -> None:
    """A step goes through all edges at each position of a block, and has numbers of each class there."""
    diffusion = submission.diffusion
    policy = UNMASKS[diffusion.unmask]
    longest = min(policy.longest_block(diffusion, spec), submission.sampling.max_tokens)
    most = min(MOST_EDGES // len(constraint.edge_src), MOST_CLASSES // constraint.num_classes)
    if longest <= most:
        return
    param, change = "diffusion.block_length", f"lower it to {most}"
    if policy.cuts_canvas:
        param, change = "diffusion.unmask", f"{diffusion.unmask} decodes so many at once; take another policy"
    if not most:
        param, change = "max_tokens", "no block is short enough"
    raise InvalidRequest(
        f"The structured output has {len(constraint.edge_src):,} transitions between states and "
        f"{constraint.num_classes:,} classes of tokens, too many for a block of {longest} positions: {change}, or ask "
        "for something simpler (shorter strings and lists, fewer choices).",
        param,
    )
