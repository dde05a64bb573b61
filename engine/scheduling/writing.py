"""What a step does to its request's canvas: blocks that open, tokens that are written, where the answer ends.

Sees a request and a choice, never pages or other requests.
"""

import numpy as np

from engine.cache.policies import CACHES
from engine.core.arrays import Ids
from engine.core.requests.block import Block
from engine.core.requests.request import Request
from engine.core.steps.choice import Choice, Rewritten
from engine.unmask.policies import UNMASKS


def open_block(request: Request, index: int, start: int) -> None:
    """Opens the first block from `start` on that has masked positions; the unmask policy sets its length."""
    policy = UNMASKS[request.diffusion.unmask]
    length = policy.block_length(request)
    masked = np.flatnonzero(request.masked[start:])
    start += int(masked[0]) // length * length
    end = min(start + length, request.answer_end)
    fresh, lookahead = request.block.visible_end if index else 0, request.diffusion.lookahead
    request.block = Block.opened(request.masked, start, end, index=index, fresh=fresh, lookahead=lookahead)
    request.block.replaces_tokens, request.block.is_drafted = policy.replaces_tokens, policy.drafts
    if (shown := policy.opening(request)) is not None:
        request.ids[start:end] = shown


def write(choice: Choice) -> None:
    """Writes tokens, what was computed for them, and the request's history."""
    plan, scores, chosen, _, shown, rewritten = choice
    request, positions = plan.request, plan.targets[chosen]
    request.forwards += 1
    request.rows_computed += len(plan.rows)
    if request.diffusion.kv_budget is not None:
        request.most_resident = max(request.most_resident, request.num_kept_before(int(plan.horizons[-1])))
    block, computed = request.block, int(plan.rows[-1]) + 1
    block.is_computed |= computed >= block.end
    is_in_block = True
    if request.spec.is_block_causal:
        # What was computed in the open block held masks. All before it is final, in the order in which it is computed.
        request.committed = max(request.committed, min(computed, block.rows_start))
        request.is_prefilled |= request.committed == block.rows_start
        is_in_block = computed > block.rows_start
    if not len(plan.targets):
        return
    if rewritten is not None:
        block.edits, block.is_settled = rewritten.edits, rewritten.is_settled
        _move(request, plan.targets, rewritten)
    elif block.replaces_tokens and not request.masked[block.start : block.end].any():
        block.post_steps += 1
        block.is_settled = not len(positions)
    assert len(positions) or block.is_settled or shown is not None or rewritten is not None, (
        "a step that commits nothing; this is a bug of its unmask policy"
    )
    if shown is not None:
        request.ids[plan.targets] = shown
    if UNMASKS[request.diffusion.unmask].renews:
        block.proposed, block.repeats = scores.tokens, block.repeats_with(scores.tokens)
    request.ids[positions] = scores.tokens[chosen]
    request.masked[positions] = False
    if block.is_drafted and plan.is_causal:
        _end_draft(request, int(positions[-1]) + 1)
    if request.steps is not None:
        request.steps[positions] = request.forwards
    block.step += is_in_block  # the first token of a block whose logits are shifted comes before its first step
    request.decoding_steps += 1
    _record(choice)
    if scores.logprobs is not None:
        request.logprobs.update(zip(positions.tolist(), scores.logprobs.of(chosen), strict=True))


def _move(request: Request, targets: Ids, rewritten: Rewritten) -> None:
    """Writes what the targets hold, masks too; what is told of a token moves with it."""
    sources = targets[rewritten.sources]
    request.ids[targets], request.masked[targets] = rewritten.scores.tokens, rewritten.masked
    if request.steps is not None:
        request.steps[targets] = request.steps[sources]
    if request.logprobs:
        told = {target: request.logprobs.pop(target, None) for target in targets.tolist()}
        kept = zip(targets[~rewritten.masked].tolist(), sources[~rewritten.masked].tolist(), strict=True)
        request.logprobs.update((target, one) for target, source in kept if (one := told[source]) is not None)


def _end_draft(request: Request, end: int) -> None:
    """Ends the open block, all of whose rows have just been computed causally, behind the last token that stands."""
    block = request.block
    assert request.spec.mask_id is not None, "a draft of a model without a mask"
    request.ids[end : block.end], request.masked[end : block.end] = request.spec.mask_id, True
    block.end, block.is_settled = end, True
    request.committed = block.rows_end


def _record(choice: Choice) -> None:
    """Writes scores and choice into the request's history, as far as its policies read them."""
    plan, scores, chosen, *_ = choice
    history, diffusion = plan.request.history, plan.request.diffusion
    history.decoded = plan.targets[chosen]
    if not (CACHES[diffusion.cache].reads_history or UNMASKS[diffusion.unmask].reads_history):
        return
    confidence = scores.confidence
    history.confidence[plan.targets] = confidence
    history.mean_confidence.append(float(confidence[: plan.num_open].sum()) / plan.num_open)
    history.tokens.extend(scores.tokens[chosen].tolist())
    if scores.importance is not None:
        history.importance[: len(scores.importance)] = scores.importance


def first_stop(request: Request, start: int, limit: int) -> int:
    """The first position of the answer in [start, limit) that holds a decoded stop token, else limit.

    A block may hold tokens of the prompt: a stop token among these does not end the answer.
    """
    if request.stop_ids.isdisjoint(request.ids[start:limit].tolist()):
        return limit
    answer = request.answer_positions[slice(*np.searchsorted(request.answer_positions, (start, limit)))]
    decoded = answer[~request.masked[answer]]
    stops = decoded[np.isin(request.ids[decoded], list(request.stop_ids))]
    return int(stops[0]) if len(stops) else limit
