"""Insertion and deletion of tokens (LLaDA2.2): a step fills masks, replaces tokens, and decodes two kinds of edits.

A place where DELETE is decoded goes; where SPLIT is decoded, a mask comes before the token that stood there. What comes
behind moves, and the block keeps its length: it is cut, or filled up with masks. These steps are SGLang's
(`JointThresholdInDel`); the model's own release has others (docs/models.md).
"""

from typing import NamedTuple

import numpy as np

from engine.core.arrays import Floats, Ids, Mask
from engine.core.config import ModelSpec
from engine.core.ranking import top
from engine.core.requests.block import BlockEdits
from engine.core.requests.request import Request
from engine.core.steps.choice import Rewritten
from engine.core.steps.policies import UnmaskPolicy
from engine.core.steps.scores import Needs, Scores

_PLAIN, _TRIED = 0, 1
"""Indices into `Scores.without`: without mask, DELETE and SPLIT; without what has been tried at a place."""


class InsertDelete(UnmaskPolicy):
    """Fills masks that exceed the threshold; there is one at least, and one more for each that an edit has made.

    Once no mask is left of those that the block opened with, all others are filled, and `max_post_steps` may follow. A
    token becomes another one whose confidence exceeds `editing_threshold`. The last step decodes neither DELETE nor
    SPLIT. A block that a step has already begun with takes another token at the least confident place.
    """

    replaces_tokens = True
    moves_tokens = True

    def fits(self, spec: ModelSpec) -> bool:
        """Block-causal models whose vocabulary has both tokens."""
        has_edits = spec.delete_id is not None and spec.split_id is not None
        return super().fits(spec) and has_edits and spec.is_block_causal and not spec.shift

    def is_done(self, request: Request) -> bool:
        return request.block.is_settled

    def needs(self, request: Request) -> Needs:
        targets, edits, ids = request.targets, _edits(request), _Ids.of(request.spec)
        plain = np.repeat(targets, len(ids)), np.tile(ids, len(targets))
        if _content(request) not in edits.seen:
            return Needs(margin=True, without=(plain,))
        open_ = request.masked[targets] & edits.first
        tried = [
            (target, token)
            for target, written, is_open in zip(targets.tolist(), edits.written, open_.tolist(), strict=True)
            for token in sorted({*written, ids.mask} if is_open else written)
        ]
        positions, tokens = np.array(tried, np.int64).reshape(-1, 2).T
        return Needs(margin=True, without=(plain, (positions, tokens)))

    def select(self, request: Request, scores: Scores) -> Mask:
        return self.rewrite(request, scores).chosen

    def rewrite(self, request: Request, scores: Scores) -> Rewritten:
        edits, ids, best = _edits(request), _Ids.of(request.spec), _Best.of(request, scores)
        tokens, log_odds = best.tokens, best.log_odds
        before, masked = request.ids[scores.positions], request.masked[scores.positions]
        open_ = masked & edits.first
        post_steps = edits.post_steps + (not open_.any())
        is_last = _is_last(request, post_steps, bool(open_.any()))
        if not is_last:
            best.put(open_ & best.is_mask, scores.tokens, scores.log_odds, 0)
        filled = masked
        if not is_last and open_.any():
            filled = _filled(request, masked, 1 + int(np.count_nonzero(masked & ~edits.first)), log_odds)
            if not request.diffusion.max_post_steps and not (open_ & ~filled).any():
                is_last, filled = True, masked
        replaced = ~masked & (tokens != before) & (_probabilities(log_odds) > request.diffusion.editing_threshold)
        written = filled | replaced
        if is_last:
            at = written & np.isin(tokens, ids)
            best.put(at, *scores.without[_PLAIN], 1 + _PLAIN)
        elif len(scores.without) > _TRIED and (written & (tokens != before)).any():
            least = np.where(written & (tokens != before), log_odds, np.inf).argmin()
            best.put(np.arange(len(tokens)) == least, *scores.without[_TRIED], 1 + _TRIED)
        places = _places(ids, before, tokens, written, edits.first, is_last=is_last)
        now = best.at(places, edits.log_odds)
        return Rewritten(
            scores=now,
            chosen=~places.is_kept & ~places.is_masked,
            masked=places.is_masked,
            sources=places.sources,
            is_settled=is_last or not written.any(),
            edits=BlockEdits(
                first=places.first,
                log_odds=now.log_odds,
                written=tuple(
                    tried | {token} if is_written else tried
                    for tried, token, is_written in zip(edits.written, tokens.tolist(), written.tolist(), strict=True)
                ),
                seen=edits.seen | {_content(request)},
                post_steps=post_steps,
            ),
        )


