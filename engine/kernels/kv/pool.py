"""The tensors that hold keys and values of all slots."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.kv.formats import Quantised, Stored, is_quantised


class KVPool:
    """Keys (rotated) and values of every slot: two tensors [layers, kv_heads, slots + 1, head_dim].

    Of codes where `dtype` is int8 or float8_e4m3fn, with float32 scales [layers, kv_heads, slots + 1] beside them.
    The last slot is the dump: rows that pad a batch write there, and no row reads it.

    Heads come before slots, so that neighbouring slots of one head are contiguous. Keys are not transposed. Transposed
    keys are faster when one canvas fills the pool, but oneDNN has no kernel for a column slice of them: any smaller
    canvas would be about 1,000 times slower.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        prune: float = 0.0,
    ) -> None:
        self.dump = slots
        self.prune = prune
        """As in `formats.quantised`, of all that is written."""
        # A slot is written before a horizon reaches it.
        self.keys = torch.empty(layers, kv_heads, slots + 1, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self._scales: tuple[Tensor, Tensor] | None = None
        if is_quantised(dtype):
            scales = torch.empty(2, layers, kv_heads, slots + 1, dtype=torch.float32, device=device)
            self._scales = scales[0], scales[1]

    def layer(self, number: int) -> tuple[Stored, Stored]:
        """Keys and values of one layer, [kv_heads, slots + 1, head_dim] each."""
        keys, values = self.keys[number], self.values[number]
        if self._scales is None:
            return keys, values
        return Quantised(keys, self._scales[0][number]), Quantised(values, self._scales[1][number])

    def move(self, sources: Tensor, destinations: Tensor) -> None:
        """Copies keys and values of some slots (int64 indices) to as many others; those may be among the sources."""
        for tensor in (self.keys, self.values, *(self._scales or ())):
            # By their bytes: not every device indexes float8.
            for layer in tensor.view(torch.int8) if is_quantised(tensor.dtype) else tensor:
                layer.index_copy_(1, destinations, layer.index_select(1, sources))

    def clear(self, slots: Tensor) -> None:
        """Makes the values of these slots (int64 indices) zero.

        For kernels that give values beyond a horizon a weight of 0: 0 times NaN is NaN.
        """
        if self._scales is None:
            self.values.index_fill_(2, slots, 0)
        else:
            self.values.view(torch.int8).index_fill_(2, slots, 0)
            self._scales[1].index_fill_(2, slots, 0)

    @property
    def num_bytes(self) -> int:
        """Of all slots but the dump."""
        tensors = (self.keys, self.values, *(self._scales or ()))
        return sum(tensor[:, :, : self.dump].numel() * tensor.element_size() for tensor in tensors)


class LayeredKVPool:
    """As `KVPool`, for layers whose heads are not alike: tensors of their own for each layer."""

    def __init__(
        self,
        heads: Sequence[tuple[int, int]],
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        prune: float = 0.0,
    ) -> None:
        """`heads`: how many of keys and values each layer has, and numbers of each."""
        self.dump = slots
        self.prune = prune
        self._layers = [KVPool(1, slots, count, head_dim, dtype, device) for count, head_dim in heads]

    def layer(self, number: int) -> tuple[Stored, Stored]:
        """As `KVPool.layer`."""
        return self._layers[number].layer(0)

    def clear(self, slots: Tensor) -> None:
        """As `KVPool.clear`."""
        for layer in self._layers:
            layer.clear(slots)

    @property
    def num_bytes(self) -> int:
        """Of all slots but the dump."""
        return sum(layer.num_bytes for layer in self._layers)
