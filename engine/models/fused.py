"""Parameters of ours that are several tensors of a checkpoint: where each of these goes.

Queries, keys and values are one parameter, and so are an MLP's gate and up. Families say what their tensors are called.
"""

from engine.models.layers import TransformerConfig
from engine.models.weights import Destination


def qkv_destinations(config: TransformerConfig, q: str, k: str, v: str, ours: str) -> dict[str, Destination]:
    """`q`, `k` and `v` are the checkpoint's names of three linear layers, `ours` is the one that they make.

    With biases where the config has them.
    """
    rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    places: dict[str, Destination] = {}
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        places |= {
            f"{q}.{kind}": Destination(f"{ours}.{kind}", 0, rows),
            f"{k}.{kind}": Destination(f"{ours}.{kind}", rows, kv_rows),
            f"{v}.{kind}": Destination(f"{ours}.{kind}", rows + kv_rows, kv_rows),
        }
    return places


def gate_up_destinations(
    gate: str, up: str, ours: str, ff_dim: int, expert: int | None = None
) -> dict[str, Destination]:
    """`gate` and `up` are the checkpoint's names of two weights [ff_dim, dim], `ours` is the one that they make.

    Of all experts' where `expert` is its number.
    """
    return {gate: Destination(ours, 0, ff_dim, expert), up: Destination(ours, ff_dim, ff_dim, expert)}
