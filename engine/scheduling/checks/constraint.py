"""A constraint against the rest of its submission, and against what a step has room for."""

from engine.core.config import ModelSpec
from engine.core.constraint import NEVER, Constraint
from engine.core.errors import InvalidRequest
from engine.core.requests.submission import Submission, effective_constraint
from engine.unmask.policies import UNMASKS

MOST_EDGES = 2**24
"""Edges of a constraint times positions of a block: some 200 MB while a request is scored, and some 0.3 s."""

MOST_CLASSES = 2**19
"""Its classes times positions of a block: some 92 MB on the device, and on the host, for each request of a step."""


def check_constraint(submission: Submission, spec: ModelSpec) -> None:
    """Raises InvalidRequest on what a constraint cannot be combined with, or has no room for.

    It says where the answer ends, and is decided over all of the answer's positions.
    """
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
