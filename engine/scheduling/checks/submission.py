"""What a submission must satisfy before it becomes a request: one layer of checks below every front end.

Errors name the field at fault by its API name.
"""

from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.core.errors import ContextLengthExceeded, InvalidRequest
from engine.core.params import MAX_BLOCK, MAX_RELAYED, block_length, resolved
from engine.core.requests.canvas import count_blocks, first_block_start, positions_to_fill
from engine.core.requests.submission import Submission
from engine.scheduling.checks.diffusion import check_block, check_eviction, check_order
from engine.scheduling.checks.policies import check_cache, check_replacing, check_unmask
from engine.scheduling.checks.ranges import check_choices, check_ranges
from engine.scheduling.checks.sampling import check_ids, check_sampling


def check(submission: Submission, spec: ModelSpec, max_batch_rows: int = MAX_BLOCK) -> None:
    """Raises InvalidRequest, or ContextLengthExceeded, if this submission can never be served."""
    _check_prompt(submission, spec)
    _check_holes(submission, spec)
    check_ranges(submission.sampling, "")
    check_sampling(submission, spec)
    _check_length(submission, spec.max_model_len)  # before `block_length`, which some policies derive from max_tokens
    check_ranges(submission.diffusion, "diffusion.")
    check_choices(submission.diffusion, "diffusion.")
    check_cache(submission.diffusion, spec)
    check_unmask(submission.diffusion.unmask, spec)
    check_replacing(submission, spec)
    check_block(submission.diffusion, spec, max_batch_rows)
    check_eviction(submission.diffusion, spec)
    check_order(submission.diffusion, "min_block_length", "max_block_length")
    check_order(submission.diffusion, "initial_steps", "max_steps")
    _check_steps(submission, spec)
    _check_relay(submission, spec)


def _check_prompt(submission: Submission, spec: ModelSpec) -> None:
    if not submission.prompt_ids:
        if submission.holes:
            raise InvalidRequest("The prompt is nothing but holes; it needs some text around them.", "prompt")
        raise InvalidRequest("The prompt is empty; it needs at least one token.", "prompt")
    check_ids(submission.prompt_ids, spec, "prompt")


def _check_holes(submission: Submission, spec: ModelSpec) -> None:
    if not submission.holes:
        return
    if spec.is_block_causal:
        raise InvalidRequest(
            f"The model is block-causal ({spec.family}): it cannot see what stands behind a gap while it fills it. "
            "Infilling needs a model that attends in both directions.",
            "prompt",
        )
    least, length = 0, len(submission.prompt_ids)
    for hole in submission.holes:
        if hole.length < 1:
            raise InvalidRequest(f"A hole is {hole.length} tokens long; it must be at least 1.", "prompt")
        if not least <= hole.offset <= length:
            raise InvalidRequest(
                f"A hole comes after {hole.offset} tokens of the prompt, which has {length}; holes must be in order, "
                "with at least one token between them.",
                "prompt",
            )
        least = hole.offset + 1
    total, max_tokens = sum(hole.length for hole in submission.holes), submission.sampling.max_tokens
    if total != max_tokens:
        raise InvalidRequest(f"The holes are {total} tokens long together, but max_tokens is {max_tokens}.", "prompt")


def _check_steps(submission: Submission, spec: ModelSpec) -> None:
    steps = submission.diffusion.steps
    if steps is None:
        return
    answer, length = positions_to_fill(submission, spec), block_length(submission.diffusion, spec)
    blocks = count_blocks(answer, first_block_start(int(answer[0]), length, spec), length)
    if steps < blocks:
        raise InvalidRequest(
            f"diffusion.steps is {steps}, but the canvas has {blocks} blocks and each takes at least one step.",
            "diffusion.steps",
        )


def _check_relay(submission: Submission, spec: ModelSpec) -> None:
    param = "diffusion.relay_from"
    if len(submission.relay_from) > MAX_RELAYED:
        raise InvalidRequest(f"{param} names {len(submission.relay_from)} answers; it may name {MAX_RELAYED}.", param)
    if submission.relay_from and submission.diffusion.kv_budget is not None:
        raise InvalidRequest(
            f"{param} cannot be combined with diffusion.kv_budget: what is given up cannot be handed on.", param
        )
    if submission.relay_from and not CACHES[resolved(submission.diffusion, spec).cache].keeps:
        raise InvalidRequest(
            f"{param} hands on keys and values, and diffusion.cache 'none' computes all of them in each step. "
            "Leave one of them out.",
            param,
        )


def _check_length(submission: Submission, max_model_len: int) -> None:
    prompt, max_tokens = len(submission.prompt_ids), submission.sampling.max_tokens
    if prompt + max_tokens > max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{prompt + max_tokens} tokens: {prompt} in the prompt and {max_tokens} to generate.",
            "prompt" if submission.holes or prompt >= max_model_len else "max_tokens",
        )
