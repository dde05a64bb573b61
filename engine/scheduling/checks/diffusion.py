"""Diffusion parameters against each other and against the model."""

from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.core.errors import InvalidRequest
from engine.core.params import DiffusionParams, block_length, resolved


def check_block(diffusion: DiffusionParams, spec: ModelSpec, max_batch_rows: int) -> None:
    """Raises InvalidRequest on a length of blocks or of their parts that the model or a step has no way to compute."""
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


def check_eviction(diffusion: DiffusionParams, spec: ModelSpec) -> None:
    """Raises InvalidRequest on what `kv_budget` cannot be combined with."""
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


def check_order(diffusion: DiffusionParams, low: str, high: str) -> None:
    """Raises InvalidRequest if the field `low` is above the field `high`."""
    if getattr(diffusion, low) > getattr(diffusion, high):
        raise InvalidRequest(
            f"diffusion.{low} is {getattr(diffusion, low)}, more than diffusion.{high}, {getattr(diffusion, high)}.",
            f"diffusion.{low}",
        )
