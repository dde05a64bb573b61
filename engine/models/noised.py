"""A transformer that reads a context causally and an open block in both directions, with `sandwich`'s layers.

Rows of the open block and all others go through the same weights but for a number in each layer. One of the block may
carry a vector beside its token: what the model thought of its position one step before. Source: DiffusionGemma's
published layout.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.compiled import linear
from engine.kernels.proposals import best_token
from engine.models.layers import AttentionContext, Parts, Transformer, TransformerConfig
from engine.models.sandwich import Norm, OpenRows, SandwichBlock, SelfConditioning, normed


class NoisedTransformer(Transformer):
    """As `Transformer`, of a config with `sandwich` and `moe`."""

    norm: Norm  # type: ignore[assignment]  # it multiplies in float32
    windowed: Tensor
    full: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        nn.Module.__init__(self)
        assert config.sandwich is not None
        assert config.moe is not None
        self.config, self.sandwich, dim, eps = config, config.sandwich, config.dim, config.norm_eps
        self.embed = nn.Parameter(torch.empty(config.vocab_size, dim))
        self.blocks = nn.ModuleList(
            SandwichBlock(dim, config.ff_dim, config.num_heads, config.heads_of(layer), config.moe, eps)
            for layer in range(config.num_layers)
        )
        self.conditioning = SelfConditioning(dim, config.ff_dim, config.moe.activation, eps)
        self.norm = Norm(dim, eps)
        self.head = None
        for name, head_dim in (("windowed", config.head_dim), ("full", self.sandwich.full_head_dim)):
            self.register_buffer(name, torch.empty(head_dim // 2, dtype=torch.float32), persistent=False)
        self.parts = Parts(Transformer.looked_up, SandwichBlock.before, SandwichBlock.after, NoisedTransformer.score)

    def fill_tables(self, device: torch.device | None = None) -> None:
        """The frequency of each pair of a head's numbers, in both kinds of layers."""
        own, config = self.sandwich, self.config
        pairs = config.head_dim // 2
        self.windowed = _frequencies(config.head_dim, config.rope_theta, pairs).to(device)
        self.full = _frequencies(own.full_head_dim, own.full_rope_theta, own.full_rotated_pairs).to(device)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        context: AttentionContext,
        wanted: Tensor | None = None,
        adapted: Tensor | None = None,
        open_rows: OpenRows | None = None,
    ) -> Tensor:
        """As `Transformer.forward`, without an adapter. Without `open_rows` none is."""
        assert adapted is None, "rows for an adapter, which no such model has"
        x = self.parts.embed(self, ids) * self._scale
        is_open = torch.zeros_like(ids, dtype=torch.bool) if open_rows is None else open_rows.is_open
        if open_rows is not None:
            inputs = normed(x + self.conditioning(open_rows.vectors), None, self.config.norm_eps)
            x = torch.where(is_open.unsqueeze(-1), inputs, x)
        rotations = [_rotation(positions, frequencies) for frequencies in (self.windowed, self.full)]
        for layer, block in enumerate(self.blocks):
            q, k, v = self.parts.before(block, x, *rotations[layer in self.sandwich.full_layers])
            attended = context.attend(layer, q, k, v).flatten(1)
            if wanted is not None and layer + 1 == len(self.blocks):
                x, attended, is_open = x[wanted], attended[wanted], is_open[wanted]
            x = self.parts.after(block, x, attended, is_open)
        return x

    def score(self, hidden: Tensor) -> Tensor:
        """float32 logits, capped."""
        cap = self.sandwich.softcap
        return cap * torch.tanh(linear(self.norm(hidden), self.embed).float() / cap)

    def propose(self, hidden: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        return best_token(self.logits(hidden), mask_id)

    def vectors(self, probabilities: Tensor) -> Tensor:
        """float32 probabilities [targets, vocab] of each position's token -> its mean embedding, [targets, dim]."""
        return linear(probabilities.to(self.embed.dtype), self.embed.T) * self._scale

    @property
    def fuses(self) -> bool:
        return False

    @property
    def bytes_per_proposal(self) -> int:
        return super().bytes_per_proposal + 3 * torch.float32.itemsize

    @property
    def _scale(self) -> Tensor:
        """What embeddings are multiplied by, rounded to their dtype."""
        return torch.tensor(self.config.dim**0.5, dtype=self.embed.dtype)


def _frequencies(head_dim: int, theta: float, pairs: int) -> Tensor:
    """[head_dim / 2] float32; pairs of a head's numbers behind the first `pairs` are not rotated."""
    exponents = torch.arange(0, 2 * pairs, 2, dtype=torch.float32) / head_dim
    return F.pad(1.0 / theta**exponents, (0, head_dim // 2 - pairs))


def _rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [rows, 1, pairs] in float32."""
    angles = torch.outer(positions.float(), frequencies).unsqueeze(1)
    return angles.cos(), angles.sin()
