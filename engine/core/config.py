"""What is fixed when the engine starts: the user's `EngineConfig` and the model's `ModelSpec`.

Plain data with its own checks. Knows nothing of torch, requests or files.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from engine.core.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KVDtype = Literal["auto", "int8", "fp8"]
Attention = Literal["auto", "sdpa", "triton"]
Quantization = Literal["none", "int8", "int4", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything about the engine that a user may set. Raises ConfigError on values that cannot work."""

    model: str
    """A folder with `config.json` and safetensors, or a hub id."""
    revision: str | None = None
    """Hub branch, tag or commit; ignored for a folder."""
    device: str = "auto"
    """`cpu`, `cuda` or `cuda:N`; `auto` takes CUDA where there is one."""
    dtype: Dtype = "auto"
    """Of weights; `auto` is bfloat16 on CUDA and float32 on the CPU."""
    quantization: Quantization = "none"
    """How weights of attention and MLPs are stored, by torchao: `int8` and `fp8` (e4m3) in a byte with a scale for each
    row, `int4` in half a byte with one for 128 numbers. `int4` and `fp8` need CUDA. Embeddings, head and experts keep
    their dtype, and so does what is computed."""
    kv_dtype: KVDtype = "auto"
    """How the pool stores keys and values: `auto` in the weights' dtype; `int8` or `fp8` (e4m3) as codes of one byte
    with a scale for each head of a token, which takes about half of what bfloat16 does."""
    kv_prune: float = 0.0
    """Numbers of a key or a value below this share of its largest magnitude are stored as 0; needs `kv_dtype` int8 or
    fp8. Takes no less memory: zeros are stored as other codes are."""
    attention: Attention = "auto"
    """`triton` attends to all requests in one call over their page tables, on CUDA; `sdpa` request by request, and on a
    float32 CPU with a C++ compiler to all of them in one call. `auto` is `triton` on CUDA if it works there."""
    tensor_parallel_size: int = 1
    """Processes that compute the model together, each with its part of the weights, keys and values: a CUDA device for
    each, from cuda:0 on, or all on this CPU. It must divide the model's heads, widths and vocabulary."""
    compile: bool = False
    """Compile what a layer does beside attention, and the head, at start; needs a C++ compiler on the machine."""
    cuda_graphs: bool = True
    """Capture small steps at start, and launch each of them at once; on CUDA with attention by Triton."""
    num_threads: int | None = None
    """CPU threads of torch; None is one for models under 10 M parameters, else torch's own choice."""
    max_model_len: int | None = None
    """Longest prompt plus canvas, in tokens; None takes the model's own limit."""
    max_batch_rows: int | None = None
    """Rows that one forward may compute: at least a refresh of `max_model_len` with a block of 32 beside it for each of
    `max_running_requests`, or two blocks for each where the model is block-causal. None takes that, or 2,048."""
    max_running_requests: int = 64
    """Requests that may hold KV pages at once."""
    max_queued_requests: int = 256
    """Requests that may wait; one more is refused."""
    page_size: int = 32
    """Tokens per KV page."""
    kv_cache_tokens: int | None = None
    """Size of the KV pool in tokens; None sizes it from the memory at hand."""
    prefix_caching: bool = True
    """Share keys and values of equal tokens that requests begin with, which block-causal models allow; other models
    compute them for each request."""
    relay_tokens: int = 0
    """Tokens of ended answers, with their prompts, whose keys and values stay in the pool for requests that name them
    (`relay_from`), as long as nobody needs the pages; 0 is none. See docs/adr/039."""
    memory_fraction: float | None = None
    """Share of the device's memory for weights, the largest step and the KV pool, which gets what the others leave;
    None is 0.9 on CUDA, else 0.5. With `kv_cache_tokens` it says nothing."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device is {self.device!r}; it must be auto, cpu, cuda, or one of several as in cuda:1")
        literals = {
            "dtype": get_args(Dtype),
            "quantization": get_args(Quantization),
            "kv_dtype": get_args(KVDtype),
            "attention": get_args(Attention),
        }
        for name, choices in literals.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if not 0.0 <= self.kv_prune < 1.0:
            raise ConfigError(f"kv_prune is {self.kv_prune}; it must lie in [0, 1)")
        if self.kv_prune and self.kv_dtype == "auto":
            raise ConfigError(f"kv_prune is {self.kv_prune}, which needs kv_dtype int8 or fp8; it is 'auto'")
        for name in ("tensor_parallel_size", "max_running_requests", "max_queued_requests", "page_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_threads", "max_model_len", "max_batch_rows", "kv_cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1, or unset")
        if self.relay_tokens < 0:
            raise ConfigError(f"relay_tokens is {self.relay_tokens}; it must be at least 0")
        if self.tensor_parallel_size > 1 and ":" in self.device:
            raise ConfigError(
                f"device is {self.device!r}, but tensor_parallel_size is {self.tensor_parallel_size}, which takes the "
                "devices from cuda:0 on; leave the number out"
            )
        if self.tensor_parallel_size > 1 and self.compile:
            raise ConfigError(
                f"compile is true, and tensor_parallel_size is {self.tensor_parallel_size}: sums over ranks are not "
                "compiled; leave one of them out"
            )
        if self.tensor_parallel_size > 1 and self.quantization != "none":
            raise ConfigError(
                f"quantization is {self.quantization!r}, and tensor_parallel_size is {self.tensor_parallel_size}: "
                "parts of weights are not stored in codes; leave one of them out"
            )
        if self.memory_fraction is not None and not 0.0 < self.memory_fraction <= 1.0:
            raise ConfigError(f"memory_fraction is {self.memory_fraction}; it must lie in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What decoding needs to know of a model. Family differences are data here, never an `if` elsewhere."""

    family: str
    """Its name in `engine.models.FAMILIES`, mostly the `model_type` of its `config.json`."""
    vocab_size: int
    """Rows of the output head."""
    mask_id: int | None
    """The token a masked position shows to the model; never chosen as an output. None is a model without a mask: such
    positions show random tokens, which each step draws anew (`UnmaskPolicy.renews`)."""
    eos_ids: frozenset[int]
    """Tokens that end an answer."""
    max_model_len: int
    """Longest prompt plus canvas, in tokens: the model's own limit, or less where it is served with less."""
    shift: int = 0
    """The logits of the token at position t come from row t - shift; those of the first tokens from row 0."""
    attention: Literal["full", "block_causal"] = "full"
    """Every row sees the whole canvas (full), or only what stands up to the end of its block (block-causal)."""
    commit: Literal["block", "causal"] = "block"
    """What a finished row of a block-causal model sees, when its keys and values are kept: what stands up to the end of
    its block, or up to itself, as in an autoregressive model. The open block's rows see all of it in either."""
    block_length: int | None = None
    """The block that a block-causal checkpoint was trained with, in tokens; None for full attention."""
    says_next: bool = False
    """Whether finished rows of a model that commits causally say the next token, as an autoregressive model's do."""
    has_draft_adapter: bool = False
    """Whether its weights have an adapter that rows of drafts may go through."""
    window: int | None = None
    """Positions that a row sees in layers that see no more; on an open block, so many less one before the block, and
    all of the block. None is no such layer."""
    routing_block: int | None = None
    """Positions whose experts are chosen together: a row's depend on all rows of its routing block, which is therefore
    always computed whole. Blocks are multiples of it. None where a row's experts depend on that row alone."""
    delete_id: int | None = None
    """The token that, decoded, asks for its own place to go; None where the model has none."""
    split_id: int | None = None
    """The token that, decoded, asks for a masked place before the token that stood where it was decoded."""
    strict_threshold: bool = False
    """A confidence must exceed the threshold; if not, reaching it is enough."""

    @property
    def is_block_causal(self) -> bool:
        """Whether rows see nothing behind their block, so that keys and values of a decoded block are final."""
        return self.attention == "block_causal"

    @property
    def never_drawn(self) -> frozenset[int]:
        """Tokens that no answer holds: the mask."""
        return frozenset() if self.mask_id is None else frozenset({self.mask_id})

    @property
    def commits_causally(self) -> bool:
        """Whether a finished row sees nothing behind itself."""
        return self.is_block_causal and self.commit == "causal"

    @property
    def has_grid(self) -> bool:
        """Whether blocks are multiples of their length, from the first position on."""
        return self.is_block_causal and not self.commits_causally
