"""What a submission must satisfy before it becomes a request: one layer of checks below every front end.

Ranges are declared with their parameters (`engine.core.params`). The checks here need the model, a policy or two
parameters at once. Errors name the field at fault by its API name.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.core.errors import ContextLengthExceeded, InvalidRequest
from engine.core.params import MAX_BLOCK, MAX_RELAYED, DiffusionParams, SamplingParams, block_length, resolved
from engine.core.ranges import Ge, Gt, Le, Lt
from engine.core.requests.canvas import count_blocks, first_block_start, positions_to_fill
from engine.core.requests.submission import Submission
from engine.scheduling.sampling_checks import check_ids, check_sampling
from engine.unmask.policies import UNMASKS

Bound = Ge | Gt | Le | Lt


def check(submission: Submission, spec: ModelSpec, max_batch_rows: int = MAX_BLOCK) -> None:
    """Raises InvalidRequest, or ContextLengthExceeded, if this submission can never be served."""
    _check_prompt(submission, spec)
    _check_holes(submission, spec)
    _check_ranges(submission.sampling, _SAMPLING_RANGES, "")
    check_sampling(submission, spec)
    _check_length(submission, spec.max_model_len)  # before `block_length`, which some policies derive from max_tokens
    _check_ranges(submission.diffusion, _DIFFUSION_RANGES, "diffusion.")
    for name, choices in _DIFFUSION_CHOICES.items():
        _check_name(f"diffusion.{name}", getattr(submission.diffusion, name), choices)
    _check_name("diffusion.cache", submission.diffusion.cache, ("auto", *CACHES))
    _check_cache(resolved(submission.diffusion, spec).cache, spec)
    _check_name("diffusion.unmask", submission.diffusion.unmask, UNMASKS)
    _check_unmask(submission.diffusion.unmask, spec)
    _check_replacing(submission, spec)
    _check_block(submission.diffusion, spec, max_batch_rows)
    _check_eviction(submission.diffusion, spec)
    _check_order(submission.diffusion, "min_block_length", "max_block_length")
    _check_order(submission.diffusion, "initial_steps", "max_steps")
    _check_steps(submission, spec)
    _check_relay(submission, spec)


def _ranges(params: type) -> dict[str, tuple[Bound, ...]]:
    """Field -> its bounds, from the annotations."""
    hints = get_type_hints(params, include_extras=True)
    return {field.name: tuple(_bounds(hints[field.name])) for field in fields(params)}


def _bounds(hint: Any) -> Iterable[Bound]:
    for part in (hint, *get_args(hint)):  # `Annotated[int, …] | None` has its bounds one level down
        if get_origin(part) is Annotated:
            yield from (extra for extra in part.__metadata__ if isinstance(extra, Bound))


def _choices(params: type) -> dict[str, tuple[str, ...]]:
    """Field -> the values it may have, where its type is a Literal."""
    return {name: get_args(hint) for name, hint in get_type_hints(params).items() if get_origin(hint) is Literal}


_SAMPLING_RANGES = _ranges(SamplingParams)
_DIFFUSION_RANGES = _ranges(DiffusionParams)
_DIFFUSION_CHOICES = _choices(DiffusionParams)


def _check_ranges(params: object, ranges: Mapping[str, Sequence[Bound]], prefix: str) -> None:
    for name, bounds in ranges.items():
        value = getattr(params, name)
        for each in bounds:
            # Each comparison is written so that NaN fails it.
            match each:
                case Ge(bound):
                    fits, words = value is None or value >= bound, f"at least {bound}"
                case Gt(bound):
                    fits, words = value is None or value > bound, f"greater than {bound}"
                case Le(bound):
                    fits, words = value is None or value <= bound, f"at most {bound}"
                case Lt(bound):
                    fits, words = value is None or value < bound, f"less than {bound}"
            if not fits:
                raise InvalidRequest(f"{prefix}{name} is {value}; it must be {words}.", f"{prefix}{name}")


def _check_name(param: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise InvalidRequest(f"{param} is {name!r}; it must be one of {', '.join(known)}.", param)


def _check_cache(cache: str, spec: ModelSpec) -> None:
    if CACHES[cache].fits(spec):
        return
    fitting = ", ".join(name for name, policy in CACHES.items() if policy.fits(spec)) or "none that this engine has"
    attention = "is block-causal" if spec.is_block_causal else "attends in both directions"
    raise InvalidRequest(
        f"diffusion.cache is {cache!r}, which does not fit the model: it {attention} ({spec.family}). "
        f"Caches that fit it: {fitting}.",
        "diffusion.cache",
    )


def _check_unmask(unmask: str, spec: ModelSpec) -> None:
    policy = UNMASKS[unmask]
    if policy.fits(spec):
        return
    fitting = ", ".join(name for name, other in UNMASKS.items() if other.fits(spec))
    if policy.renews:
        why = f"denoises random tokens: for models without a mask, and {spec.family} has one"
    elif spec.mask_id is None:
        why = f"fills masks, of which the model has none ({spec.family})"
    elif policy.cuts_canvas:
        why = f"sets the length of blocks itself; the model is block-causal ({spec.family}), its blocks have one length"
    elif policy.moves_tokens:
        why = f"inserts and deletes tokens: for models with tokens that ask for it, of which {spec.family} lacks some"
    elif policy.drafts:
        why = (
            "verifies its drafts by rows that say the next token: for models that are autoregressive ones, too, and "
            f"{spec.family} is none"
        )
    else:
        why = (
            f"replaces decoded tokens: for block-causal models whose logits are not shifted, and {spec.family} is none"
        )
    raise InvalidRequest(
        f"diffusion.unmask is {unmask!r}, which {why}. Policies that fit it: {fitting}.", "diffusion.unmask"
    )


def check_constrained(unmask: str, param: str) -> None:
    """Raises InvalidRequest, which names `param`, if no constraint can be combined with the unmask policy.

    For front ends, before they compile what `param` asks for. Unknown policies pass; `check` refuses them.
    """
    if unmask in UNMASKS and (named := _replacing(unmask)):
        raise InvalidRequest(f"{param} cannot be combined with {named}.", param)


def _replacing(unmask: str) -> str | None:
    """The policy in words if it replaces or moves tokens, drafts them, or draws a block anew in each step."""
    policy = UNMASKS[unmask]
    if policy.renews:
        does = "draws the whole block anew in each step"
    elif policy.moves_tokens:
        does = "inserts and deletes tokens"
    elif policy.replaces_tokens:
        does = "replaces decoded tokens"
    elif policy.drafts:
        does = "verifies its drafts"
    else:
        return None
    return f"diffusion.unmask {unmask!r}, which {does}"


def _check_replacing(submission: Submission, spec: ModelSpec) -> None:
    """What a policy that replaces tokens, drafts them, or draws a block anew in each step cannot be combined with."""
    diffusion, sampling = submission.diffusion, submission.sampling
    policy, named = UNMASKS[diffusion.unmask], _replacing(diffusion.unmask)
    if not named:
        return
    if not CACHES[resolved(diffusion, spec).cache].computes_block:
        fitting = ", ".join(name for name, policy in CACHES.items() if policy.computes_block)
        raise InvalidRequest(
            f"diffusion.cache {diffusion.cache!r} cannot be combined with {named}. Caches that can: {fitting}.",
            "diffusion.cache",
        )
    if diffusion.sub_block_length:
        raise InvalidRequest(
            f"diffusion.sub_block_length cannot be combined with {named} anywhere in a block.",
            "diffusion.sub_block_length",
        )
    if sampling.constraint is not None:
        raise InvalidRequest(f"Structured outputs cannot be combined with {named}.", "diffusion.unmask")
    if any(len(word) > 1 for word in sampling.bad_words):
        raise InvalidRequest(f"bad_words of several tokens cannot be combined with {named}.", "bad_words")
    why = ", at temperatures of its own: diffusion.t_max to t_min" if policy.renews else ", by the most probable ones"
    for name, neutral in (("temperature", 0.0), ("top_p", 1.0), ("top_k", 0.0), ("min_p", 0.0)):
        if (policy.renews or policy.moves_tokens) and getattr(sampling, name) != neutral:
            raise InvalidRequest(f"{name} cannot be combined with {named}{why}.", name)
    if policy.moves_tokens and sampling.min_tokens:
        raise InvalidRequest(
            f"min_tokens cannot be combined with {named}: the token that ends an answer may move.", "min_tokens"
        )
    if not policy.drafts:
        return
    for name, neutral in (("presence_penalty", 0.0), ("frequency_penalty", 0.0), ("repetition_penalty", 1.0)):
        if getattr(sampling, name) != neutral:
            raise InvalidRequest(f"{name} cannot be combined with {named}: it would count these.", name)


def _check_block(diffusion: DiffusionParams, spec: ModelSpec, max_batch_rows: int) -> None:
    sub_block, length = diffusion.sub_block_length, block_length(diffusion, spec)
    if spec.is_block_causal and min(length, spec.max_model_len) > max_batch_rows:
        raise InvalidRequest(
            f"diffusion.block_length is {length}; this engine computes at most {max_batch_rows} positions at once.",
            "diffusion.block_length",
        )
    if spec.routing_block and length % spec.routing_block:
        raise InvalidRequest(
            f"diffusion.block_length is {length}; it must be a multiple of {spec.routing_block}, the tokens that the "
            f"model ({spec.family}) routes to experts together.",
            "diffusion.block_length",
        )
    if sub_block is None:
        return
    if not spec.is_block_causal:
        raise InvalidRequest(
            f"diffusion.sub_block_length is {sub_block}; it is for block-causal models, and this one attends in both "
            f"directions ({spec.family}).",
            "diffusion.sub_block_length",
        )
    if length % sub_block:
        raise InvalidRequest(
            f"diffusion.sub_block_length is {sub_block}, which does not divide the block's {length} tokens.",
            "diffusion.sub_block_length",
        )


def _check_eviction(diffusion: DiffusionParams, spec: ModelSpec) -> None:
    """What `kv_budget` cannot be combined with."""
    if (budget := diffusion.kv_budget) is None:
        return
    cache, named = resolved(diffusion, spec).cache, "diffusion.kv_budget"
    if not CACHES[cache].allows_eviction:
        fitting = ", ".join(name for name, policy in CACHES.items() if policy.allows_eviction and policy.fits(spec))
        raise InvalidRequest(
            f"{named} cannot be combined with diffusion.cache {cache!r}. Caches that can: {fitting}.", named
        )
    if spec.window is not None:
        raise InvalidRequest(
            f"{named} is for models without windows, and layers of this one have ({spec.family}).", named
        )
    if spec.commits_causally:
        raise InvalidRequest(f"{named} is for models that commit whole blocks, and {spec.family} does not.", named)
    length = block_length(diffusion, spec) if spec.is_block_causal else 0
    judges = length or spec.shift
    if budget <= judges:
        raise InvalidRequest(f"{named} is {budget}; it must be more than a block, {length} tokens.", named)
    if diffusion.kv_sink > budget - judges:
        room = f"{budget}" if not judges else f"{budget} less the {judges} before the open block that stay anyway"
        raise InvalidRequest(
            f"diffusion.kv_sink is {diffusion.kv_sink}, more than {named} has room for: {room}.", "diffusion.kv_sink"
        )
    if diffusion.kv_buffer < length:
        raise InvalidRequest(
            f"diffusion.kv_buffer is {diffusion.kv_buffer}; it must hold a block, {length} tokens.",
            "diffusion.kv_buffer",
        )


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


def _check_order(diffusion: DiffusionParams, low: str, high: str) -> None:
    if getattr(diffusion, low) > getattr(diffusion, high):
        raise InvalidRequest(
            f"diffusion.{low} is {getattr(diffusion, low)}, more than diffusion.{high}, {getattr(diffusion, high)}.",
            f"diffusion.{low}",
        )


def _check_length(submission: Submission, max_model_len: int) -> None:
    prompt, max_tokens = len(submission.prompt_ids), submission.sampling.max_tokens
    if prompt + max_tokens > max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{prompt + max_tokens} tokens: {prompt} in the prompt and {max_tokens} to generate.",
            "prompt" if submission.holes or prompt >= max_model_len else "max_tokens",
        )