class _Ids(NamedTuple):
    """The tokens that stand in no finished block."""

    mask: int
    delete: int
    split: int

    @classmethod
    def of(cls, spec: ModelSpec) -> "_Ids":
        assert spec.mask_id is not None
        assert spec.delete_id is not None
        assert spec.split_id is not None
        return cls(spec.mask_id, spec.delete_id, spec.split_id)


class _Best:
    """The token of each target that the policy writes there if it writes any, the mask among them."""

    def __init__(self, tokens: Ids, log_odds: Floats, is_mask: Mask, scores: Scores) -> None:
        self.tokens, self.log_odds, self.is_mask, self.scores = tokens, log_odds, is_mask, scores
        self.proposal = np.zeros(len(tokens), np.int64)
        """[targets] which of the model's proposals it is: 0 its best but the mask, from 1 on `Scores.without`."""

    @classmethod
    def of(cls, request: Request, scores: Scores) -> "_Best":
        assert scores.margin is not None
        is_mask = scores.margin < 0
        with np.errstate(divide="ignore"):
            mask = np.clip(scores.confidence - scores.margin, 0.0, 1.0)  # its probability, where it is the best
            mask_odds = np.log(mask) - np.log1p(-mask)
        tokens = np.where(is_mask, _Ids.of(request.spec).mask, scores.tokens)
        return cls(tokens, np.where(is_mask, mask_odds, scores.log_odds), is_mask, scores)

    def put(self, at: Mask, tokens: Ids, log_odds: Floats, proposal: int) -> None:
        self.tokens[at], self.log_odds[at], self.proposal[at] = tokens[at], log_odds[at], proposal

    def at(self, places: "_Places", log_odds: Floats) -> Scores:
        """Of the tokens that now stand there; `log_odds` [targets] are of those that stood there before."""
        sources, logprobs = places.sources, self.scores.logprobs
        return Scores(
            self.scores.positions,
            places.tokens,
            np.where(places.is_kept, log_odds[sources], self.log_odds[sources]),
            logprobs=None if logprobs is None else logprobs.at(sources, self.proposal[sources]),
        )


class _Places(NamedTuple):
    """[targets] what a step has made of them."""

    tokens: Ids
    sources: Ids
    """As `Rewritten.sources`."""
    first: Mask
    """As `BlockEdits.first`."""
    is_kept: Mask
    """Whether it holds what it held before the step, or another target did."""
    is_masked: Mask


def _edits(request: Request) -> BlockEdits:
    """Those of the open block; before its first step, its masks are the first ones."""
    if (edits := request.block.edits) is not None:
        return edits
    first = request.masked[request.targets]
    return BlockEdits(first=first, log_odds=np.zeros(len(first)), written=(frozenset(),) * len(first))


def _content(request: Request) -> bytes:
    return request.ids[request.block.start : request.block.end].tobytes()


def _is_last(request: Request, post_steps: int, has_open: bool) -> bool:
    """Whether this step is the block's last. Steps are bounded, whatever the model says."""
    block, most = request.block, request.diffusion.max_post_steps
    is_spent = post_steps >= most if most else not has_open
    return is_spent or block.step + 1 > block.end - block.start + most


def _filled(request: Request, masked: Mask, needed: int, log_odds: Floats) -> Mask:
    """The masks that exceed the threshold, or so many of the most confident ones."""
    confident = masked & (_probabilities(log_odds) > request.diffusion.threshold)
    if np.count_nonzero(confident) >= needed:
        return confident
    return masked & top(np.where(masked, log_odds, -np.inf), needed)


def _probabilities(log_odds: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(np.minimum(-log_odds, 700.0)))


def _places(ids: _Ids, before: Ids, tokens: Ids, written: Mask, first: Mask, *, is_last: bool) -> _Places:
    """`tokens` where they are `written`, `before` elsewhere; then places go and come, if an edit was written."""
    count, after = len(before), np.where(written, tokens, before)
    if is_last or not np.isin(tokens[written], (ids.delete, ids.split)).any():
        return _Places(after, np.arange(count), first, ~written, after == ids.mask)
    rows: list[tuple[int, int, bool, bool]] = []
    for place, token in enumerate(after.tolist()):
        if token == ids.split:
            rows.append((ids.mask, place, False, False))
            rows.append((int(before[place]), place, bool(first[place]), True))
        elif token != ids.delete:
            rows.append((token, place, bool(first[place]), not written[place]))
    rows = rows[:count] + [(ids.mask, place, False, False) for place in range(len(rows), count)]
    made, sources, is_first, is_kept = zip(*rows, strict=True)
    tokens = np.array(made)
    return _Places(tokens, np.array(sources), np.array(is_first), np.array(is_kept), tokens == ids.mask)
