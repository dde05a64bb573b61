"""`unmask serve --dry-run`: whether a model would fit, from its `config.json` alone. Loads and binds nothing."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from engine import ConfigError, DiffusionParams, EngineConfig, MemoryPlan, ModelSpec, plan_memory, resolved
from server.arguments import Parser
from server.settings.sources import add_dry_run, dashed
from server.units import parameters, size

GIB = 2**30
COMMON_MEMORIES = (24 * GIB, 48 * GIB, 80 * GIB, 141 * GIB)
"""Memories of common graphics cards, in bytes: the default of `--memory`."""


def take(argv: Sequence[str]) -> tuple[tuple[int, ...] | None, list[str]]:
    """The memories to plan for, in bytes, or None without `--dry-run`; and the other arguments. Raises ConfigError."""
    parser = Parser(add_help=False, allow_abbrev=False)
    add_dry_run(parser)
    given, rest = parser.parse_known_args([dashed(argument) for argument in argv])
    if not given.dry_run:
        if given.memory:
            raise ConfigError("--memory goes with --dry-run")
        return None, rest
    return (_bytes(given.memory),) if given.memory else COMMON_MEMORIES, rest


def show(
    config: EngineConfig, diffusion: DiffusionParams, spec: ModelSpec, memories: Sequence[int], console: Console
) -> None:
    """Prints the plan for each memory. `spec`: the model's. Raises what `plan_memory` raises."""
    plans = [plan_memory(config, memory, diffusion) for memory in memories]
    count, active = plans[0].num_parameters, plans[0].num_active_parameters
    of_a_token = f"{parameters(active)} of them for each token, " if active < count else ""
    console.print(
        f"{plans[0].model} ({plans[0].family}): {parameters(count)} parameters, {of_a_token}"
        f"canvases of {plans[0].max_model_len:,} tokens, steps of {plans[0].max_batch_rows:,} rows"
        + (f", weights of layers in {config.quantization}" if config.quantization != "none" else "")
        + (f", keys and values in {config.kv_dtype}" if config.kv_dtype != "auto" else "")
        + (f"; on {plans[0].num_devices} devices, of which each is planned" if plans[0].num_devices > 1 else ""),
        highlight=False,
        soft_wrap=True,
    )
    console.print(_table(plans, memories))
    diffusion = resolved(diffusion, spec)
    console.print(
        f"In brackets: how many run at once if half of each canvas is prompt, when blocks of {diffusion.block_length} "
        f"{_view(diffusion, spec)}",
        highlight=False,
        soft_wrap=True,
    )


def _view(diffusion: DiffusionParams, spec: ModelSpec) -> str:
    """What a block sees of the canvas behind it, in words."""
    if spec.is_block_causal:
        return "see nothing behind them"
    return "see all of their canvas" if diffusion.lookahead is None else f"look {diffusion.lookahead} positions ahead"


def _table(plans: Sequence[MemoryPlan], memories: Sequence[int]) -> Table:
    cards = (f"in {memory / GIB:g}\nGiB" for memory in memories)
    table = Table(title="Canvases that fit beside the rest")
    for title in ("dtype", "weights", "a step", "KV a\ntoken", *cards):
        table.add_column(title, overflow="fold")  # on a narrow terminal no digit is lost
    for dtype, footprint in plans[0].footprints.items():
        fits = (f"{each.canvases:,} ({each.openings:,})" for each in (plan.footprints[dtype] for plan in plans))
        sizes = (footprint.weight_bytes, footprint.step_bytes, footprint.kv_bytes_per_token)
        table.add_row(dtype, *map(size, sizes), *fits)
    return table


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:GiB|GB|G)?", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise ConfigError(f"--memory {text}: give GiB, as in --memory 80")
    return int(float(match[1]) * GIB)
