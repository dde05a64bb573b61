"""Linear layers whose weights are codes, and what turns a model's layers into them: one by one, as they are loaded.

Of a model, the products of attention and of MLPs are quantised, which are most of a dense model. Embeddings, the head,
norms, routers, experts and adapters keep their numbers (docs/adr/041).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels.compiled import coded_linear
from engine.models.adapter import Adapter
from engine.models.layers import Transformer
from engine.models.mlp import Linear
from engine.models.quantised.schemes import Scheme


class QuantisedLinear(nn.Module):
    """As `Linear`, with a tensor of torchao's for a weight."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight: Any = nn.Parameter(weight, requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out], by the product of numbers that codes stand for."""
        if x.device.type == "cpu":
            # torchao would make numbers of the whole weight at once, and let the row count choose MKL's kernel.
            return coded_linear(x, self.weight.qdata, self.weight.scale, self.bias)
        return F.linear(x, self.weight, self.bias)


def quantised_weights(model: Transformer, scheme: Scheme | None) -> Iterator[tuple[str, Linear]]:
    """The layers whose weights become codes, by name. With None there are none."""
    if scheme is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            continue
        for own, child in module.named_children():
            is_product = isinstance(child, Linear) and child.dtype is None and child is not model.head
            if is_product and scheme.takes(*child.weight.shape):
                yield f"{name}.{own}", child


class Quantiser:
    """Gives a weight memory when its first tensor is read, and turns it into codes when its last one is.

    So a model that is loaded takes the memory of its codes, and of the layers that are not complete: mostly one.
    """

    def __init__(self, model: Transformer, scheme: Scheme, dtype: torch.dtype, device: torch.device) -> None:
        self._model, self._scheme, self._dtype, self._device = model, scheme, dtype, device

    def begin(self, weight: Tensor) -> Tensor:
        """Memory for the numbers of a weight that has none."""
        return torch.empty(weight.shape, dtype=self._dtype, device=self._device)

    def end(self, parameter: str, weight: Tensor) -> None:
        """Puts a layer with codes in the place of the one whose parameter this is."""
        name, _, _ = parameter.rpartition(".")
        parent, _, own = name.rpartition(".")
        layer = self._model.get_submodule(name)
        assert isinstance(layer, Linear)
        setattr(self._model.get_submodule(parent), own, QuantisedLinear(self._scheme.quantise(weight), layer.bias))
