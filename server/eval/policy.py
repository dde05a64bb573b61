"""How a question is decoded: one combination of a cache policy, an unmask policy and their parameters."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import Any, Literal, NamedTuple, Self, get_args, get_type_hints

from engine import CACHES, UNMASKS, ConfigError, DiffusionParams, EngineConfig, KVDtype, Quantization

PARAMETERS: Mapping[str, str] = {
    "fixed": "tokens_per_step",
    "random": "tokens_per_step",
    "dream": "tokens_per_step",
    "threshold": "threshold",
    "factor": "factor",
}
"""The parameter that is swept for each unmask policy. Other policies have none."""

WINDOW = ("refresh_before", "refresh_after", "prompt_refresh")
"""Parameters that are swept for the cache policy `window`."""

CANVAS: Literal["canvas"] = "canvas"
"""A lookahead to the end of the canvas. In the API it is null."""

FREE = "free"
GUIDANCES: tuple[str, ...] = get_args(get_type_hints(DiffusionParams)["guidance"])
"""How a constraint may guide an answer; `FREE` is no constraint."""

KV_DTYPES: tuple[KVDtype, ...] = get_args(KVDtype)
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)


class KVFormat(NamedTuple):
    """How a local model stores keys and values: `kv_dtype` and `kv_prune` of `EngineConfig`."""

    dtype: KVDtype = "auto"
    prune: float = 0.0

    @classmethod
    def named(cls, text: str) -> Self:
        """Of a name: `int8`, or `int8/0.1` where `kv_prune` is 0.1. Raises ConfigError if there is none."""
        name, _, prune = text.partition("/")
        for dtype in KV_DTYPES:
            if dtype == name and re.fullmatch(r"(/0(\.\d+)?)?", text[len(name) :]):
                checked = EngineConfig(model="", kv_dtype=dtype, kv_prune=float(prune or 0))
                return cls(checked.kv_dtype, checked.kv_prune)
        raise ConfigError(f"{text!r} is no KV format; choose among {', '.join(KV_DTYPES)}, or prune as in int8/0.1")

    @property
    def label(self) -> str:
        return self.dtype + (f"/{self.prune:g}" if self.prune else "")


AS_COMPUTED = KVFormat()
"""In the weights' dtype."""

