"""The papers' decoding loops written plainly on dense tensors, one sequence at a time: the slow twin of the engine.

Tests require the engine's answers to match token for token; benchmarks compare with these loops. Sources: LLaDA (arXiv
2502.09992), Fast-dLLM (2505.22618) Algorithm 1 and section 3.2, Dream (2508.15487). Knows the model, but no pages,
batches or requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.kernels.products import attention
from engine.models.layers import Transformer

Rule = Callable[[Tensor, int], Tensor]
"""(float64 confidences of the block's masked positions, step in the block) -> bool [masked]: which to accept."""


class DenseContext:
    """Keys and values of one whole canvas; computed rows are replaced in place, and every row sees all of them."""

    def __init__(self, model: Transformer, length: int) -> None:
        config, weight = model.config, model.embed
        shape = (config.num_layers, config.num_kv_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.rows = slice(0, length)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.keys[layer, :, self.rows], self.values[layer, :, self.rows] = k.transpose(0, 1), v.transpose(0, 1)
        return attention(q, self.keys[layer], self.values[layer])


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens that a loop wrote, and its cost."""

    tokens: list[int]
    """All that was masked, in order; nothing is cut at an end-of-sequence token."""
    forwards: int
    rows: int
    """Rows computed over all forwards."""


@torch.inference_mode()
def decode(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    block_length: int,
    mask_id: int,
    cache: Literal["none", "prefix", "dual"],
    rule: Rule,
    shift: int = 0,
    holes: Sequence[tuple[int, int]] = (),
    max_forwards: int | None = None,
) -> Decoded:
    """Greedy block-wise decoding of one canvas; a benchmark's sample ends after `max_forwards`.

    `gen_length` masks follow the prompt, or the masks are at `holes` within it: each (tokens of the prompt before it,
    length). Blocks are cut from the first mask to the last; blocks without masks are skipped.
    Every block begins with a forward over the whole canvas. Later forwards of the block compute everything (`none`),
    the block and what follows it (`prefix`), or the block alone (`dual`), against keys and values as last computed.
    Where a token's logits stand `shift` rows before it, the block's window begins `shift` rows before the block.
    """
    device = model.embed.device
    x, masked = _canvas(prompt_ids, holes or [(len(prompt_ids), gen_length)], mask_id, device)
    answer = masked.nonzero().squeeze(-1)
    context = DenseContext(model, len(x))
    forwards = rows = 0
    last = int(answer[-1]) + 1
    for start in range(int(answer[0]), last, block_length):
        end, window = min(start + block_length, last), max(start - shift, 0)
        later = {"none": slice(0, len(x)), "prefix": slice(window, len(x)), "dual": slice(window, end)}[cache]
        step = 0
        while forwards != max_forwards and masked[start:end].any():
            context.rows = later if step else slice(0, len(x))
            first = context.rows.start
            positions = torch.arange(first, context.rows.stop, device=device)
            logits = model.logits(model(x[context.rows], positions, context))  # [rows, vocab]
            forwards, rows = forwards + 1, rows + len(positions)
            targets = start + masked[start:end].nonzero().squeeze(-1)
            confidence, tokens = propose(logits[(targets - shift).clamp(min=0) - first], mask_id)
            accepted = rule(confidence, step)
            x[targets[accepted]] = tokens[accepted]
            masked[targets[accepted]] = False
            step += 1
    return Decoded(x[answer].tolist(), forwards, rows)


def _canvas(
    prompt_ids: Sequence[int], holes: Sequence[tuple[int, int]], mask_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The prompt with these masks in it (int64), and where they are (bool): each [prompt and masks]."""
    parts, masked, before = [], [], 0
    for offset, length in [*holes, (len(prompt_ids), 0)]:
        parts += [*prompt_ids[before:offset], *[mask_id] * length]
        masked += [*[False] * (offset - before), *[True] * length]
        before = offset
    return torch.tensor(parts, device=device), torch.tensor(masked, device=device)


@torch.inference_mode()
def decode_as_dream(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    gen_length: int,
    steps: int,
    mask_id: int,
    alg: Literal["entropy", "maskgit_plus", "topk_margin"],
    eps: float = 1e-3,
    top_p: float = 1.0,
    top_k: int = 0,
    holes: Sequence[tuple[int, int]] = (),
) -> Decoded:
    """Dream's own sampler at temperature 0: the canvas is one block, and every step a forward over all of it.

    The masks are placed as in `decode`. A step from time t to time s unmasks the share 1 - s/t of the masks, rounded
    down; the last step unmasks all.
    """
    x, masked = _canvas(prompt_ids, holes or [(len(prompt_ids), gen_length)], mask_id, model.embed.device)
    positions = torch.arange(len(x), device=x.device)
    answer = masked.nonzero().squeeze(-1)
    context = DenseContext(model, len(x))
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        logits = model.logits(model(x, positions, context))  # [canvas, vocab]
        targets = masked.nonzero().squeeze(-1)
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else torch.tensor(1.0)
        probabilities = nucleus(logits[(targets - 1).clamp(min=0)].double().softmax(dim=-1), top_p, top_k, mask_id)
        confidence, tokens = best_token(probabilities, mask_id)
        match alg:
            case "entropy":
                certainty = torch.xlogy(probabilities, probabilities).sum(dim=-1)
            case "maskgit_plus":
                certainty = confidence
            case "topk_margin":
                certainty = confidence - probabilities.scatter(-1, tokens[:, None], 0.0).amax(dim=-1)
        accepted = most_confident(certainty, int(masked.sum().cpu() * share))
        x[targets[accepted]] = tokens[accepted]
        masked[targets[accepted]] = False
    return Decoded(x[answer].tolist(), steps, steps * len(x))


def nucleus(probabilities: Tensor, top_p: float, top_k: int, mask_id: int) -> Tensor:
    """[targets, vocab] without tokens behind the one whose sum passes top_p, or behind the top_k best; sums to 1.

    The best token that is not the mask stays in any case.
    """
    ordered, order = probabilities.sort(dim=-1, descending=True)
    kept = ordered.cumsum(dim=-1) - ordered <= top_p
    kept[:, top_k or len(ordered[0]) :] = False
    kept = torch.zeros_like(kept).scatter(-1, order, kept)
    kept |= probabilities >= best_token(probabilities, mask_id)[0][:, None]
    probabilities = probabilities * kept
    return probabilities / probabilities.sum(dim=-1, keepdim=True)


def propose(logits: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """logits [targets, vocab] -> float64 probability and id of the best token that is not the mask, each [targets]."""
    return best_token(logits.double().softmax(dim=-1), mask_id)


def best_token(probabilities: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """probabilities [targets, vocab] -> those of the best token that is not the mask, and its id, each [targets]."""
    allowed = probabilities.clone()
    allowed[:, mask_id] = 0.0
    best, tokens = allowed.max(dim=-1)
    return best, tokens


def fixed(num_masked: int, steps: int) -> Rule:
    """LLaDA's schedule: `num_masked` tokens over `steps` steps, the remainder to the first ones, best first."""

    def rule(confidence: Tensor, step: int) -> Tensor:
        share, extra = divmod(num_masked, steps)
        return most_confident(confidence, max(share + (step < extra), 1))

    return rule


def threshold(least: float) -> Rule:
    """Fast-dLLM, Algorithm 1: accepts all confidences of at least `least`, and always the best."""
    return lambda confidence, _: (confidence >= least) | most_confident(confidence, 1)


def factor(bound: float) -> Rule:
    """Fast-dLLM, section 3.3: accepts the n best for the largest n with (n + 1)(1 - c_n) < bound, at least one."""

    def rule(confidence: Tensor, _step: int) -> Tensor:
        ordered = confidence.sort(descending=True).values.tolist()
        fitting = [n for n, c in enumerate(ordered, start=1) if (n + 1) * (1 - c) < bound]
        return most_confident(confidence, max(fitting, default=1))

    return rule


def most_confident(confidence: Tensor, count: int) -> Tensor:
    """bool [targets]: the `count` largest, the first of equal ones."""
    accepted = torch.zeros_like(confidence, dtype=torch.bool)
    accepted[confidence.argsort(descending=True, stable=True)[:count]] = True
    return accepted
