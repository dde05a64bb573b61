"""Edits of the model's logits that requests ask for: penalties, biases and bans, before tokens are proposed.

Edits are sparse: logits of tokens that a request does not name are not touched, and requests without edits cost
nothing. `SamplingParams` says what is changed, and in which order.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.core.arrays import Ids
from engine.core.params import SamplingParams, banned_everywhere
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.kernels.transfer import Upload, Uploaded, fill
from engine.scoring.bans import bans

LARGEST_PENALTY = 1e30
"""Repetition penalties are clipped to this and its inverse: float32 logits stay finite, and still far from others."""

GIVING_WAY = -1e4
"""The logit of a banned token where only banned ones may be valid: of a request with a constraint."""

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


class Own(NamedTuple):
    """How the tokens that stand at targets are edited there: a token is not penalised for where it stands itself."""

    positions: Ids
    """[own] of the canvas, ascending."""
    tokens: Ids
    penalties: NDArray[np.float32]
    added: NDArray[np.float32]

    def among(self, targets: Ids) -> tuple[NDArray[Any], ...]:
        """(indices into ascending targets, tokens, penalties, added) of those that are among the targets."""
        among = np.isin(self.positions, targets)
        indices = np.searchsorted(targets, self.positions[among])
        return indices, self.tokens[among], self.penalties[among], self.added[among]


class Edit(NamedTuple):
    """The edits of one request in one step, the same at all its targets but for the tokens that stand there."""

    tokens: Ids
    """[tokens] ids. Their logits are divided or multiplied by `penalties`, then increased by `added`."""
    penalties: NDArray[np.float32]
    added: NDArray[np.float32]
    allowed: Ids | None
    """Ids of the only tokens that may be drawn; None is all."""
    own: Own | None = None
    """Where decoded tokens are targets of a request with penalties."""


def edits(plans: Sequence[StepPlan]) -> dict[Request, Edit]:
    """The edits of all requests that ask for any. Called once a step, even if its targets are scored in slices."""
    return {plan.request: _edit(plan) for plan in plans if is_edited(plan.request.sampling)}


class Edits:
    """The edits of one slice of a step's targets: arrays that wait for the upload, then changes of logits in place."""

    def __init__(self, plans: Sequence[StepPlan], edits: Mapping[Request, Edit], upload: Upload) -> None:
        """`edits` are of the step; each plan's are as its own request asks."""
        starts = np.cumsum([0, *(len(plan.targets) for plan in plans)]).tolist()
        asked = [
            _Asked(plan, start, edits[plan.request])
            for plan, start in zip(plans, starts, strict=False)
            if plan.request in edits
        ]
        self._parts = list(_parts(asked, upload))

    def apply(self, logits: Tensor) -> None:
        """Changes float32 logits [targets of all plans, vocab] in place."""
        for part in self._parts:
            part.apply(logits)


class _Asked(NamedTuple):
    plan: StepPlan
    start: int
    """Index of the plan's first target among the targets of all plans."""
    edit: Edit


def _edit(plan: StepPlan) -> Edit:
    """Uses arrays over the vocabulary: to sort the tokens of a long canvas would take longer than the forward."""
    request = plan.request
    sampling, vocab, stops = request.sampling, request.spec.vocab_size, list(request.stop_ids)
    is_named, penalties, added = np.zeros(vocab, np.bool_), np.ones(vocab, np.float32), np.zeros(vocab, np.float32)
    if sampling.repetition_penalty != 1:
        is_named[request.ids[~request.masked]] = True
        is_named[stops] = False
        penalties[is_named] = np.clip(sampling.repetition_penalty, 1 / LARGEST_PENALTY, LARGEST_PENALTY)
    counts = None
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
    is_penalised = sampling.repetition_penalty != 1 or counts is not None
    return Edit(
        tokens,
        penalties[tokens],
        added[tokens],
        None if allowed is None else np.fromiter(allowed, np.int64, len(allowed)),
        _own(plan, penalties, added, counts) if request.block.replaces_tokens and is_penalised else None,
    )


def _own(plan: StepPlan, penalties: NDArray[np.float32], added: NDArray[np.float32], counts: Ids | None) -> Own:
    """`penalties` and `added` [vocab] of the request, without what a token's own place adds to its counts.

    `counts` [vocab] are of penalised tokens in the answer; None if no penalty is by them.
    """
    request, sampling = plan.request, plan.request.sampling
    positions = plan.targets[~request.masked[plan.targets]]
    tokens = request.ids[positions]
    own_penalties, own_added = penalties[tokens], added[tokens]
    if sampling.repetition_penalty != 1:
        is_only = np.bincount(request.ids[~request.masked])[tokens] == 1
        own_penalties[is_only] = 1
    if counts is not None:
        times = counts[tokens]
        given_back = sampling.frequency_penalty * (times > 0) + sampling.presence_penalty * (times == 1)
        own_added += given_back.astype(np.float32)
    return Own(positions, tokens, own_penalties, own_added)


