"""The decoding loops of block-causal families, written plainly: the slow twin of the engine, as `reference` is.

Blocks lie on a grid from the first prompt token. A row sees all rows up to the end of its block. Every forward computes
the whole prefix again, so that nothing is kept but what a loop itself keeps. Forwards are counted as the published
samplers run them, of which some keep finished blocks. Sources: SDAR (arXiv 2510.06303), Fast-dLLM v2 (2509.26328),
LLaDA2.0 and 2.1 (2512.15745). Knows the model, but no pages, batches or requests.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.bench.reference import best_token, most_confident, propose
from engine.models.layers import Transformer

Strategy = Literal["sequential", "low_confidence_static", "low_confidence_dynamic", "entropy_bounded"]
Sampler = Literal["generate", "batch_sample"]


class BlockCausalContext:
    """Keys and values of one canvas as last computed; a row sees them up to the end of its block."""

    def __init__(self, model: Transformer, length: int, block_length: int) -> None:
        config, weight = model.config, model.embed
        shape = (config.num_layers, config.num_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.rows = torch.arange(length, device=weight.device)
        """Positions that the forward computes, ascending."""
        self._blocks = self.rows // block_length

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys[:, self.rows], values[:, self.rows] = k.transpose(0, 1), v.transpose(0, 1)
        seen = self._blocks <= self._blocks[self.rows, None]  # [rows, length]
        attended = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None], values[None], attn_mask=seen, enable_gqa=True
        )  # [1, heads, rows, head_dim]
        return attended[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens that a loop wrote, and its cost."""

    tokens: list[int]
    """All behind the prompt, as the published sampler returns them."""
    forwards: Mapping[str, int]
    """By kind, as the published sampler runs them."""
    denoise_per_block: Sequence[int] = ()
    """SDAR, LLaDA2: denoising forwards of each block that was decoded."""


class _Canvas:
    """A prompt and the masks behind it, which become tokens."""

    def __init__(
        self, model: Transformer, prompt_ids: Sequence[int], length: int, block_length: int, mask_id: int
    ) -> None:
        self._model, self._context = model, BlockCausalContext(model, length, block_length)
        self._prompt, device = len(prompt_ids), model.embed.device
        self._ids = torch.tensor([*prompt_ids, *[mask_id] * (length - self._prompt)], device=device)  # [length]
        self.positions = torch.arange(length, device=device)
        self.masked = self.positions >= self._prompt

    def answer(self, end: int) -> list[int]:
        """The tokens behind the prompt, up to position `end`."""
        return self._ids[self._prompt : end].tolist()

    def known_answer(self) -> list[int]:
        """The tokens behind the prompt, up to the first mask."""
        return self.answer(int((~self.masked).cumprod(dim=-1).sum()))

    def targets(self, start: int, end: int) -> Tensor:
        """The masked positions in [start, end)."""
        return start + self.masked[start:end].nonzero().squeeze(-1)

    def tokens(self, positions: Tensor) -> Tensor:
        """The token at each of these positions, or the mask."""
        return self._ids[positions]

    def logits(self, rows: Tensor) -> Tensor:
        """[rows, vocab] of a forward over these positions."""
        self._context.rows = rows
        return self._model.logits(self._model(self._ids[rows], rows, self._context))

    def write(self, targets: Tensor, tokens: Tensor) -> None:
        self._ids[targets], self.masked[targets] = tokens, False


