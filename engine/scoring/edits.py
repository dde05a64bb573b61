"""Edits of the model's logits that requests ask for: penalties, biases and bans, before tokens are proposed.

Edits are sparse: logits of tokens that a request does not name are not touched, and requests without edits cost
nothing. `SamplingParams` says what is changed, and in which order.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.core.params import SamplingParams
from engine.core.plan import StepPlan
from engine.core.request import Ids, Request
from engine.kernels.transfer import fill, to_device
from engine.scoring.bans import banned_everywhere, bans

LARGEST_PENALTY = 1e30
"""Repetition penalties are clipped to this and its inverse: float32 logits stay finite, and still far from others."""


_EDITS = attrgetter(
    "allowed_ids",
    "bad_words",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
)
_NO_EDITS = _EDITS(SamplingParams(max_tokens=1))


def is_edited(sampling: SamplingParams) -> bool:
    """Whether the request asks for any edit. Called for every request in every step."""
    return bool(_EDITS(sampling) != _NO_EDITS)


class Edit(NamedTuple):
    """The edits of one request in one step that are the same at all its targets."""

    tokens: Ids
    """[tokens] ids. Their logits are divided or multiplied by `penalties`, then increased by `added`."""
    penalties: NDArray[np.float32]
    added: NDArray[np.float32]
    allowed: Ids | None
    """Ids of the only tokens that may be drawn; None is all."""


def edits(plans: Sequence[StepPlan]) -> dict[Request, Edit]:
    """The edits of all requests that ask for any. Called once a step, even if its targets are scored in slices."""
    return {plan.request: _edit(plan.request) for plan in plans if is_edited(plan.request.sampling)}


def edit(logits: Tensor, plans: Sequence[StepPlan], edits: Mapping[Request, Edit]) -> None:
    """Changes float32 logits [targets of all plans, vocab] in place, each plan's as its own request asks."""
    starts = np.cumsum([0, *(len(plan.targets) for plan in plans)]).tolist()
    asked = [
        _Asked(plan, start, edits[plan.request])
        for plan, start in zip(plans, starts, strict=False)
        if plan.request in edits
    ]
    _change(logits, [each for each in asked if len(each.edit.tokens)])
    _allow(logits, asked)
    _ban(logits, asked)


class _Asked(NamedTuple):
    plan: StepPlan
    start: int
    """Index of the plan's first target among the targets of all plans."""
    edit: Edit


def _edit(request: Request) -> Edit:
    """Uses arrays over the vocabulary: to sort the tokens of a long canvas would take longer than the forward."""
    sampling, vocab, stops = request.sampling, request.spec.vocab_size, list(request.stop_ids)
    is_named, penalties, added = np.zeros(vocab, np.bool_), np.ones(vocab, np.float32), np.zeros(vocab, np.float32)
    if sampling.repetition_penalty != 1:
        is_named[request.ids[~request.masked]] = True
        is_named[stops] = False
        penalties[is_named] = np.clip(sampling.repetition_penalty, 1 / LARGEST_PENALTY, LARGEST_PENALTY)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = np.bincount(request.decoded_tokens, minlength=vocab)
        counts[stops] = 0
        answer = np.flatnonzero(counts)
        is_named[answer] = True
        added[answer] -= sampling.presence_penalty + sampling.frequency_penalty * counts[answer]
    biased = [token for token, _ in sampling.logit_bias]
    is_named[biased] = True
    np.add.at(added, biased, [value for _, value in sampling.logit_bias])
    never = list(banned_everywhere(sampling))
    is_named[never], added[never] = True, -np.inf
    tokens = np.flatnonzero(is_named)
    allowed = sampling.allowed_ids
    return Edit(
        tokens,
        penalties[tokens],
        added[tokens],
        None if allowed is None else np.fromiter(allowed, np.int64, len(allowed)),
    )


def _change(logits: Tensor, tables: Sequence[_Asked]) -> None:
    """Applies penalties, biases and bans of single-token bad words, of all requests at once, as tables of one width."""
    if not tables:
        return
    width = max(len(edit.tokens) for *_, edit in tables)

    def padded(rows: Sequence[NDArray[Any]]) -> Tensor:
        """[tables, width]. Padded with each row's last entry: to write one value twice changes nothing."""
        return _to(logits, np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows]))

    tokens = padded([edit.tokens for *_, edit in tables])
    penalties = padded([edit.penalties for *_, edit in tables])
    added = padded([edit.added for *_, edit in tables])
    counts = [len(plan.targets) for plan, *_ in tables]
    targets = np.concatenate([np.arange(start, start + len(plan.targets)) for plan, start, _ in tables])
    table = _to(logits, np.repeat(np.arange(len(tables)), counts))  # [targets] each one's table
    at = _to(logits, targets)[:, None], tokens[table]  # [targets, width]
    values, penalty = logits[at], penalties[table]
    logits[at] = torch.where(values > 0, values / penalty, values * penalty) + added[table]


def _allow(logits: Tensor, asked: Sequence[_Asked]) -> None:
    limited = [each for each in asked if each.edit.allowed is not None]
    allowed = [each.edit.allowed for each in limited if each.edit.allowed is not None]
    if not allowed:
        return
    owners = np.repeat(np.arange(len(allowed)), [len(ids) for ids in allowed])
    others = torch.ones(len(allowed), logits.shape[-1], dtype=torch.bool, device=logits.device)
    fill(others, (_to(logits, owners), _to(logits, np.concatenate(allowed))), False)
    for (plan, start, _), other in zip(limited, others, strict=True):
        logits[start : start + len(plan.targets)].masked_fill_(other, -torch.inf)


def _ban(logits: Tensor, asked: Sequence[_Asked]) -> None:
    rows, tokens = [], []
    for plan, start, _ in asked:
        if plan.request.sampling.min_tokens or plan.request.sampling.bad_words:
            indices, banned = bans(plan.request, plan.targets)
            rows.append(start + indices)
            tokens.append(banned)
    if any(len(part) for part in rows):
        fill(logits, (_to(logits, np.concatenate(rows)), _to(logits, np.concatenate(tokens))), -torch.inf)


def _to(like: Tensor, array: NDArray[np.generic]) -> Tensor:
    return to_device(array, like.device)
