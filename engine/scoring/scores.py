"""Turns target logits into proposed tokens and confidences, with one transfer to the host for the whole batch.

Knows what policies need, not which they are: `engine.unmask.policies` decides what becomes of a proposal.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.core.params import SamplingParams
from engine.core.plan import Logprobs, Needs, Scores, StepPlan
from engine.core.request import Floats, Ids, Mask, Request
from engine.kernels.proposals import best_token, log_odds
from engine.kernels.transfer import to_device
from engine.scoring.edits import Edit, edit, edits, is_edited
from engine.scoring.logprobs import Reported, num_reported, received
from engine.scoring.sampling import divide_by_temperature, draw, is_narrowed, narrow, parameters
from engine.scoring.slices import LazyLogits, Logits, TargetSlice, target_slices
from engine.scoring.top_tokens import Subset, most_probable


def score(
    logits: Logits,
    plans: Sequence[StepPlan],
    mask_id: int,
    needs: Sequence[Needs] = (),
    importance: Sequence[Tensor] = (),
) -> list[Scores]:
    """logits [targets of all plans, vocab] and what each plan needs -> one `Scores` per plan.

    `importance` has a tensor [canvas end] for each plan that asks for the rollout; they are only moved to the host with
    the rest.

    A token's log-odds are its logit minus the float32 log-sum-exp of all other logits, which include the mask token's;
    the mask token is never chosen. Logits are the model's after the request's edits. Temperature, top_p, top_k and
    min_p only affect the choice, as in LLaDA's sampler. But where a plan needs `processed` scores, log-odds are of the
    distribution that these parameters leave, and where it needs a `vocabulary`, over that part of the vocabulary.
    """
    needs = needs or [Needs()] * len(plans)
    if isinstance(logits, LazyLogits) and logits.is_fused:
        plain = [_is_plain(plan, need) for plan, need in zip(plans, needs, strict=True)]
        if all(plain):
            proposed = [logits.propose(targets.some, mask_id) for targets in target_slices(plans, needs)]
            return _received(proposed, plans, needs, importance)
        if any(plain):
            return _score_apart(logits, plain, plans, mask_id, needs, importance)
    num_top, with_entropy = num_reported(plans), any(need.entropy or need.margin for need in needs)
    asked = edits(plans)
    scored = [
        _score_slice(logits[targets.some], targets, asked, mask_id, with_entropy, num_top)
        for targets in target_slices(plans, needs)
    ]
    return _received(scored, plans, needs, importance, with_logprobs=num_top is not None)


def _is_plain(plan: StepPlan, need: Needs) -> bool:
    """Whether the best tokens and their log-odds are all that is asked of the plan's logits."""
    sampling = plan.request.sampling
    return need == Needs() and not sampling.temperature and sampling.logprobs is None and not is_edited(sampling)


def _score_apart(
    logits: LazyLogits,
    plain: Sequence[bool],
    plans: Sequence[StepPlan],
    mask_id: int,
    needs: Sequence[Needs],
    importance: Sequence[Tensor],
) -> list[Scores]:
    """`score`, of `plain` plans and of all others one after the other.

    What a request's targets go through then depends on itself alone: log-odds of the two ways differ in the last bits.
    """
    counts, rollouts = [len(plan.targets) for plan in plans], iter(importance)
    owned = [[next(rollouts)] if plan.rollout else [] for plan in plans]
    scores: dict[int, Scores] = {}
    for kind in (True, False):
        numbers = [number for number, is_plain in enumerate(plain) if is_plain == kind]
        own = score(
            logits.part(_rows(counts, (is_plain == kind for is_plain in plain))),
            [plans[number] for number in numbers],
            mask_id,
            [needs[number] for number in numbers],
            [rollout for number in numbers for rollout in owned[number]],
        )
        scores |= zip(numbers, own, strict=True)
    return [scores[number] for number in range(len(plans))]


