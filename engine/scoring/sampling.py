"""Applies sampling parameters to logits: selects which tokens may be drawn, and draws.

Works on many requests at once, each row with its own request's values. Knows no policy and nothing of confidence.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.core.arrays import Ids
from engine.core.noise import hashed
from engine.core.steps.plan import StepPlan
from engine.kernels import proposals
from engine.kernels.transfer import Upload
from engine.scoring.slices import Rows

_LEAST_HEAT = 1e-6
"""Lower temperatures above 0 are raised to this one, at which the best token is all but certain."""

Parameters = NDArray[np.void]
"""[rows] records of `_RECORD`: index it like an array, name a field for its column."""

_RECORD = np.dtype(
    [
        ("position", np.int64),
        ("step", np.int64),
        ("seed", np.int64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("top_k", np.int64),
        ("min_p", np.float32),
    ]
)
NARROWING = ("temperature", "top_p", "top_k", "min_p")
"""Fields that `narrow` reads."""
DRAWING = ("temperature", "seed", "position", "step")
"""Fields that `draw` reads, in the order of `proposals.draw`."""


def parameters(plans: Sequence[StepPlan]) -> Parameters:
    """One record for each target of all plans."""
    counts = [len(plan.targets) for plan in plans]
    records = np.empty(len(plans), _RECORD)
    for name in ("seed", "temperature", "top_p", "top_k", "min_p"):
        records[name] = [getattr(plan.request.sampling, name) for plan in plans]
    records["step"] = [plan.request.decoding_steps for plan in plans]
    records = np.repeat(records, counts)
    records["position"] = np.concatenate([plan.targets for plan in plans])
    return records


class Fields(Protocol):
    """Columns [rows] by the names of their fields."""

    def __getitem__(self, name: str, /) -> Tensor: ...


class Columns:
    """Fields of some rows' parameters, as tensors [rows] once the upload is sent."""

    def __init__(self, rows: Parameters, names: Sequence[str], upload: Upload) -> None:
        self._columns = {name: upload.add(rows[name].copy()) for name in names}

    def __getitem__(self, name: str) -> Tensor:
        return self._columns[name].tensor

    def of(self, some: slice) -> Mapping[str, Tensor]:
        """Of some of the rows."""
        return {name: column.tensor[some] for name, column in self._columns.items()}


class Shaping:
    """What sampling parameters do to targets of a slice: which tokens they draw, which distributions they leave."""

    def __init__(
        self, rows: Parameters, indices: Ids, processed: NDArray[np.bool_], total: int, upload: Upload
    ) -> None:
        """`rows` [shaped] of the targets `indices` [shaped] of `total`; `processed` [shaped] asks for such scores."""
        self.targets = Rows(indices, total, upload)
        narrowed = np.flatnonzero(is_narrowed(rows))
        drawn, scored = np.flatnonzero(rows["temperature"] > 0), np.flatnonzero(processed)
        self._narrowed, self._drawn, self._processed = (
            _Shaped(some, rows, names, indices, total, upload)
            for some, names in ((narrowed, NARROWING), (drawn, DRAWING), (scored, ("temperature",)))
        )

    def apply(self, logits: Tensor, tokens: Tensor, mask_id: int | None) -> None:
        """Draws `tokens` where temperature > 0, and writes processed distributions into `logits`, both in place."""
        own = self.targets.of(logits)  # [shaped, vocab], never changed: it may be `logits`
        if narrowed := self._narrowed:
            own = narrowed.rows.replaced(
                own, narrow(narrowed.rows.of(own), narrowed.parameters, narrowed.targets.of(tokens))
            )
        if drawn := self._drawn:
            drawn.targets.put(tokens, draw(drawn.rows.of(own), drawn.parameters, mask_id))
        if processed := self._processed:
            processed.targets.put(logits, divide_by_temperature(processed.rows.of(own), processed.parameters))


class _Shaped:
    """Some of a `Shaping`'s rows; false if there are none."""

    def __init__(
        self, some: Ids, rows: Parameters, names: Sequence[str], indices: Ids, total: int, upload: Upload
    ) -> None:
        self._is_any = len(some) > 0
        if self._is_any:
            self.parameters = Columns(rows[some], names, upload)
            self.rows, self.targets = Rows(some, len(rows), upload), Rows(indices[some], total, upload)

    def __bool__(self) -> bool:
        return self._is_any


def is_narrowed(rows: Parameters) -> NDArray[np.bool_]:
    """[rows] whether `narrow` would change them."""
    narrowed: NDArray[np.bool_] = (rows["top_p"] < 1) | (rows["top_k"] > 0) | (rows["min_p"] > 0)
    return narrowed


def narrow(logits: Tensor, rows: Fields, proposed: Tensor) -> Tensor:
    """logits [rows, vocab] with -inf for the tokens that their row's `top_p`, `top_k` and `min_p` exclude.

    The most probable tokens of softmax(logits / temperature) stay, up to the one that carries their sum past top_p. Of
    these, the first top_k stay, and of these, tokens at least min_p times as probable as the `proposed` token [rows],
    which is the best one unless that is the mask. Tokens as probable as the last of them stay, too: such ties are
    common in bfloat16, and the order of a sort must not decide. The proposed token always stays.
    """
    vocab = logits.shape[-1]
    ordered = logits.sort(dim=-1, descending=True).values
    total = (ordered / _heat(rows)).softmax(dim=-1).cumsum(dim=-1)
    top_p, top_k, min_p = (rows[name][:, None] for name in ("top_p", "top_k", "min_p"))
    # A sum of probabilities may round to more than 1, so that rows with a top_p of 1 are not compared.
    count = 1 + ((total <= top_p) | (top_p >= 1)).sum(dim=-1, keepdim=True)
    count = torch.where(top_k > 0, count.minimum(top_k), count).clamp(max=vocab)
    best = logits.gather(-1, proposed[:, None])
    least = ordered.gather(-1, count - 1).maximum(best + _heat(rows) * min_p.log()).minimum(best)
    return logits.masked_fill(logits < least, -torch.inf)


def divide_by_temperature(logits: Tensor, rows: Fields) -> Tensor:
    """logits [rows, vocab] divided by their row's temperature; where that is 0, as they are."""
    return logits / _heat(rows)


def draw(logits: Tensor, rows: Fields, mask_id: int | None) -> Tensor:
    """Draws tokens [rows] but the mask from softmax(logits / temperature). Noise depends on seed, position and step."""
    temperature, seeds, positions, steps = (rows[name] for name in DRAWING)
    return proposals.draw(logits, temperature, seeds, positions, steps, mask_id)


def noisy(logits: Tensor, rows: Fields, mask_id: int | None) -> Tensor:
    """logits [rows, vocab] + temperature * the noise of `draw`, of which it takes the largest."""
    temperature, seeds, positions, steps = (rows[name] for name in DRAWING)
    return proposals.noisy(logits, temperature, hashed(seeds, positions, steps), mask_id)


def _heat(rows: Fields) -> Tensor:
    """[rows, 1] divisors of logits: at least `_LEAST_HEAT`, so that quotients stay finite; 1 at temperature 0."""
    temperatures = rows["temperature"][:, None]
    return torch.where(temperatures > 0, temperatures.clamp(min=_LEAST_HEAT), 1.0)