@torch.inference_mode()
def decode_sdar(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    steps: int,
    strategy: Strategy,
    mask_id: int,
    threshold: float = 1.0,
    eb_threshold: float = 0.0,
    stop_ids: Collection[int] = (),
) -> Decoded:
    """SDAR's `block_diffusion_generate`, greedy; the canvas ends with the block that holds the last token asked for.

    It stops behind the first block after which the answer holds one of `stop_ids`. The prompt's tail is part of the
    first block, and known. Only masked positions are written.
    """
    prompt = len(prompt_ids)
    length = -(-(prompt + gen_length) // block_length) * block_length
    canvas = _Canvas(model, prompt_ids, length, block_length, mask_id)
    share, extra = divmod(block_length, steps)
    denoise: list[int] = []
    end = prompt // block_length * block_length
    while end < length and set(stop_ids).isdisjoint(canvas.known_answer()):
        start, end, step = end, end + block_length, 0
        while len(targets := canvas.targets(start, end)):
            probabilities = canvas.logits(canvas.positions[:end])[targets].double().softmax(dim=-1)
            confidence, tokens = best_token(probabilities, mask_id)
            count = share + (step < extra)
            match strategy:
                case "sequential":
                    accepted = targets < targets[0] + count
                case "low_confidence_static":
                    accepted = most_confident(confidence, count)
                case "low_confidence_dynamic":
                    accepted = confidence > threshold
                    if accepted.sum() < count:
                        accepted = most_confident(confidence, count)
                case "entropy_bounded":
                    accepted = _bounded(probabilities, eb_threshold)
            canvas.write(targets[accepted], tokens[accepted])
            step += 1
        denoise.append(step)
    forwards = {"prefill": int(prompt >= block_length), "denoise": sum(denoise), "commit": len(denoise)}
    return Decoded(canvas.answer(end), forwards, denoise)


@torch.inference_mode()
def decode_llada2(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    steps: int,
    threshold: float,
    minimal_topk: int,
    eos_early_stop: bool,
    mask_id: int,
    end_ids: Collection[int],
) -> Decoded:
    """LLaDA2.0's `generate`, greedy; the canvas ends with the block that holds the last token asked for.

    A block's tokens are spread over its steps. A step writes all that exceed the threshold, or as many of the most
    confident as are due. Generation ends behind a block after which the answer holds an end; with `eos_early_stop` as
    soon as an end is written and nothing before the first one is masked. The answer is cut behind its first end.
    """
    prompt, steps = len(prompt_ids), min(steps, gen_length // minimal_topk)
    length = -(-(prompt + gen_length) // block_length) * block_length
    canvas = _Canvas(model, prompt_ids, length, block_length, mask_id)
    share, extra = divmod(block_length, steps)
    denoise: list[int] = []

    def ended() -> list[int]:
        """The known answer up to and with its first end; empty if it has none."""
        known = canvas.known_answer()
        return [] if set(end_ids).isdisjoint(known) else _to_first_end(known, end_ids)

    for start in range(prompt // block_length * block_length, length, block_length):
        end = start + block_length
        denoise.append(0)
        for step in range(steps):
            targets = canvas.targets(start, end)
            if not len(targets):
                break
            confidence, tokens = propose(canvas.logits(canvas.positions[:end])[targets], mask_id)
            accepted, due = confidence > threshold, share + (step < extra)
            if accepted.sum() < due:
                accepted = most_confident(confidence, due)
            canvas.write(targets[accepted], tokens[accepted])
            denoise[-1] += 1
            if eos_early_stop and not set(end_ids).isdisjoint(tokens[accepted].tolist()) and (answer := ended()):
                return Decoded(answer, {"denoise": sum(denoise)}, denoise)
        if ended():
            break
    answer = _to_first_end(canvas.answer(prompt + gen_length), end_ids)
    return Decoded(answer, {"denoise": sum(denoise)}, denoise)


@torch.inference_mode()
def decode_llada2_editing(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    threshold: float,
    editing_threshold: float,
    max_post_steps: int,
    num_to_transfer: int,
    eos_early_stop: bool,
    mask_id: int,
    end_ids: Collection[int],
) -> Decoded:
    """LLaDA2.1's `generate`, greedy: a step fills masks, and replaces tokens of its block.

    Masks are filled as by LLaDA2.0, `num_to_transfer` at least. A token behind the prompt becomes another that exceeds
    `editing_threshold`. A block without masks ends when a step changes nothing, or after `max_post_steps`.
    """
    prompt = len(prompt_ids)
    length = -(-(prompt + gen_length) // block_length) * block_length
    canvas = _Canvas(model, prompt_ids, length, block_length, mask_id)
    denoise: list[int] = []
    for start in range(prompt // block_length * block_length, length, block_length):
        end, post_steps, is_settled = start + block_length, 0, False
        own = canvas.positions[max(start, prompt) : end]
        denoise.append(0)
        while not is_settled and (canvas.masked[own].any() or post_steps < max_post_steps):
            masked = canvas.masked[own]
            confidence, tokens = propose(canvas.logits(canvas.positions[:end])[own], mask_id)
            confident = masked & (confidence > threshold)
            if confident.sum() < num_to_transfer:
                confident = masked & most_confident(confidence.masked_fill(~masked, -1.0), num_to_transfer)
            edited = ~masked & (confidence > editing_threshold) & (tokens != canvas.tokens(own))
            post_steps += not masked.any()
            is_settled = not masked.any() and not edited.any()
            accepted = confident | edited
            canvas.write(own[accepted], tokens[accepted])
            denoise[-1] += 1
        if eos_early_stop and not set(end_ids).isdisjoint(canvas.known_answer()):
            break
    answer = _to_first_end(canvas.answer(prompt + gen_length), end_ids)
    return Decoded(answer, {"denoise": sum(denoise)}, denoise)


def _to_first_end(answer: list[int], end_ids: Collection[int]) -> list[int]:
    """The answer up to and with its first end; all of it if it has none."""
    ends = [place for place, token in enumerate(answer) if token in end_ids]
    return answer[: ends[0] + 1] if ends else answer


def _bounded(probabilities: Tensor, bound: float) -> Tensor:
    """bool [targets]: those of least entropy whose entropies sum to less than `bound`, in nats; at least one."""
    clamped = probabilities.clamp(min=1e-12)
    entropy = -(clamped * clamped.log()).sum(dim=-1)
    fitting = int((entropy.sort().values.cumsum(dim=-1) < bound).sum())
    return most_confident(-entropy, max(fitting, 1))


@torch.inference_mode()
def decode_fast_dllm(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    block_length: int,
    small_block: int,
    threshold: float,
    block_cache: bool,
    mask_id: int,
    stop_id: int | None,
    sampler: Sampler,
    pad_id: int,
) -> Decoded:
    """Fast-dLLM v2's `generate` or `batch_sample` of one prompt, greedy.

    A token's logits stand one row before it, so that a block's first token comes from the rows before the block, and
    is not denoised. With `block_cache`, a sub-block whose first token is known is computed alone against keys and
    values of its block as last computed. `generate` ends when the stop is written and nothing before it is masked.
    `batch_sample` finishes the block, and pads behind the stop if denoising wrote one.
    """
    prompt, budget = len(prompt_ids), max_new_tokens // block_length
    end = prompt // block_length * block_length
    length = max(end + budget * block_length + 1, prompt)
    canvas = _Canvas(model, prompt_ids, length, block_length, mask_id)
    forwards = {"prefill": int(end > 0), "block": 0, "sub": 0, "commit": 0}
    is_finished = False

    def open_block() -> None:
        """The first token of the block at `end`."""
        _, token = propose(canvas.logits(canvas.positions[:end])[-1:], mask_id)
        canvas.write(canvas.positions[end : end + 1], token)

    def has_stopped() -> bool:
        return sampler == "generate" and stop_id in canvas.known_answer()

    if 0 < end == prompt:
        open_block()
    for _ in range(budget):
        if has_stopped():
            break
        start, end, is_stored = end, end + block_length, False
        for sub in range(start, end, small_block):
            until = sub + small_block
            while len(targets := canvas.targets(sub, until)) and not has_stopped():
                alone = block_cache and is_stored and not canvas.masked[sub]
                rows = canvas.positions[:end]
                if alone:
                    rows = torch.cat((canvas.positions[:start], canvas.positions[sub:until]))
                logits = canvas.logits(rows)[targets - 1 - (until if alone else end)]  # counted from the last row
                forwards["sub" if alone else "block"] += 1
                is_stored = True
                confidence, tokens = propose(logits, mask_id)
                accepted = (confidence > threshold) | most_confident(confidence, 1)
                canvas.write(targets[accepted], tokens[accepted])
                is_finished |= sampler == "batch_sample" and stop_id in tokens[accepted].tolist()
        if is_finished or has_stopped():
            break
        open_block()
        forwards["commit"] += 1
    answer = canvas.answer(end if is_finished else end + 1)
    if stop_id in answer:
        kept = answer.index(stop_id) + 1
        if sampler == "generate":
            answer = answer[:kept]
        elif is_finished:
            answer = answer[:kept] + [pad_id] * (len(answer) - kept)
    return Decoded(answer, forwards)
