"""Carries out on the device what requests take over from others. Knows moves of slots, but no sources and no plans."""

from engine.core.arrays import Ids
from engine.core.config import ModelSpec
from engine.execution.runner import MOVED_AT_ONCE, Runner
from engine.kernels.kv.moved import move
from engine.kernels.kv.pool import KVPool
from engine.kernels.transfer import Upload
from engine.models.layers import TransformerConfig
from engine.scheduling.relay.sources import Move


def can_relay(geometry: TransformerConfig, pool: object, spec: ModelSpec) -> bool:
    """Whether keys and values of such a model can be moved: all layers' heads are alike and see any position, and rows
    need no others beside them (`routing_block`)."""
    return isinstance(pool, KVPool) and geometry.sandwich is None and spec.routing_block is None


def carry_out(runner: Runner, asked: Move) -> None:
    """Fills the move's slots, before anything that is launched after it reads or writes any."""
    runner.everywhere(_fill, asked.sources, asked.targets, asked.shift)


def _fill(runner: Runner, all_sources: Ids, all_targets: Ids, shift: int) -> None:
    pool, model = runner.pool, runner.model
    assert isinstance(pool, KVPool), "keys and values of unlike layers are not moved"
    # The tables' frequencies are fixed, so that the row of a difference turns by just that; YaRN's amplitude is in the
    # keys already.
    amplitude = model.config.yarn.amplitude if model.config.yarn else 1.0
    cos, sin = (table[abs(shift)] / amplitude for table in (model.cos, model.sin))
    for first in range(0, len(all_sources), MOVED_AT_ONCE):
        some = slice(first, first + MOVED_AT_ONCE)
        upload = Upload(runner.device)
        sources, targets = (upload.add(slots[some]) for slots in (all_sources, all_targets))
        upload.send()
        move(pool, sources.tensor, targets.tensor, cos, -sin if shift < 0 else sin)
