"""The transformer that every family so far is made of: RMSNorm, rotary attention, SwiGLU or experts, one output head.

It maps flat rows (ids, positions) to hidden rows. Batching, KV pages, cache and unmask policies stay outside:
the `context` argument computes attention from this step's queries, keys and values.
Sources: LLaDA (arXiv 2502.09992) and its Llama layout; RoPE (2104.09864); SwiGLU (2002.05202); GQA (2305.13245); norms
of queries and keys (Qwen3, 2505.09388).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.compiled import compiled
from engine.kernels.products import rotated
from engine.kernels.proposals import bytes_per_logit, fuses, head, propose
from engine.models.adapter import Adapter, AdapterConfig
from engine.models.experts import Experts, MoE, MoEConfig
from engine.models.mlp import MLP, Linear
from engine.models.rotary import QueryScaling, Yarn, rotary_table
from engine.models.sandwich import LayerHeads, SandwichConfig


class AttentionContext(Protocol):
    """Where a step's keys and values go, and what its queries may see."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [rows, heads, head_dim], k and v [rows, kv_heads, head_dim] (rotated) -> [rows, heads, head_dim]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """A geometry. Families fill it from their own `config.json` keys."""

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ff_dim: int
    """Width of a layer's MLP; of `moe.dense_layers` alone where there are experts."""
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMS norms over the numbers of each head of q and k, before rotation, as in Qwen3."""
    tied_head: bool = False
    rotary_dim: int | None = None
    """Numbers of each head that are rotated, from its first on; None is all of them."""
    moe: MoEConfig | None = None
    """The experts of its layers; None is one MLP in each."""
    yarn: Yarn | None = None
    query_scaling: QueryScaling | None = None
    draft_adapter: AdapterConfig | None = None
    """Of attention's output in all layers, for rows of drafts alone."""
    sandwich: SandwichConfig | None = None
    """Layers with norms on both sides of each part, for noised blocks; None is layers of this module."""

    @property
    def num_parameters(self) -> int:
        """All weights, embeddings and norms included."""
        moe = self.num_moe_layers * self.moe.layer_parameters(self.dim) if self.moe else 0
        return self._parameters_beside_moe + moe

    @property
    def num_active_parameters(self) -> int:
        """The weights that one row is multiplied by, and its embedding's table: of experts, those it goes through."""
        moe = self.num_moe_layers * self.moe.active_parameters(self.dim) if self.moe else 0
        return self._parameters_beside_moe + moe

    def heads_of(self, layer: int) -> LayerHeads:
        """The heads of keys and values of a layer."""
        if self.sandwich and layer in self.sandwich.full_layers:
            return LayerHeads(self.sandwich.full_kv_heads, self.sandwich.full_head_dim, projected=1)
        return LayerHeads(self.num_kv_heads, self.head_dim, projected=2)

    def window_of(self, layer: int) -> int | None:
        """Positions that a row sees at most in a layer; None is all that it may see."""
        return self.sandwich.window if self.sandwich and layer not in self.sandwich.full_layers else None

    @property
    def vector_numbers(self) -> int:
        """Numbers that a position of a noised block carries beside its token, for this step and for the next one."""
        return 2 * self.dim if self.sandwich else 0

    @property
    def num_moe_layers(self) -> int:
        """How many layers have experts."""
        return sum(map(self.has_experts, range(self.num_layers)))

    def has_experts(self, layer: int) -> bool:
        return self.moe is not None and layer not in self.moe.dense_layers

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all weights in this dtype; routers are float32 in any."""
        routers = self.num_moe_layers * self.moe.router_parameters(self.dim) if self.moe else 0
        return self.num_parameters * dtype.itemsize + routers * (torch.float32.itemsize - dtype.itemsize)

    @property
    def _parameters_beside_moe(self) -> int:
        if own := self.sandwich:
            heads = map(self.heads_of, range(self.num_layers))
            layers = sum(own.parameters(self.dim, self.ff_dim, self.num_heads, one) for one in heads)
            return layers + self.vocab_size * self.dim + 2 * self.dim + 3 * self.dim * self.ff_dim
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        attention = self.dim * qkv + self.num_heads * self.head_dim * self.dim + qkv * self.qkv_bias
        attention += 2 * self.head_dim * self.qk_norm
        if self.draft_adapter:
            attention += self.draft_adapter.parameters(self.num_heads * self.head_dim, self.dim)
        mlps = (self.num_layers - self.num_moe_layers) * 3 * self.dim * self.ff_dim
        tables = self.vocab_size * self.dim * (1 if self.tied_head else 2)
        return self.num_layers * (attention + 2 * self.dim) + mlps + tables + self.dim


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalises rows in float32 and multiplies by the weight in the input's dtype, as the published models do."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype) * weight


class RMSNorm(nn.Module):
    """`normalised` with a weight for each number of a row."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normalised(x, self.weight, self.eps)


