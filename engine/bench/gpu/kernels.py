"""Attention kernels against their definition, `attend_rows`, on the device, in the dtypes and KV formats it serves in.

A kernel is any `engine.kernels.attention.Kernel`. One that the engine may run on a GPU is a line in `kernels_on`.
Scoring is checked against torch's functions, as at every start.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from engine.bench.gpu.report import Outcome, Verdict
from engine.execution.batch import FlatBatch
from engine.kernels import proposals
from engine.kernels.attention import Kernel, Span, attend_rows, attend_spans
from engine.kernels.kv.formats import as_stored
from engine.kernels.transfer import Upload
from engine.kernels.triton_available import has_triton
from engine.models.layers import TransformerConfig

PAGE_SIZE = 32
SEQUENCES = ((1, 5, 1), (1, 700, 1), (32, 960, 32), (33, 97, 33), (16, 16, 16), (70, 300, 4), (64, 1100, 64))
"""Rows of a sequence, positions that the last of them sees, and rows that see the same: 4 is block-causal in fours."""
PADDING = 3
"""Rows that belong to no sequence."""
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
"""Of a row's result in one head: the largest distance to the definition, relative to its length. What bfloat16 rounds
is a third of it; TF32 products exceed that of float32."""

FORMATS = (
    ("float32", torch.float32, torch.float32),
    ("bfloat16", torch.bfloat16, torch.bfloat16),
    ("bfloat16, KV in int8", torch.bfloat16, torch.int8),
    ("bfloat16, KV in fp8", torch.bfloat16, torch.float8_e4m3fn),
)
"""Name, dtype of queries, and dtype of what the pool stores."""


def kernels_on(device: torch.device) -> Mapping[str, Kernel]:
    """Name -> each attention kernel that the engine may run there."""
    kernels: dict[str, Kernel] = {"sdpa": attend_spans}
    if device.type == "cuda" and has_triton():
        from engine.kernels.triton_attention import attend_pages

        kernels["triton"] = attend_pages
    return kernels


def check_scoring(device: torch.device) -> Outcome:
    """Triton's best tokens, log-odds and draws."""
    if device.type != "cuda" or not has_triton():
        return Outcome(Verdict.LEFT_OUT, "Triton's kernels are for CUDA", {})
    if proposals.triton() is None:
        return Outcome(Verdict.FAILED, "does not run, or differs from torch; the log has more", {})
    return Outcome(Verdict.OK, "gives what torch gives", {})


def check(
    kernel: Kernel, geometry: TransformerConfig, dtype: torch.dtype, stored: torch.dtype, device: torch.device
) -> Outcome:
    """One call over sequences of many lengths, whose pages lie scattered. `stored`: of keys and values."""
    error = largest_error(kernel, geometry, dtype, stored, device)
    fits = error <= TOLERANCE[dtype]  # NaN does not
    said = f"differs from its definition by {error:.1e}, at most {TOLERANCE[dtype]:.0e} are allowed"
    return Outcome(Verdict.OK if fits else Verdict.FAILED, said, {"error": error, "tolerance": TOLERANCE[dtype]})


@torch.inference_mode()
def largest_error(
    kernel: Kernel, geometry: TransformerConfig, dtype: torch.dtype, stored: torch.dtype, device: torch.device
) -> float:
    """Over all rows and heads: the distance to the definition, relative to the length of what that gives."""
    batch = _batch()
    rows, slots = len(batch.ids), int(batch.write_slots.max())
    upload = Upload(device)
    on_device = batch.add_to(upload)
    upload.send()
    layout = on_device().layout
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(dtype)

    q = normal(rows, geometry.num_heads, geometry.head_dim)
    shape = geometry.num_kv_heads, slots + 1, geometry.head_dim
    keys, values = (as_stored(normal(*shape), stored) for _ in range(2))
    theirs, ours = (attend(q, keys, values, layout)[: rows - PADDING].float() for attend in (kernel, attend_rows))
    return float(((theirs - ours).norm(dim=-1) / ours.norm(dim=-1)).max())


def _batch() -> FlatBatch:
    """`SEQUENCES` with pages in random order, and rows of padding. The dump is the last slot."""
    rng = np.random.default_rng(0)
    pages = [-(-visible // PAGE_SIZE) for _, visible, _ in SEQUENCES]
    order = np.split(rng.permutation(sum(pages)), np.cumsum(pages)[:-1])
    spans, positions, horizons, write_slots, start = [], [], [], [], 0
    for (rows, visible, alike), own in zip(SEQUENCES, order, strict=True):
        slots = (own[:, None] * PAGE_SIZE + np.arange(PAGE_SIZE)).flatten()
        spans.append(Span(start, start + rows, slots))
        position = np.arange(visible - rows, visible)
        positions.append(position)
        # The last row of each group ends what all of the group sees.
        horizons.append(np.minimum((np.arange(rows) // alike + 1) * alike, rows) + visible - rows)
        write_slots.append(slots[position])
        start += rows
    return FlatBatch(
        ids=np.zeros(start, np.int64),
        positions=np.concatenate(positions),
        write_slots=np.concatenate(write_slots),
        horizons=np.concatenate(horizons),
        logit_rows=np.zeros(1, np.int64),
        spans=tuple(spans),
        watched=(),
        page_size=PAGE_SIZE,
    ).padded(start + PADDING, sum(pages) * PAGE_SIZE)
