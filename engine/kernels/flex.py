"""Paged attention in one launch for a whole batch: FlexAttention, compiled, over the page table.

A third kernel beside `attend_rows` and `attend_segments`, with the same contract. Meant for CUDA, where one call for
each segment is expensive. It gathers no keys: each block of query rows lists the pages that it sees. The page that ends
behind the horizon is read whole, so that no slot of the pool may hold NaN. Sources: FlexAttention (arXiv 2412.05496),
PagedAttention (2309.06180).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from engine.kernels.attention import Segment
from engine.kernels.transfer import to_device

ROWS = 32
"""Query rows of a block; a segment is padded to whole ones, so that all rows of a block see the same keys."""


class Layout(NamedTuple):
    """One step's segments as FlexAttention takes them."""

    segments: Sequence[Segment]
    padded: Tensor
    """int64 [blocks * ROWS] the row that each padded row repeats."""
    rows: Tensor
    """int64 [rows] the rows of the segments."""
    places: Tensor
    """int64 [rows] index of each of them among the padded rows."""
    mask: BlockMask


class FlexKernel:
    """An `engine.kernels.attention.Kernel` for pools with this page size and batches of at most `max_rows` rows.

    All layers of a step pass the same segments, so the layout of the last segments is kept.
    """

    def __init__(self, page_size: int, max_rows: int) -> None:
        self.page_size = page_size
        self.max_rows = max_rows
        self._attend = torch.compile(flex_attention, fullgraph=True)
        self._layout: Layout | None = None

    def __call__(self, q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
        out = torch.empty_like(q)
        if not segments:
            return out
        if self._layout is None or self._layout.segments is not segments:
            self._layout = _lay_out(segments, keys.shape[1], self.page_size, self.max_rows, q.device)
        layout = self._layout
        attended = self._attend(
            q[layout.padded].transpose(0, 1).unsqueeze(0),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            block_mask=layout.mask,
            enable_gqa=q.shape[1] != len(keys),
            kernel_options=_options(self.page_size, q.device),
        )  # [1, heads, blocks * ROWS, head_dim]
        out[layout.rows] = attended[0].transpose(0, 1)[layout.places]
        return out


def largest_tile(page_size: int) -> int:
    """Keys that a CUDA kernel takes at once: a power of two that divides `page_size`. The kernel needs at least 16."""
    return min(page_size & -page_size, 128)


def _options(page_size: int, device: torch.device) -> FlexKernelOptions | None:
    return {"BLOCK_M": ROWS, "BLOCK_N": largest_tile(page_size)} if device.type == "cuda" else None


def _lay_out(segments: Sequence[Segment], slots: int, page_size: int, max_rows: int, device: torch.device) -> Layout:
    counts = np.array([segment.stop - segment.start for segment in segments])
    starts = np.array([segment.start for segment in segments])
    blocks = -(-counts // ROWS)
    first = (np.cumsum(blocks) - blocks) * ROWS  # each segment's first padded row
    of_padded = np.repeat(np.arange(len(segments)), blocks * ROWS)
    padded = np.minimum(np.arange(len(of_padded)) - first[of_padded], counts[of_padded] - 1) + starts[of_padded]
    of_row = np.repeat(np.arange(len(segments)), counts)
    offsets = np.arange(len(of_row)) - (np.cumsum(counts) - counts)[of_row]
    return Layout(
        segments,
        to_device(padded, device),
        to_device(starts[of_row] + offsets, device),
        to_device(first[of_row] + offsets, device),
        _mask(segments, blocks, slots, page_size, max_rows, device),
    )


def _mask(
    segments: Sequence[Segment],
    blocks: np.typing.NDArray[np.int64],
    slots: int,
    page_size: int,
    max_rows: int,
    device: torch.device,
) -> BlockMask:
    """For each block of rows: the pages that it sees whole, and the page, if any, whose beginning it sees."""
    visible = np.array([_length(segment.visible) for segment in segments])
    whole, rest = np.divmod(visible, page_size)
    width = slots // page_size  # the CPU kernel takes the number of keys from it
    table = torch.zeros(len(segments), width, dtype=torch.int32, device=device)
    for row, segment in zip(table, segments, strict=True):
        pages = _pages(segment.visible, page_size, device)
        row[: len(pages)] = pages
    of_block = to_device(np.repeat(np.arange(len(segments)), blocks), device)
    table = table[of_block]  # int32 [blocks, width]
    num_whole, num_rest = (to_device(part.astype(np.int32), device)[of_block] for part in (whole, rest))
    partial = torch.zeros_like(table)
    last = num_whole.long().clamp(max=width - 1)
    partial[:, 0] = table.gather(1, last[:, None]).squeeze(1)

    # Padded to `max_rows`, so that its shape never changes and nothing is compiled again.
    remainder = torch.zeros(max_rows, dtype=torch.int32, device=device)
    remainder[: len(of_block)] = num_rest

    def sees(batch: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's call
        return slot % page_size < remainder[row // ROWS]

    return BlockMask.from_kv_blocks(
        (num_rest > 0).int()[None, None],
        partial[None, None],
        num_whole[None, None],
        table[None, None],
        BLOCK_SIZE=(ROWS, page_size),
        mask_mod=sees,
        seq_lengths=(len(of_block) * ROWS, slots),
        compute_q_blocks=False,  # only gradients need them
    )


def _length(visible: slice | Tensor) -> int:
    return visible.stop - visible.start if isinstance(visible, slice) else len(visible)


def _pages(visible: slice | Tensor, page_size: int, device: torch.device) -> Tensor:
    """Pages [pages] in the order of positions; a sequence begins at the start of one."""
    if isinstance(visible, slice):
        return torch.arange(visible.start // page_size, -(-visible.stop // page_size), device=device)
    return visible[::page_size] // page_size
