"""Target logits -> proposed tokens and confidences: once for the whole batch, one transfer to the host.

Knows no policy: what becomes of a proposal is decided in `engine.unmask`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.noise import hashed
from engine.plan import Scores, StepPlan


def score(logits: Tensor, plans: Sequence[StepPlan], mask_id: int) -> list[Scores]:
    """logits [targets of all plans, vocab] (overwritten) -> one `Scores` per plan.

    A token's log-odds are its logit less the float32 log-sum-exp of all others, the mask token's among them, which is
    itself never chosen. Temperature adds Gumbel noise to the choice, not to its confidence, as LLaDA's sampler does.
    """
    logits = logits.float()
    mask_logits = logits[:, mask_id].clone()
    logits[:, mask_id] = -torch.inf
    tokens = logits.argmax(dim=-1)
    counts = [len(plan.targets) for plan in plans]
    warm = np.flatnonzero(np.repeat([plan.request.sampling.temperature > 0 for plan in plans], counts))
    if len(warm):
        rows = torch.from_numpy(warm).to(logits.device, non_blocking=True)
        tokens[rows] = _sample(logits[rows], warm, plans, counts)
    chosen = logits.gather(-1, tokens[:, None])
    logits[:, mask_id] = mask_logits
    log_odds = chosen.squeeze(-1) - logits.scatter_(-1, tokens[:, None], -torch.inf).logsumexp(dim=-1)
    # The step's one device synchronisation. float64 holds every token id and every float32 exactly.
    host = torch.stack((tokens.double(), log_odds.double())).cpu().numpy()
    columns = np.split(host, np.cumsum(counts)[:-1], axis=1)
    return [Scores(tokens.astype(np.int64), log_odds) for tokens, log_odds in columns]


def _sample(logits: Tensor, rows: np.ndarray, plans: Sequence[StepPlan], counts: list[int]) -> Tensor:
    """Tokens [rows] drawn from softmax(logits / temperature) by Gumbel noise hashed from (seed, position, step, token).

    `rows` are the indices of these logits among the targets of all plans.
    """

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values[rows]).to(logits.device, non_blocking=True)[:, None]

    requests = [plan.request for plan in plans]
    seeds = column(np.repeat(np.array([request.sampling.seed for request in requests], np.int64), counts))
    steps = column(np.repeat(np.array([request.forwards for request in requests], np.int64), counts))
    temperatures = column(np.repeat(np.array([r.sampling.temperature for r in requests], np.float32), counts))
    positions = column(np.concatenate([plan.targets for plan in plans]))
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    uniform = (hashed(seeds, positions, steps, tokens).float() + 0.5) / 2.0**32
    # -log1p(-u) is an exponential variate, precise where it is small: where the Gumbel noise -log of it is large.
    return (logits - temperatures * torch.log(-torch.log1p(-uniform))).argmax(dim=-1)
