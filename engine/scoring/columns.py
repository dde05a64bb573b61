"""Columns of scores for targets that are asked for more than their best token: edits, draws, entropies, logprobs.

One slice of a step's targets at a time. Its arrays wait for the step's upload. Knows requests' parameters and policies'
needs, but neither the host's `Scores` nor the transfer of the columns.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.core.params import SamplingParams
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs
from engine.kernels.proposals import best_token, log_odds
from engine.kernels.transfer import Upload, fill
from engine.scoring.constrained.classes import ClassSlice
from engine.scoring.edits import Edit, Edits
from engine.scoring.logprobs import Extent, Reported
from engine.scoring.sampling import Shaping, parameters
from engine.scoring.slices import Logits, Rows, TargetSlice, owned_by
from engine.scoring.top_tokens import Subset, most_probable


class ScoredSlice:
    """What is asked of one slice's targets."""

    def __init__(
        self,
        targets: TargetSlice,
        edits: Mapping[Request, Edit],
        extent: Extent | None,
        with_entropy: bool,
        num_without: int,
        classes: ClassSlice | None,
        upload: Upload,
    ) -> None:
        """`classes` are of the slice's constrained targets. All others are of the whole step.

        `num_without` is how many further proposals there are of each target, at most (`Needs.without`).
        """
        self.some, plans, needs = targets
        self.classes = classes
        counts = [len(plan.targets) for plan in plans]
        total = sum(counts)
        self._reported = Reported(plans, extent, upload) if extent else None
        self._edits = Edits(plans, edits, upload) if edits else None
        self._cut = VocabularyCut(counts, needs, upload) if any(need.vocabulary for need in needs) else None
        shaped = [_is_shaped(plan.request.sampling, need) for plan, need in zip(plans, needs, strict=True)]
        self._shaping = None
        if any(shaped):
            indices = owned_by(shaped, counts)
            processed = np.repeat([need.processed for need in needs], counts)[indices]
            rows = parameters([plan for plan, is_shaped in zip(plans, shaped, strict=True) if is_shaped])
            self._shaping = Shaping(rows, indices, processed, total, upload)
        self._spread = None
        if with_entropy:
            spread = [bool(need.entropy or need.margin or need.samples) for need in needs]
            self._spread = Rows(owned_by(spread, counts), total, upload)
        self._without = Without(plans, needs, num_without, upload) if num_without else None
        self._sampled = Sampled(plans, needs, upload) if any(need.samples for need in needs) else None

    def __call__(self, source: Logits, mask_id: int | None) -> tuple[list[Tensor], list[Tensor]]:
        """logits of all targets like it -> columns [targets], and those of `ClassSlice.reduced`.

        The first are tokens, entropy and margin if any target of the step needs them, samples if any of the slice does,
        and log-odds; then `Without.table` if any target of the step needs it, and `Reported.table` if any request asks
        for log-probabilities.
        """
        logits = source[self.some]
        raw = self.classes.unedited(logits) if self.classes else []
        unedited = self._reported.unedited(logits) if self._reported else None
        logits = logits.float()
        if self._edits:
            self._edits.apply(logits)
        reduced = self.classes.reduced(logits, raw, mask_id) if self.classes else []
        cut = self._cut.of(logits) if self._cut else None
        tokens, odds = cut.best_token(logits, mask_id) if cut else best_token(logits, mask_id)
        if shaping := self._shaping:
            shaping.apply(logits, tokens, mask_id)
            if cut:
                odds = cut.log_odds(logits, tokens)
            else:
                shaping.targets.put(odds, log_odds(shaping.targets.of(logits), shaping.targets.of(tokens)))
        columns = [tokens]
        samples = self._sampled.drawn(logits, source, self.some) if self._sampled else []
        if self._spread:
            columns += _entropy_and_margin(logits, self._spread, mask_id)
        columns += samples
        columns.append(odds)
        proposed = tokens.unsqueeze(-1)  # [targets, 1 + further ones]
        if self._without:
            further, their_odds = self._without.proposals(logits, tokens)
            columns.append(torch.cat((further.double(), their_odds.double()), dim=-1))
            proposed = torch.cat((proposed, further), dim=-1)
        if self._reported and unedited is not None:
            columns.append(self._reported.table(unedited, proposed, mask_id))
        return columns, reduced


class Without:
    """The targets that need further proposals, and the tokens that these leave out."""

    def __init__(self, plans: Sequence[StepPlan], needs: Sequence[Needs], count: int, upload: Upload) -> None:
        counts = [len(plan.targets) for plan in plans]
        wanted = [bool(need.without) for need in needs]
        self._rows, self._count = Rows(owned_by(wanted, counts), sum(counts), upload), count
        asked = [(plan.targets, need.without) for plan, need in zip(plans, needs, strict=True) if need.without]
        self._pairs = []
        for number in range(count):
            rows, tokens, start = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
            for targets, without in asked:
                if number < len(without):
                    at, left_out = without[number]
                    here = np.isin(at, targets)
                    rows.append(start + np.searchsorted(targets, at[here]))
                    tokens.append(left_out[here])
                start += len(targets)
            self._pairs.append((upload.add(np.concatenate(rows)), upload.add(np.concatenate(tokens))))

    def proposals(self, logits: Tensor, proposed: Tensor) -> tuple[Tensor, Tensor]:
        """logits [targets, vocab], proposed [targets] -> tokens and their log-odds, each [targets, count].

        Those of targets that need none mean nothing.
        """
        own, default = self._rows.of(logits), self._rows.of(proposed)
        tokens = torch.zeros(len(logits), self._count, dtype=torch.int64, device=logits.device)
        odds = torch.zeros(len(logits), self._count, dtype=logits.dtype, device=logits.device)
        for number, (rows, left_out) in enumerate(self._pairs):
            left = own.clone()
            fill(left, (rows.tensor, left_out.tensor), -torch.inf)
            best = torch.where(left.amax(dim=-1) > -torch.inf, best_token(left, None)[0], default)
            self._rows.put(tokens[:, number], best)
            self._rows.put(odds[:, number], log_odds(own, best))
        return tokens, odds


