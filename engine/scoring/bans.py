"""Which tokens may not be drawn where: `bad_words` on a canvas that is filled in any order, and `min_tokens`.

Works on host arrays of one request's positions and ids; knows no logits. `bans` has the tokens whose ban depends on the
position or on the tokens around it.
"""

from collections import defaultdict
from collections.abc import Iterable, Set

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from engine.core.arrays import Ids, Mask
from engine.core.config import ModelSpec
from engine.core.params import SamplingParams, banned_everywhere
from engine.core.requests.request import Request
from engine.core.steps.scores import Scores


def leaves_any(sampling: SamplingParams, spec: ModelSpec, banned: Set[int]) -> bool:
    """Whether any token may still be drawn if the `banned` ones, all of the vocabulary, may not."""
    if sampling.allowed_ids is not None:
        return not sampling.allowed_ids <= banned | spec.never_drawn
    return len(banned | spec.never_drawn) < spec.vocab_size


def bans(request: Request, targets: Ids) -> tuple[Ids, Ids]:
    """Pairs (index into `targets`, token) that may not be drawn now, as two int64 arrays [pairs].

    These are stop tokens within the first `min_tokens` positions of the answer and, unless no other token is left,
    tokens that complete a bad word of several tokens.
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
    """`chosen` (bool [targets]) without tokens that would complete a bad word together with other chosen ones.

    Of each such word the least confident token is held back. A single chosen token of a word never is, so that at least
    one stays chosen.
    """
    positions = scores.positions[chosen]
    ids, masked, is_new = request.ids.copy(), request.masked.copy(), np.zeros(request.canvas_end, np.bool_)
    ids[positions], masked[positions], is_new[positions] = scores.tokens[chosen], False, True
    log_odds = np.zeros(request.canvas_end)
    log_odds[positions] = scores.log_odds[chosen]
    for starts, words in _standing(_of_several(request), ids, masked, 0, positions):
        for start in starts:
            inside = np.arange(start, start + words.shape[-1])
            new = inside[is_new[inside]]
            # At least two tokens of the word are new, and none has been held back.
            if len(new) > 1 and not masked[inside].any():
                waiting = new[log_odds[new].argmin()]
                is_new[waiting], masked[waiting] = False, True
    return np.asarray(is_new[scores.positions])


def _of_several(request: Request) -> set[tuple[int, ...]]:
    """Each bad word of several tokens, once. No two of one length stand at one place, which bounds the matches."""
    return {word for word in request.sampling.bad_words if len(word) > 1}


def _completions(request: Request, targets: Ids) -> Iterable[tuple[int, int]]:
    """Pairs (index into `targets`, token): a bad word lacks only this token, at this target."""
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
    """Where `words` stand in `ids` with `num_masked` positions masked, if they overlap [near[0], near[-1]].

    Yields for each word length: starts [found] and the words found there [found, length].
    """
    by_length = defaultdict(list)
    for word in sorted(words):  # the same order in every process: outcomes must not depend on it
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
