"""What requests ask to be changed in the model's logits: penalties, biases and bans, before anything is made of them.

Sparse: what a request does not name is not touched, and requests that ask for nothing cost nothing. What is changed,
and in which order, is said in `SamplingParams`.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.bans import banned_everywhere, bans
from engine.params import SamplingParams
from engine.plan import StepPlan
from engine.request import Ids, Request
from engine.transfer import fill, to_device

LARGEST_PENALTY = 1e30
"""Repetition penalties are kept between this and its inverse: float32 logits stay finite, and still far from others."""


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
    """Whether the request asks for any edit: it is asked of everyone in every step."""
    return bool(_EDITS(sampling) != _NO_EDITS)


def edit(logits: Tensor, plans: Sequence[StepPlan]) -> None:
    """Changes float32 logits [targets of all plans, vocab] in place, each plan's as its own request asks."""
    starts = np.cumsum([0, *(len(plan.targets) for plan in plans)]).tolist()
    asked = [(plan, start) for plan, start in zip(plans, starts, strict=False) if is_edited(plan.request.sampling)]
    _change(logits, asked)
    _allow(logits, asked)
    _ban(logits, asked)


class _Changes(NamedTuple):
    """What becomes of some tokens' logits, at all targets of a request alike: divided or multiplied, then added to."""

    tokens: Ids
    penalties: NDArray[np.float32]
    added: NDArray[np.float32]


def _changes(request: Request) -> _Changes:
    sampling, stops = request.sampling, np.array(sorted(request.stop_ids), np.int64)
    seen = answer = counts = np.empty(0, np.int64)
    if sampling.repetition_penalty != 1:
        seen = np.setdiff1d(request.ids[~request.masked], stops)
    if sampling.presence_penalty or sampling.frequency_penalty:
        answer, counts = np.unique(np.array(request.history.tokens, np.int64), return_counts=True)
        is_text = ~np.isin(answer, stops)
        answer, counts = answer[is_text], counts[is_text]
    biased = np.array([token for token, _ in sampling.logit_bias], np.int64)
    never = np.array(sorted(banned_everywhere(sampling)), np.int64)
    tokens = np.unique(np.concatenate((seen, answer, biased, never)))
    penalties, added = np.ones(len(tokens), np.float32), np.zeros(len(tokens), np.float32)
    penalties[np.searchsorted(tokens, seen)] = np.clip(
        sampling.repetition_penalty, 1 / LARGEST_PENALTY, LARGEST_PENALTY
    )
    added[np.searchsorted(tokens, answer)] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    np.add.at(added, np.searchsorted(tokens, biased), [value for _, value in sampling.logit_bias])
    added[np.searchsorted(tokens, never)] = -np.inf
    return _Changes(tokens, penalties, added)


def _change(logits: Tensor, asked: Sequence[tuple[StepPlan, int]]) -> None:
    """Penalties, biases and bad words of one token: all requests' at once, as tables of one width."""
    tables = [(plan, start, _changes(plan.request)) for plan, start in asked]
    tables = [table for table in tables if len(table[2].tokens)]
    if not tables:
        return
    width = max(len(changes.tokens) for _, _, changes in tables)
    # Filled up with the last entry again: to write the same value twice changes nothing.
    columns = [np.stack([np.pad(c[i], (0, width - len(c[i])), mode="edge") for *_, c in tables]) for i in range(3)]
    tokens, penalties, added = (_to(logits, column) for column in columns)  # [tables, width]
    rows = np.concatenate([np.arange(start, start + len(plan.targets)) for plan, start, _ in tables])
    owners = np.repeat(np.arange(len(tables)), [len(plan.targets) for plan, *_ in tables])
    owner = _to(logits, owners)
    at = _to(logits, rows)[:, None], tokens[owner]
    values, penalty = logits[at], penalties[owner]
    logits[at] = torch.where(values > 0, values / penalty, values * penalty) + added[owner]


def _allow(logits: Tensor, asked: Sequence[tuple[StepPlan, int]]) -> None:
    limited = [(plan, start, plan.request.sampling.allowed_ids) for plan, start in asked]
    allowed = [np.fromiter(ids, np.int64, len(ids)) for *_, ids in limited if ids is not None]
    if not allowed:
        return
    owners = np.repeat(np.arange(len(allowed)), [len(ids) for ids in allowed])
    others = torch.ones(len(allowed), logits.shape[-1], dtype=torch.bool, device=logits.device)
    fill(others, (_to(logits, owners), _to(logits, np.concatenate(allowed))), False)
    limited = [each for each in limited if each[2] is not None]
    for (plan, start, _), other in zip(limited, others, strict=True):
        logits[start : start + len(plan.targets)].masked_fill_(other, -torch.inf)


def _ban(logits: Tensor, asked: Sequence[tuple[StepPlan, int]]) -> None:
    rows, tokens = [], []
    for plan, start in asked:
        if plan.request.sampling.min_tokens or plan.request.sampling.bad_words:
            indices, banned = bans(plan.request, plan.targets)
            rows.append(start + indices)
            tokens.append(banned)
    if any(len(part) for part in rows):
        fill(logits, (_to(logits, np.concatenate(rows)), _to(logits, np.concatenate(tokens))), -torch.inf)


def _to(like: Tensor, array: NDArray[np.generic]) -> Tensor:
    return to_device(array, like.device)
