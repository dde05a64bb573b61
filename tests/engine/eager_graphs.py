"""CUDA graphs without CUDA: what they would have recorded runs again at each replay, over the same buffers."""

import torch

from engine.execution.graphs import Captured
from engine.kernels.attention import Layout, Span, attend_spans


def rerun(work):
    """In the place of a capture, which computes nothing yet: what it returns is no number before the first replay."""
    hidden = torch.full_like(work(), torch.nan)
    return Captured(lambda: hidden.copy_(work()), hidden)


def by_tables(attend=attend_spans):
    """A kernel that takes what `attend` reads from page tables where there are any. All other rows are no numbers."""

    def attend_tables(q, keys, values, layout):
        if layout.paged is None:
            return attend(q, keys, values, layout)
        assert not layout.spans, "a graph has none"
        tiles, horizons, table, page_size = layout.paged
        slots = (table.long()[:, :, None] * page_size + torch.arange(page_size)).flatten(1).numpy()
        spans = [Span(first, first + count, slots[sequence]) for first, count, sequence in tiles.tolist() if count]
        out = torch.full_like(q, torch.nan)
        if spans:
            attended = attend(q, keys, values, Layout(horizons.long().numpy(), spans, q.device))
            for start, stop, _ in spans:
                out[start:stop] = attended[start:stop]
        return out

    return attend_tables
