"""Rotary position embeddings as data: frequencies, YaRN's stretching of them, and queries that grow with position.

Knows positions and heads, but no layer and no family. Sources: RoPE (arXiv 2104.09864); YaRN (2309.00071); the scaling
of queries at far positions (Llama 4, Ministral 3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """How frequencies change for contexts longer than those that a model was first trained on (YaRN)."""

    factor: float
    """Low frequencies are divided by it; below 1 it raises them."""
    original_positions: int
    """Positions of the first training."""
    beta_fast: float = 32.0
    """Frequencies that turn more often than this within the original positions stay as they are."""
    beta_slow: float = 1.0
    """Those that turn less often than this are divided by the whole factor; between the two, by a part of it."""
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by; 1 where both scales are equal."""
        return self._scale(self.mscale) / self._scale(self.mscale_all_dim)

    def _scale(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self, base: Tensor, theta: float) -> Tensor:
        """base [half], descending -> [half]."""
        half = len(base)

        def place(turns: float) -> float:
            """Where the frequency stands that turns so often within the original positions."""
            return half * math.log(self.original_positions / (turns * 2 * math.pi)) / math.log(theta)

        low, high = max(math.floor(place(self.beta_fast)), 0), min(math.ceil(place(self.beta_slow)), 2 * half - 1)
        ramp = ((torch.arange(half).float() - low) / (high - low if high != low else 0.001)).clamp(0, 1)
        return base / self.factor * ramp + base * (1 - ramp)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryScaling:
    """Queries are multiplied by 1 + beta * ln(1 + floor(position / original_positions)): by 1 before these end."""

    beta: float
    original_positions: int

    def table(self, max_positions: int) -> Tensor:
        """[max_positions, 1, 1] in float32."""
        spans = torch.arange(max_positions) // self.original_positions
        return (1.0 + self.beta * torch.log1p(spans.float())).view(-1, 1, 1)


def rotary_table(rotary_dim: int, max_positions: int, theta: float, yarn: Yarn | None) -> tuple[Tensor, Tensor]:
    """cos and sin [max_positions, 1, rotary_dim / 2] in float32."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies, amplitude = 1.0 / theta**exponents, 1.0
    if yarn is not None:
        frequencies, amplitude = yarn.frequencies(frequencies, theta), yarn.amplitude
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies).unsqueeze(1)
    if amplitude == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * amplitude, angles.sin() * amplitude
