"""Which tokens may not be drawn where: `bad_words` on a canvas that is filled in any order, and `min_tokens`.

Host arrays of one request's positions and ids; knows no logits. What is banned everywhere in an answer is in
`banned_everywhere`, what depends on what stands around a position in `bans`.
"""

from collections import defaultdict
from collections.abc import Iterable, Set

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from engine.core.config import ModelSpec
from engine.core.params import SamplingParams
from engine.core.plan import Scores
from engine.core.request import Ids, Mask, Request


def banned_everywhere(sampling: SamplingParams) -> frozenset[int]:
    """The bad words of one token."""
    return frozenset(word[0] for word in sampling.bad_words if len(word) == 1)


def leaves_any(sampling: SamplingParams, spec: ModelSpec, banned: Set[int]) -> bool:
    """Whether a token may still be drawn once these, of the vocabulary, may not."""
    if sampling.allowed_ids is not None:
        return not sampling.allowed_ids <= banned | {spec.mask_id}
    return len(banned | {spec.mask_id}) < spec.vocab_size


def bans(request: Request, targets: Ids) -> tuple[Ids, Ids]:
    """(index among these masked positions, token) pairs, as two arrays: what may not be drawn there now.

    Tokens that end the answer before its first `min_tokens` positions are over, and those that complete a bad word of
    several tokens, unless nothing else is left.
    """
    early = targets < request.answer_start + request.sampling.min_tokens
    stops = np.array(sorted(request.stop_ids), np.int64)
    stop_bans = np.repeat(np.flatnonzero(early), len(stops)), np.tile(stops, int(early.sum()))
    completing: dict[int, set[int]] = defaultdict(set)
    for index, token in _completions(request, targets):
        completing[index].add(token)
    never = banned_everywhere(request.sampling) if completing else frozenset()
    pairs: list[tuple[int, int]] = []
    for index, tokens in completing.items():
        if leaves_any(request.sampling, request.spec, tokens | never | (request.stop_ids if early[index] else set())):
            pairs.extend((index, token) for token in tokens)
    word_bans = np.array(pairs, np.int64).reshape(-1, 2).T
    return np.concatenate((stop_bans[0], word_bans[0])), np.concatenate((stop_bans[1], word_bans[1]))


def hold_back(request: Request, scores: Scores, chosen: Mask) -> Mask:
    """`chosen` [targets] without those that would complete a bad word together with others of it.

    Of each such word the least confident one waits. One alone is never held back, so that something stays chosen.
    """
    positions = scores.positions[chosen]
    ids, masked, is_new = request.ids.copy(), request.masked.copy(), np.zeros(request.end, np.bool_)
    ids[positions], masked[positions], is_new[positions] = scores.tokens[chosen], False, True
    log_odds = np.zeros(request.end)
    log_odds[positions] = scores.log_odds[chosen]
    for starts, words in _standing(_of_several(request), ids, masked, 0, positions):
        for start in starts:
            inside = np.arange(start, start + words.shape[-1])
            new = inside[is_new[inside]]
            # Those whose tokens were drawn now, and all of them still stand.
            if len(new) > 1 and not masked[inside].any():
                waiting = new[log_odds[new].argmin()]
                is_new[waiting], masked[waiting] = False, True
    return np.asarray(is_new[scores.positions])


def _of_several(request: Request) -> set[tuple[int, ...]]:
    """Each bad word of several tokens once: no two of a length stand at one place, which bounds what is found."""
    return {word for word in request.sampling.bad_words if len(word) > 1}


def _completions(request: Request, targets: Ids) -> Iterable[tuple[int, int]]:
    """(index among targets, token) of each bad word that lacks this one token there."""
    for starts, words in _standing(_of_several(request), request.ids, request.masked, 1, targets):
        inside = starts[:, None] + np.arange(words.shape[-1])
        lacking = request.masked[inside].argmax(axis=-1)
        positions, tokens = starts + lacking, words[np.arange(len(words)), lacking]
        indices = np.searchsorted(targets, positions)
        is_target = np.append(targets, -1)[indices] == positions
        yield from zip(indices[is_target].tolist(), tokens[is_target].tolist(), strict=True)


def _standing(
    words: Set[tuple[int, ...]], ids: Ids, masked: Mask, num_masked: int, near: Ids
) -> Iterable[tuple[Ids, Ids]]:
    """Where these words stand in `ids` but for so many masked positions, as far as they touch [near[0], near[-1]].

    For each length of a word: starts [found] and the words found there [found, length].
    """
    by_length = defaultdict(list)
    for word in sorted(words):  # in one order in every process: a step's outcome must not depend on it
        by_length[len(word)].append(word)
    for length, group in sorted(by_length.items()):
        first, end = max(int(near[0]) - length + 1, 0), int(near[-1]) + length
        if len(ids[first:end]) < length:
            continue
        gaps = sliding_window_view(masked[first:end], length)  # [starts, length]
        candidates = np.flatnonzero(gaps.sum(axis=-1) == num_masked)
        windows, together = sliding_window_view(ids[first:end], length)[candidates, None], np.array(group)
        fits = ((windows == together) | gaps[candidates, None]).all(axis=-1)  # [candidates, words]
        where, which = np.nonzero(fits)
        if len(where):
            yield first + candidates[where], together[which]