def _score_slice(
    logits: Tensor,
    targets: TargetSlice,
    edits: Mapping[Request, Edit],
    mask_id: int,
    with_entropy: bool,
    num_top: int | None,
) -> list[Tensor]:
    """Columns [targets]: tokens, entropy and margin if `with_entropy`, log-odds; then `Reported.table`, if any."""
    _, plans, needs = targets
    counts = [len(plan.targets) for plan in plans]
    samplings = [plan.request.sampling for plan in plans]
    reported = Reported(logits, plans, num_top) if num_top is not None else None
    logits = logits.float()
    if edits:
        edit(logits, plans, edits)
    cut = _split_vocabulary(logits, counts, needs)
    tokens, odds = best_token(logits, mask_id) if cut is None else cut.best_token(logits, mask_id)
    if any(_is_shaped(sampling, need) for sampling, need in zip(samplings, needs, strict=True)):
        shaped = _apply_sampling(logits, tokens, plans, needs, mask_id)
        if cut is None:
            odds[_to(logits, shaped)] = log_odds(_some(logits, shaped), _some(tokens, shaped))
        else:
            odds = cut.log_odds(logits, tokens)
    columns = [tokens]
    if with_entropy:
        wanted = _rows(counts, (need.entropy or need.margin for need in needs))
        columns += _entropy_and_margin(logits, _to(logits, wanted), mask_id)
    columns.append(odds)
    if reported:
        columns.append(reported.table(tokens, mask_id))
    return columns


def _received(
    scored: Sequence[Sequence[Tensor]],
    plans: Sequence[StepPlan],
    needs: Sequence[Needs],
    importance: Sequence[Tensor],
    *,
    with_logprobs: bool = False,
) -> list[Scores]:
    """The columns of all slices, on the host, by plan."""
    host = _to_host([*zip(*scored, strict=True), *([one] for one in importance)])
    columns, rollouts = host[: len(scored[0])], host[len(scored[0]) :]
    logprobs = received(columns.pop(), plans) if with_logprobs else [None] * len(plans)
    return _scores(plans, needs, columns, rollouts, logprobs)


def _to_host(columns: Sequence[Sequence[Tensor]]) -> list[Floats]:
    """Joins each column's slices into one host array. The step's only device synchronisation.

    float64 holds every token id and every float32 exactly.
    """
    host = torch.cat([tensor.double().flatten() for column in columns for tensor in column]).cpu().numpy()
    arrays, start = [], 0
    for column in columns:
        end = start + sum(tensor.numel() for tensor in column)
        arrays.append(host[start:end].reshape(-1, *column[0].shape[1:]))
        start = end
    return arrays


def _scores(
    plans: Sequence[StepPlan],
    needs: Sequence[Needs],
    columns: Sequence[Floats],
    importance: Iterable[Floats],
    logprobs: Iterable[Logprobs | None],
) -> list[Scores]:
    """columns, each [targets of all plans]: tokens, entropy and margin if any plan needs them, log-odds."""
    tokens, *spread, log_odds = columns
    entropy, margin = spread or (None, None)
    scores, received, first = [], iter(importance), 0
    for plan, need, own in zip(plans, needs, logprobs, strict=True):
        some = slice(first, first + len(plan.targets))
        scores.append(
            Scores(
                plan.targets,
                tokens[some].astype(np.int64),
                log_odds[some],
                entropy[some] if entropy is not None and need.entropy else None,
                margin[some] if margin is not None and need.margin else None,
                next(received) if plan.rollout else None,
                own,
            )
        )
        first = some.stop
    return scores


