"""LLaDA2.2's decoding loop, whose tokens insert and delete others, written plainly: the slow twin of `insert_delete`.

The steps are those of SGLang's `JointThresholdInDel`, greedy, on one canvas that is computed anew in each forward.
Knows the model, but no pages, batches or requests.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.bench.block_causal import BlockCausalContext, Decoded
from engine.models.layers import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a block is decoded, and the ids of the tokens that it treats apart."""

    threshold: float
    editing_threshold: float
    max_post_steps: int
    mask_id: int
    delete_id: int
    split_id: int

    @property
    def edit_ids(self) -> set[int]:
        return {self.mask_id, self.delete_id, self.split_id}


@dataclass(slots=True)
class _Place:
    """A place of the open block behind the prompt."""

    token: int
    is_first: bool
    """Whether it was masked when the block opened."""


class OpenBlock:
    """A block while it is decoded: `fixed` tokens of the prompt, then places whose tokens move."""

    def __init__(self, fixed: Sequence[int], length: int, rule: Rule) -> None:
        self._rule, self._fixed, self._length = rule, list(fixed), length
        self._places = [_Place(rule.mask_id, True) for _ in range(length - len(fixed))]
        self._tried: list[set[int]] = [set() for _ in self._places]
        self._seen: set[tuple[int, ...]] = set()
        self._rounds = self._spent = 0

    @property
    def ids(self) -> list[int]:
        return [*self._fixed, *(place.token for place in self._places)]

    def step(self, logits: Tensor) -> bool:
        """Writes what logits [block, vocab] of these `ids` ask for; returns whether the block is finished."""
        rule, places = self._rule, self._places
        probabilities = logits[len(self._fixed) :].double().softmax(dim=-1)
        masked = [place.token == rule.mask_id for place in places]
        is_open = [place.is_first and is_masked for place, is_masked in zip(places, masked, strict=True)]
        self._rounds += 1
        self._spent += not any(is_open)
        most = rule.max_post_steps
        is_last = self._spent >= most if most else not any(is_open)
        is_last = is_last or self._rounds > self._length + most
        best = [
            _best(row, {rule.mask_id} if open_ and not is_last else ())
            for row, open_ in zip(probabilities, is_open, strict=True)
        ]
        every = [place for place, is_masked in enumerate(masked) if is_masked]
        filled = every
        if not is_last and any(is_open):
            needed = 1 + len(every) - sum(is_open)
            filled = [place for place in every if best[place][1] > rule.threshold]
            if len(filled) < needed:
                filled = sorted(every, key=lambda place: -best[place][1])[:needed]
            if not most and not [place for place in every if is_open[place] and place not in filled]:
                is_last, filled = True, every
        written = {place: best[place][0] for place in filled} | {
            place: token
            for place, (token, confidence) in enumerate(best)
            if not masked[place] and confidence > rule.editing_threshold and token != places[place].token
        }
        if not written:
            return True
        if is_last:
            for place in [place for place, token in written.items() if token in rule.edit_ids]:
                written[place] = _best(probabilities[place], rule.edit_ids)[0]
        elif tuple(self.ids) in self._seen:
            differing = [place for place, token in written.items() if token != places[place].token]
            if differing:
                least = min(differing, key=lambda place: (best[place][1], place))
                tried = self._tried[least] | ({rule.mask_id} if is_open[least] else set())
                written[least] = _best(probabilities[least], tried)[0]
        self._seen.add(tuple(self.ids))
        for place, token in written.items():
            self._tried[place].add(token)
        self._write(written)
        return is_last

    def _write(self, written: dict[int, int]) -> None:
        rule, count = self._rule, len(self._places)
        moves = not {rule.delete_id, rule.split_id}.isdisjoint(written.values())
        places: list[_Place] = []
        for number, place in enumerate(self._places):
            token = written.get(number, place.token)
            if moves and token == rule.split_id:
                places += [_Place(rule.mask_id, False), place]
            elif not moves or token != rule.delete_id:
                places.append(_Place(token, place.is_first))
        missing = count - len(places)
        self._places = places[:count] + [_Place(rule.mask_id, False) for _ in range(missing)]


@torch.inference_mode()
def decode_inserting_and_deleting(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    rule: Rule,
    end_ids: Collection[int],
) -> Decoded:
    """Whole blocks, until one after which the answer holds an end; the answer is cut behind its first end.

    A block is computed once more where its last forward changed it, which is counted, too.
    """
    ids, prompt = list(prompt_ids), len(prompt_ids)
    denoise: list[int] = []
    while len(ids) < prompt + gen_length or not denoise:
        start = len(ids) // block_length * block_length
        block, is_finished = OpenBlock(ids[start:], block_length, rule), False
        denoise.append(0)
        before: list[int] = []
        while not is_finished:
            before = block.ids
            is_finished = block.step(_logits(model, ids[:start] + before, block_length)[start:])
            denoise[-1] += 1
        denoise[-1] += before != block.ids
        ids[start:] = block.ids
        if not set(end_ids).isdisjoint(ids[prompt:]):
            break
    answer = ids[prompt : prompt + gen_length]
    ends = [place for place, token in enumerate(answer) if token in end_ids]
    answer = answer[: ends[0] + 1] if ends else answer
    return Decoded(answer, {"denoise": sum(denoise)}, denoise)


def _best(probabilities: Tensor, without: Collection[int]) -> tuple[int, float]:
    """The most probable token [vocab] without some, and its probability among all."""
    left = probabilities.clone()
    left[list(without)] = -1.0
    token = int(left.argmax())
    return token, float(probabilities[token])


def _logits(model: Transformer, ids: Sequence[int], block_length: int) -> Tensor:
    """[ids, vocab] of one forward over all of them."""
    context = BlockCausalContext(model, len(ids), block_length)
    device = model.embed.device
    return model.logits(model(torch.tensor(ids, device=device), context.rows, context))