class _Changes:
    """Penalties, biases and bans of single-token bad words, of all requests at once, as tables of one width."""

    def __init__(self, asked: Sequence[_Asked], upload: Upload) -> None:
        tables = [edit for _, _, edit in asked]
        width = max(len(edit.tokens) for edit in tables)

        def padded(rows: Sequence[NDArray[Any]]) -> Uploaded:
            """[tables, width]. Padded with each row's last entry: to write one value twice changes nothing."""
            return upload.add(np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows]))

        self._tokens = padded([edit.tokens for edit in tables])
        self._penalties = padded([edit.penalties for edit in tables])
        self._added = padded([edit.added for edit in tables])
        counts = [len(plan.targets) for plan, *_ in asked]
        targets = [np.arange(start, start + len(plan.targets)) for plan, start, _ in asked]
        self._targets = upload.add(np.concatenate(targets))
        self._table = upload.add(np.repeat(np.arange(len(tables)), counts))  # [targets] each one's table
        own = []
        for plan, start, edit in asked:
            if edit.own is not None:
                indices, *values = edit.own.among(plan.targets)
                own.append((start + indices, *values))
        self._own = [upload.add(np.concatenate(arrays)) for arrays in zip(*own, strict=True)]

    def apply(self, logits: Tensor) -> None:
        table = self._table.tensor
        at = self._targets.tensor[:, None], self._tokens.tensor[table]  # [targets, width]
        changed = _changed(logits[at], self._penalties.tensor[table], self._added.tensor[table])
        if self._own:
            targets, tokens, penalties, added = (each.tensor for each in self._own)
            own = _changed(logits[targets, tokens], penalties, added)
        logits[at] = changed
        if self._own:
            logits[targets, tokens] = own


def _changed(values: Tensor, penalties: Tensor, added: Tensor) -> Tensor:
    return torch.where(values > 0, values / penalties, values * penalties) + added


class _Allowed:
    """Requests that may draw some tokens only."""

    def __init__(self, asked: Sequence[_Asked], allowed: Sequence[Ids], upload: Upload) -> None:
        self._targets = [slice(start, start + len(plan.targets)) for plan, start, _ in asked]
        self._owners = upload.add(np.repeat(np.arange(len(allowed)), [len(ids) for ids in allowed]))
        self._tokens = upload.add(np.concatenate(allowed))

    def apply(self, logits: Tensor) -> None:
        others = torch.ones(len(self._targets), logits.shape[-1], dtype=torch.bool, device=logits.device)
        fill(others, (self._owners.tensor, self._tokens.tensor), False)
        for targets, other in zip(self._targets, others, strict=True):
            logits[targets].masked_fill_(other, -torch.inf)


class _Bans:
    """Tokens that `min_tokens` and bad words of several tokens rule out at single targets."""

    def __init__(self, targets: Ids, tokens: Ids, value: float, upload: Upload) -> None:
        self._targets, self._tokens, self._value = upload.add(targets), upload.add(tokens), value

    def apply(self, logits: Tensor) -> None:
        fill(logits, (self._targets.tensor, self._tokens.tensor), self._value)


def _parts(asked: Sequence[_Asked], upload: Upload) -> Iterator[_Changes | _Allowed | _Bans]:
    """What there is to do, in its order."""
    if changed := [each for each in asked if len(each.edit.tokens)]:
        yield _Changes(changed, upload)
    limited = [each for each in asked if each.edit.allowed is not None]
    if allowed := [each.edit.allowed for each in limited if each.edit.allowed is not None]:
        yield _Allowed(limited, allowed, upload)
    for value in (-np.inf, GIVING_WAY):
        rows, tokens = [], []
        for plan, start, _ in asked:
            sampling = plan.request.sampling
            gives_way = sampling.constraint is not None
            if (sampling.min_tokens or sampling.bad_words) and gives_way == (value == GIVING_WAY):
                indices, banned = bans(plan.request, plan.targets)
                rows.append(start + indices)
                tokens.append(banned)
        if any(len(part) for part in rows):
            yield _Bans(np.concatenate(rows), np.concatenate(tokens), value, upload)