class _VocabularySplit(NamedTuple):
    """Indices of the targets that are scored over a subset of the vocabulary, and of all others."""

    within: Tensor
    others: Tensor
    subset: Subset

    def best_token(self, logits: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
        tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        odds = torch.empty(len(logits), device=logits.device)
        tokens[self.within] = best = self.subset.best_token(mask_id)
        odds[self.within] = self.subset.log_odds(best)
        if len(self.others):
            tokens[self.others], odds[self.others] = best_token(logits[self.others], mask_id)
        return tokens, odds

    def log_odds(self, logits: Tensor, tokens: Tensor) -> Tensor:
        odds = torch.empty(len(logits), device=logits.device)
        odds[self.within] = self.subset.log_odds(tokens[self.within])
        if len(self.others):
            odds[self.others] = log_odds(logits[self.others], tokens[self.others])
        return odds


def _split_vocabulary(logits: Tensor, counts: Sequence[int], needs: Sequence[Needs]) -> _VocabularySplit | None:
    """None if all plans need the whole vocabulary."""
    sizes = np.repeat([need.vocabulary or 0 for need in needs], counts)
    within, others = np.flatnonzero(sizes), np.flatnonzero(sizes == 0)
    if not len(within):
        return None
    by_entropy = np.repeat([need.by_entropy for need in needs], counts)[within]
    at = _to(logits, within)
    subset = most_probable(
        logits[at] if len(others) else logits,
        _to(logits, sizes[within]),
        int(sizes.max()),
        _to(logits, by_entropy),
    )
    return _VocabularySplit(at, _to(logits, others), subset)


def _is_shaped(sampling: SamplingParams, need: Needs) -> bool:
    """Whether sampling parameters change tokens or scores. At temperature 0 they can only change probabilities."""
    narrows = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
    return sampling.temperature > 0 or (need.processed and narrows)


def _apply_sampling(
    logits: Tensor, tokens: Tensor, plans: Sequence[StepPlan], needs: Sequence[Needs], mask_id: int
) -> Ids:
    """Draws `tokens` where temperature > 0 and writes processed distributions into `logits`, both in place.

    Returns the indices of the targets where it may have done either.
    """
    counts = [len(plan.targets) for plan in plans]
    shaped = [_is_shaped(plan.request.sampling, need) for plan, need in zip(plans, needs, strict=True)]
    indices = _rows(counts, shaped)
    processed = np.repeat([need.processed for need in needs], counts)[indices]
    rows = parameters([plan for plan, is_shaped in zip(plans, shaped, strict=True) if is_shaped])
    own = _some(logits, indices)  # [shaped, vocab], never changed: it may be `logits`
    if len(narrowed := np.flatnonzero(is_narrowed(rows))):
        left = narrow(_some(own, narrowed), rows[narrowed], tokens[_to(logits, indices[narrowed])])
        own = left if len(left) == len(own) else own.index_copy(0, _to(logits, narrowed), left)
    if len(drawn := np.flatnonzero(rows["temperature"] > 0)):
        tokens[_to(logits, indices[drawn])] = draw(_some(own, drawn), rows[drawn], mask_id)
    if len(reported := np.flatnonzero(processed)):
        logits[_to(logits, indices[reported])] = divide_by_temperature(_some(own, reported), rows[reported])
    return indices


def _entropy_and_margin(logits: Tensor, rows: Tensor, mask_id: int) -> list[Tensor]:
    """Entropy and margin, each [targets] in float64 and NaN outside `rows`; `Scores` defines them.

    Sums are over all tokens but the best, relative to it, so that a sure model's small numbers stay precise.
    """
    entropy, margin = torch.full((2, len(logits)), torch.nan, dtype=torch.float64, device=logits.device)
    own = logits[rows]
    highest, best = own.max(dim=-1, keepdim=True)
    weights = own.sub_(highest).exp_().scatter_(-1, best, 0.0)  # [rows, vocab]
    others, second = weights.sum(dim=-1).double(), weights.amax(dim=-1).double()
    entropy[rows] = others.log1p() - torch.xlogy(weights, weights).sum(dim=-1).double() / (1.0 + others)
    lead = (1.0 - second) / (1.0 + others)
    margin[rows] = torch.where(best.squeeze(-1) == mask_id, -lead, lead)
    return [entropy, margin]


def _rows(counts: Sequence[int], wanted: Iterable[bool]) -> Ids:
    """Indices of the targets whose plan is `wanted`."""
    return np.flatnonzero(np.repeat(list(wanted), counts))


def _some(tensor: Tensor, indices: Ids) -> Tensor:
    """The tensor's rows at ascending `indices`: itself where that is all of them, else a copy."""
    return tensor if len(indices) == len(tensor) else tensor[_to(tensor, indices)]


def _to(like: Tensor, array: Ids | Mask) -> Tensor:
    return to_device(array, like.device)