class Sampled:
    """The targets of which a token is drawn by numbers of the policy's (`Samples`)."""

    def __init__(self, plans: Sequence[StepPlan], needs: Sequence[Needs], upload: Upload) -> None:
        counts = [len(plan.targets) for plan in plans]
        indices = owned_by([need.samples is not None for need in needs], counts)
        self._rows = Rows(indices, sum(counts), upload)
        asked = [(plan.targets, need.samples) for plan, need in zip(plans, needs, strict=True) if need.samples]
        temperatures = [np.full(len(targets), samples.temperature) for targets, samples in asked]
        self._temperatures = upload.add(np.concatenate(temperatures))
        self._numbers = upload.add(np.concatenate([samples.uniform(targets) for targets, samples in asked]))

    def drawn(self, logits: Tensor, source: Logits, some: slice) -> list[Tensor]:
        """logits [targets, vocab] of `some`, divided by temperatures in place -> int64 [targets]; others are 0."""
        heated = self._rows.of(logits) / self._temperatures.tensor.float().unsqueeze(-1)
        self._rows.put(logits, heated)
        probabilities = heated.softmax(dim=-1)
        source.remember(some, self._rows, probabilities)
        cumulated = probabilities.double().cumsum(dim=-1)
        # Of the sum, which is 1 but for rounding: a token without probability is never drawn.
        numbers = self._numbers.tensor.unsqueeze(-1) * cumulated[:, -1:]
        found = torch.searchsorted(cumulated, numbers, right=True).squeeze(-1)
        samples = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        self._rows.put(samples, found.clamp(max=logits.shape[-1] - 1))
        return [samples]


class VocabularyCut:
    """Which targets are scored over a subset of the vocabulary."""

    def __init__(self, counts: Sequence[int], needs: Sequence[Needs], upload: Upload) -> None:
        sizes = np.repeat([need.vocabulary or 0 for need in needs], counts)
        within, others = np.flatnonzero(sizes), np.flatnonzero(sizes == 0)
        self.within, self.others = Rows(within, len(sizes), upload), Rows(others, len(sizes), upload)
        self.is_all = not len(others)
        self._sizes, self._largest = upload.add(sizes[within]), int(sizes.max())
        self._by_entropy = upload.add(np.repeat([need.by_entropy for need in needs], counts)[within])

    def of(self, logits: Tensor) -> "CutLogits":
        """logits [targets, vocab]"""
        own = self.within.of(logits)
        return CutLogits(self, most_probable(own, self._sizes.tensor, self._largest, self._by_entropy.tensor))


class CutLogits:
    """A `VocabularyCut` of some logits, before these are shaped."""

    def __init__(self, cut: VocabularyCut, subset: Subset) -> None:
        self._cut, self._subset = cut, subset

    def best_token(self, logits: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """As `proposals.best_token`, each target over its own part of the vocabulary."""
        best = self._subset.best_token(mask_id)
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        odds = torch.empty(len(logits), device=logits.device)
        if not self._cut.is_all:
            others, their_odds = best_token(self._cut.others.of(logits), mask_id)
            self._cut.others.put(tokens, others)
            self._cut.others.put(odds, their_odds)
        self._cut.within.put(tokens, best)
        self._cut.within.put(odds, self._subset.log_odds(best))
        return tokens, odds

    def log_odds(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """As `proposals.log_odds`, each target over its own part of the vocabulary."""
        odds = torch.empty(len(logits), device=logits.device)
        if not self._cut.is_all:
            others = self._cut.others
            others.put(odds, log_odds(others.of(logits), others.of(tokens)))
        self._cut.within.put(odds, self._subset.log_odds(self._cut.within.of(tokens)))
        return odds


def _is_shaped(sampling: SamplingParams, need: Needs) -> bool:
    """Whether sampling parameters change tokens or scores. At temperature 0 they can only change probabilities."""
    narrows = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
    return sampling.temperature > 0 or (need.processed and narrows)


def _entropy_and_margin(logits: Tensor, rows: Rows, mask_id: int | None) -> list[Tensor]:
    """Entropy and margin, each [targets] in float64 and NaN outside `rows`; `Scores` defines them.

    Sums are over all tokens but the best, relative to it, so that a sure model's small numbers stay precise.
    """
    entropy, margin = torch.full((2, len(logits)), torch.nan, dtype=torch.float64, device=logits.device)
    own = rows.of(logits)
    highest, best = own.max(dim=-1, keepdim=True)
    weights = (own - highest).exp_().scatter_(-1, best, 0.0)  # [rows, vocab]
    others, second = weights.sum(dim=-1).double(), weights.amax(dim=-1).double()
    rows.put(entropy, others.log1p() - torch.xlogy(weights, weights).sum(dim=-1).double() / (1.0 + others))
    lead = (1.0 - second) / (1.0 + others)
    if mask_id is not None:
        lead = torch.where(best.squeeze(-1) == mask_id, -lead, lead)
    rows.put(margin, lead)
    return [entropy, margin]
