"""A replica by a configuration of the engine: its machine, and what it may do at once by the engine's own rules."""

from engine.bench.simulate.machine import Machine, trained_block
from engine.bench.simulate.replica import Limits
from engine.bench.simulate.work import Decoding
from engine.core.config import EngineConfig, ModelSpec
from engine.core.errors import ConfigError
from engine.execution.choices import choose_max_batch_rows


def decoding_of(
    model: str,
    *,
    cache: str | None = None,
    lookahead: int | None = 32,
    block: int | None = None,
    tokens_per_forward: int | None = None,
) -> Decoding:
    """How a model's answers are decoded: by what it was trained for, where nothing else is asked.

    `lookahead` is of models that attend in both directions; None shows them the whole canvas. By default four tokens
    come from each forward, or half a block where that is less. Raises LoadError on a model that cannot be served,
    ConfigError on what does not fit it.
    """
    trained = trained_block(model)
    cache = cache or ("dual" if trained is None else "block")
    if (cache == "block") != (trained is not None):
        raise ConfigError(
            f"cache {cache!r} does not fit {model}, which "
            + ("attends in both directions" if trained is None else "is block-causal: it takes 'block'")
        )
    block = block or trained or 32
    if trained is None and lookahead is not None:
        cache = f"{cache}+{lookahead}"
    return Decoding(cache=cache, block=block, tokens_per_forward=tokens_per_forward or max(min(4, block // 2), 1))


def replica_of(
    config: EngineConfig, decoding: Decoding, hardware: str, *, devices: int = 1, efficiency: float = 0.5
) -> tuple[Machine, Limits]:
    """The machine of `config`'s replica and its limits, with the engine's defaults for what `config` leaves out.

    `config.max_model_len` must be set. Raises LoadError, and ConfigError if a canvas or a step does not fit.
    """
    assert config.max_model_len is not None, "limits of no context; this is a bug"
    spec = ModelSpec(
        family="simulated",
        vocab_size=1,
        mask_id=0,
        eos_ids=frozenset(),
        max_model_len=config.max_model_len,
        attention="block_causal" if decoding.is_block_causal else "full",
        block_length=decoding.block if decoding.is_block_causal else None,
    )
    max_batch_rows = choose_max_batch_rows(config, spec)
    machine = Machine(
        config.model,
        hardware,
        devices=devices,
        efficiency=efficiency,
        kv_dtype=config.kv_dtype,
        max_batch_rows=max_batch_rows,
    )
    canvas = -(-config.max_model_len // config.page_size) * config.page_size
    fits = machine.kv_tokens
    kv_tokens = config.kv_cache_tokens or min(fits, config.max_running_requests * canvas)
    if canvas > kv_tokens or kv_tokens > fits:
        asked = f"a canvas of max_model_len {config.max_model_len}" if canvas > kv_tokens else f"{kv_tokens} tokens"
        raise ConfigError(
            f"keys and values of {asked} do not fit: there is room for {min(kv_tokens, fits)} tokens on {devices} x "
            f"{hardware} beside the weights"
        )
    return machine, Limits(
        max_running=config.max_running_requests,
        max_queued=config.max_queued_requests,
        max_batch_rows=max_batch_rows,
        max_model_len=config.max_model_len,
        kv_tokens=kv_tokens,
        page_size=config.page_size,
    )