Lookahead = int | Literal["canvas"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPair:
    """A cache and an unmask policy with their parameters: fields of `diffusion`. None leaves a field to the server."""

    cache: str | None = None
    unmask: str | None = None
    value: float | None = None
    """Value of the unmask policy's parameter."""
    window: tuple[int, ...] = ()
    """Parameters of the cache policy `window`, in the order of `WINDOW`; empty leaves them at their defaults."""
    block_length: int | None = None
    lookahead: Lookahead | None = None
    guidance: str | None = None
    """How what the answer must be guides it, for questions that say so; None asks freely."""
    kv_format: KVFormat = AS_COMPUTED
    """How a local model stores keys and values; a server has its own way."""
    quantization: Quantization = "none"
    """How a local model stores weights, likewise."""
    kv_budget: int | None = None
    kv_buffer: int | None = None
    kv_score: str | None = None

    @property
    def parameter(self) -> str | None:
        return PARAMETERS.get(self.unmask or "")

    @property
    def cache_label(self) -> str:
        """Such as `window 32/64/0 +16 48 rkv:int8`: the parameters in the order of `WINDOW`, the lookahead, how many
        tokens are kept and by which score, the KV format. `dual, weights int8` where these are codes."""
        window = ["/".join(map(str, self.window))] if self.window else []
        lookahead = [f"+{self.lookahead}"] if self.lookahead is not None else []
        stored = f":{self.kv_format.label}" if self.kv_format != AS_COMPUTED else ""
        kept = [f"{self.kv_budget} {self.kv_score or DiffusionParams().kv_score}"] if self.kv_budget else []
        weights = f", weights {self.quantization}" if self.quantization != "none" else ""
        return " ".join([self.cache or "default", *window, *lookahead, *kept]) + stored + weights

    @property
    def label(self) -> str:
        """The unmask policy, its value and the guidance, such as `threshold 0.9 posterior`."""
        value = [f"{self.value:g}"] if self.value is not None else []
        return " ".join([self.unmask or "default", *value, *([self.guidance] if self.guidance else [])])

    def diffusion(self, max_tokens: int) -> dict[str, object]:
        """The fields that are not left to the server. `steps` follows from `tokens_per_step` and `max_tokens`.

        One token a step is a `steps` of null: whatever blocks the prompt and the canvas make.
        """
        fields: dict[str, object] = {"cache": self.cache, "unmask": self.unmask, "block_length": self.block_length}
        fields |= zip(WINDOW, self.window, strict=False)
        is_one_by_one = self.parameter == "tokens_per_step" and self.value == 1
        if self.parameter == "tokens_per_step":
            length = self.block_length or max_tokens
            canvas = -(-max_tokens // length) * length
            fields["steps"] = max(round(canvas / (self.value or 1)), 1)
        elif self.parameter and self.value is not None:
            fields[self.parameter] = self.value
        fields["lookahead"] = self.lookahead
        fields["guidance"] = self.guidance
        fields |= {"kv_budget": self.kv_budget, "kv_buffer": self.kv_buffer, "kv_score": self.kv_score}
        given = {name: value for name, value in fields.items() if value is not None}
        nulls = {"lookahead": self.lookahead == CANVAS, "steps": is_one_by_one}
        return given | dict.fromkeys(name for name, is_null in nulls.items() if is_null)


def exact(cache: str, block_length: int | None) -> PolicyPair:
    """The reference policy, to which those with this cache are compared: no stale rows, one token a step."""
    is_block_causal = cache in CACHES and CACHES[cache].attention == "block_causal"
    reference = "block" if is_block_causal else "none"
    return PolicyPair(cache=reference, unmask="fixed", value=1, block_length=block_length, lookahead=CANVAS)


def product(
    caches: Sequence[str],
    unmasks: Sequence[str],
    values: Mapping[str, Sequence[float]],
    block_length: int | None,
    windows: Mapping[str, Sequence[int]] | None = None,
    lookaheads: Sequence[Lookahead | None] = (None,),
    guidances: Sequence[str | None] = (None,),
    kv_formats: Sequence[KVFormat] = (AS_COMPUTED,),
    evictions: Sequence[Mapping[str, Any]] = ({},),
    quantizations: Sequence[Quantization] = ("none",),
) -> list[PolicyPair]:
    """Every cache with every unmask policy at each value of its parameter, in each format of weights, and of keys and
    values, with each of the `evictions`, which are `PolicyPair`'s fields.

    Raises ConfigError for unknown names.

    `windows` maps names of `WINDOW` to values; absent names keep their defaults, and so does a lookahead of None.
    """
    for name in caches:
        _check("cache", name, ("auto", *CACHES))
    for name in unmasks:
        _check("unmask", name, UNMASKS)
    return [
        PolicyPair(
            cache=cache,
            unmask=unmask,
            value=value,
            window=window,
            block_length=block_length,
            lookahead=lookahead,
            guidance=guidance,
            kv_format=kv_format,
            quantization=quantization,
            **eviction,
        )
        for cache in caches
        for lookahead in lookaheads
        for window in (_windows(windows) if cache == "window" and windows else [()])
        for unmask in unmasks
        for value in (values[PARAMETERS[unmask]] if unmask in PARAMETERS else [None])
        for guidance in guidances
        for quantization in quantizations
        for kv_format in kv_formats
        for eviction in evictions
    ]


def _windows(values: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    defaults = DiffusionParams()
    return list(combinations(*(values.get(name, [getattr(defaults, name)]) for name in WINDOW)))


def _check(axis: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigError(f"{name!r} is no {axis} policy; choose among {', '.join(known)}")