class HeadNorms(nn.Module):
    """Norms of queries and of keys over each head's numbers, all heads in one pass; weights q and k [head_dim]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.eps = config.num_heads, config.num_kv_heads, config.norm_eps
        self.q = nn.Parameter(torch.empty(config.head_dim))
        self.k = nn.Parameter(torch.empty(config.head_dim))

    def forward(self, qk: Tensor) -> Tensor:
        """qk [rows, heads + kv_heads, head_dim], queries first."""
        weight = torch.cat((self.q.expand(self.num_heads, -1), self.k.expand(self.num_kv_heads, -1)))
        return normalised(qk, weight, self.eps)


class Attention(nn.Module):
    """Rotary attention with q, k and v from one fused product: weight rows [all q heads | k heads | v heads]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.qkv = Linear(config.dim, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, config.qkv_bias)
        self.norms = HeadNorms(config) if config.qk_norm else None
        self.out = Linear(self.num_heads * self.head_dim, config.dim)
        self.adapter = (
            Adapter(config.draft_adapter, self.num_heads * self.head_dim, config.dim) if config.draft_adapter else None
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as an `AttentionContext` takes them; q times `scale` [rows, 1, 1]. `out` is for its result."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # [rows, heads + 2 * kv_heads, head_dim]
        qk, v = qkv.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.norms is not None:
            qk = self.norms(qk)
        q, k = rotated(qk, cos, sin).split((self.num_heads, self.num_kv_heads), dim=1)
        return q if scale is None else q * scale.to(q.dtype), k, v


class Block(nn.Module):
    """One pre-norm transformer layer: what lies before attention over the context, and what lies after it."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        experts = config.moe if config.has_experts(layer) else None
        self.mlp = MoE(config.dim, experts) if experts else MLP(config.dim, config.ff_dim)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [rows, dim] -> q, k and v as `AttentionContext.attend` takes them."""
        return self.attention(self.attention_norm(x), cos, sin, scale)

    def after(self, x: Tensor, attended: Tensor, adapted: Tensor | None = None, blocks: Tensor | None = None) -> Tensor:
        """x [rows, dim], attended [rows, heads * head_dim], which rows go through the adapter, and the rows'
        `BlockRouting.blocks` -> [rows, dim].
        """
        x = x + self.attention.out(attended)
        if adapted is not None and self.attention.adapter is not None:
            x = x + self.attention.adapter(attended, adapted)
        normed = self.mlp_norm(x)
        return x + (self.mlp(normed, blocks) if isinstance(self.mlp, MoE) else self.mlp(normed))


class Parts(NamedTuple):
    """All of a forward but attention, as functions; two take any layer."""

    embed: Callable[..., Tensor]
    before: Callable[..., tuple[Tensor, Tensor, Tensor]]
    after: Callable[..., Tensor]
    score: Callable[..., Tensor]


class Transformer(nn.Module):
    """Rows of token ids at positions -> hidden rows; `logits` turns chosen hidden rows into scores.

    Parameters are uninitialised until `engine.models.weights` or a trainer fills them, and so are the rotary tables
    until `fill_tables`.
    """

    cos: Tensor
    sin: Tensor
    query_scale: Tensor | None
    """[max_positions, 1, 1] what queries are multiplied by, where the model has a `query_scaling`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.empty(config.vocab_size, config.dim))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tied_head else Linear(config.dim, config.vocab_size)
        # Not `rotary_table`: for a model without memory, its `arange` would import torch's compiler, for a second.
        for name in ("cos", "sin"):
            half = (config.rotary_dim or config.head_dim) // 2
            table = torch.empty(config.max_positions, 1, half, dtype=torch.float32)
            self.register_buffer(name, table, persistent=False)
        scale = torch.empty(config.max_positions, 1, 1, dtype=torch.float32) if config.query_scaling else None
        self.register_buffer("query_scale", scale, persistent=False)
        self.parts = Parts(Transformer.looked_up, Block.before, Block.after, Transformer.score)

    def fill_tables(self, device: torch.device | None = None) -> None:
        """Makes the rotary tables: on this device, or where tensors are made if none is given."""
        config = self.config
        tables = rotary_table(
            config.rotary_dim or config.head_dim, config.max_positions, config.rope_theta, config.yarn
        )
        self.cos, self.sin = (table.to(device) for table in tables)
        if config.query_scaling:
            self.query_scale = config.query_scaling.table(config.max_positions).to(device)

    def compile_parts(self) -> None:
        """Compiles the parts, for inference only: one graph each, for all layers and numbers of rows.

        A single row has its own graph: the compiler treats a size of 1 specially.
        """
        embed, before, after, score = self.parts
        self.parts = Parts(embed, compiled(before), compiled(after), compiled(score))

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        context: AttentionContext,
        wanted: Tensor | None = None,
        adapted: Tensor | None = None,
    ) -> Tensor:
        """ids and positions [rows] (int64) -> hidden [rows, dim], before the final norm.

        With `wanted` (int64 indices) of these rows alone: behind the last layer's attention, no other row is computed,
        unless rows are routed by blocks. Then rows hold whole ones (`BlockRouting.blocks`), there as well.
        Rows that are `adapted` (bool [rows, 1]) go through the `draft_adapter`, where the model has one.
        """
        x = self.parts.embed(self, ids)
        cos, sin = self.cos[positions], self.sin[positions]
        scale = None if self.query_scale is None else self.query_scale[positions]
        routing = self.config.moe and self.config.moe.block_routing
        blocks = routing.blocks(positions) if routing else None
        for layer, block in enumerate(self.blocks):
            q, k, v = self.parts.before(block, x, cos, sin, scale)
            attended = context.attend(layer, q, k, v).flatten(1)
            if wanted is not None and blocks is None and layer + 1 == len(self.blocks):
                x, attended = x[wanted], attended[wanted]
                adapted = None if adapted is None else adapted[wanted]
            x = self.parts.after(block, x, attended, adapted, blocks)
        return x if wanted is None or blocks is None else x[wanted]

    def looked_up(self, ids: Tensor) -> Tensor:
        """ids [rows] -> their embeddings [rows, dim]."""
        return F.embedding(ids, self.embed)

    def pack(self) -> None:
        """Reorders weights where that makes products faster. The model cannot be trained or saved afterwards."""
        for module in self.modules():
            if isinstance(module, Linear | Experts) and not (module is self.head and self.fuses):
                module.pack()

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [targets, dim] -> logits [targets, vocab_size]."""
        return self.parts.score(self, hidden)

    def score(self, hidden: Tensor) -> Tensor:
        """What `logits` runs, compiled or not."""
        return head(self.norm(hidden), self.head_weight)

    def propose(self, hidden: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """hidden [targets, dim] -> the best tokens [targets] but the mask, and their log-odds [targets]."""
        return propose(self.norm(hidden), self.head_weight, mask_id)

    @property
    def fuses(self) -> bool:
        """Whether `propose` never writes logits to memory; `pack` then leaves the head as it is."""
        return fuses(self.head_weight)

    @property
    def bytes_per_proposal(self) -> int:
        """Bytes that `propose` takes for each logit of the vocabulary."""
        return bytes_per_logit(self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """[vocab_size, dim]"""
        return self.embed if self.head is None else self.head.weight
