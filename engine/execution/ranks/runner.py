"""A runner that computes its rank's part of a forward, and on rank 0 makes the others compute theirs.

Each call is one of all ranks: rank 0 tells the others what it calls, all of them compute and exchange tensors, and rank
0 returns once they have said how it went. A rank that fails stays in step: it takes part in what is still exchanged, so
that an error of any rank is an error of the call. Knows no requests.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from engine.core.arrays import Ids
from engine.core.errors import DeviceLost
from engine.execution.batch import Batch, FlatBatch
from engine.execution.isolate import is_memory_short
from engine.execution.ranks.group import Exchange, Group
from engine.execution.runner import Runner
from engine.kernels.attention import Kernel
from engine.kernels.kv.pool import KVPool, LayeredKVPool
from engine.kernels.proposals import best_token
from engine.kernels.transfer import Upload
from engine.models.layers import Transformer, TransformerConfig
from engine.models.noised import NoisedTransformer
from engine.models.ranks.join import Rows, join, sums

Result = TypeVar("Result")


class Call(Protocol):
    """What rank 0 tells the others to do: plain data, pickled."""

    def exchanges(self, runner: "RankedRunner") -> Sequence[Exchange]:
        """All that the call exchanges, in order."""
        ...

    def follow(self, runner: "RankedRunner") -> object:
        """A follower's part."""
        ...


class Others(Protocol):
    """The other ranks, as rank 0 sees them."""

    def tell(self, call: Call) -> None:
        """Sends a call to all of them. Raises DeviceLost if one is gone."""
        ...

    def answers(self) -> Exception | None:
        """Waits until all have done the call. Returns what one has raised, if any. Raises DeviceLost if one is gone."""
        ...

    def check(self) -> None:
        """Raises DeviceLost if one is gone."""
        ...


class RankedRunner(Runner):
    """As `Runner`, of a model whose weights, keys and values are shared out among ranks. On each of them is one.

    Logits and proposals are rank 0's; what the others return has no meaning.
    """

    def __init__(
        self,
        part: Transformer,
        pool: KVPool | LayeredKVPool,
        device: torch.device,
        kernel: Kernel,
        *,
        whole: TransformerConfig,
        group: Group,
        others: Others | None = None,
    ) -> None:
        """Joins `part`, the model of this rank. `others` are for rank 0, and None on a follower."""
        super().__init__(part, pool, device, kernel)
        join(part, group.rank, group.sum)
        self.whole, self.group = whole, group
        self._others = others
        self._tokens = group.rank.tokens(whole.vocab_size)

    def hidden(self, batch: Batch) -> Tensor:
        assert batch.flat is not None, "a batch that was not laid out on the host"
        return self._together(Forward(batch.flat), partial(self.own_hidden, batch))

    def head(self, hidden: Tensor) -> Tensor:
        return self._together(Head(len(hidden)), partial(self.own_head, hidden))

    def propose(self, hidden: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        return self._together(Propose(len(hidden), mask_id), partial(self.own_propose, hidden, mask_id))

    def remember(self, slots: Tensor, probabilities: Tensor) -> None:
        self._together(Remember(len(slots)), partial(self.own_remember, slots, probabilities))

    def move(self, sources: Ids, destinations: Ids) -> None:
        self.everywhere(Runner.move, sources, destinations)

    def clear(self, slots: Ids) -> None:
        self.everywhere(Runner.clear, slots)

    def everywhere(self, work: Callable[..., None], *arguments: Any) -> None:
        self._together(Work(work, arguments), partial(work, self, *arguments))

    def check(self) -> None:
        if self._others:
            self._others.check()

    def follow(self, call: Call) -> None:
        """Does a follower's part of a call. Raises what its computation raises, once the call is over."""
        self._together(call, partial(call.follow, self))

    def own_hidden(self, batch: Batch) -> Tensor:
        """This rank's part of `hidden`. Weights of attention, where they are asked for, are the mean over all heads."""
        hidden = super().hidden(batch)
        for layers in (*(each.layers for each in batch.watched), *(each.layers for each in batch.judged)):
            layers[:] = [self.group.sum(layer).div_(self.group.rank.size) for layer in layers]
        return hidden

    def own_head(self, hidden: Tensor) -> Tensor:
        """This rank's part of `head`."""
        parts = self.group.gather(self.model.logits(self.group.share(hidden)))
        return torch.cat(parts, dim=-1) if parts else hidden

    def own_propose(self, hidden: Tensor, mask_id: int | None) -> tuple[Tensor, Tensor]:
        """This rank's part of `propose`: its best token, the logit of it, and the log-sum-exp of its other logits."""
        logits = self.model.logits(self.group.share(hidden))
        is_own = mask_id is not None and mask_id in self._tokens
        tokens, log_odds = best_token(logits, mask_id - self._tokens.start if is_own and mask_id is not None else None)
        best = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).double()
        parts = self.group.gather(torch.stack(((tokens + self._tokens.start).double(), best, best - log_odds)))
        return best_of_all(torch.stack(parts, dim=1)) if parts else (tokens, log_odds)

    def own_remember(self, slots: Tensor, probabilities: Tensor) -> None:
        """This rank's part of `remember`: the mean embedding, as far as it is of its tokens."""
        assert isinstance(self.model, NoisedTransformer)
        assert self._vectors is not None
        slots, probabilities = self.group.share(slots), self.group.share(probabilities)
        own = probabilities[:, self._tokens.start : self._tokens.stop]
        self._vectors[slots] = self.group.sum(self.model.vectors(own))

    @property
    def bytes_per_proposal(self) -> int:
        """Logits of this rank, and in torch two float32 copies."""
        return 3 * torch.float32.itemsize

    @property
    def kv_bytes(self) -> int:
        return super().kv_bytes * self.group.rank.size

    @property
    def num_parameters(self) -> int:
        return self.whole.num_parameters

    @property
    def weight_bytes(self) -> int:
        return super().weight_bytes * self.group.rank.size

    def _together(self, call: Call, own: Callable[[], Result]) -> Result:
        """Runs one call: `own` here, while rank 0 waits for the others to do theirs."""
        if self._others:
            self._others.tell(call)
        before, failure = self.group.done, None
        try:
            result = own()
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - raised below: here its traceback would be in use
            failure = error
        if failure:
            let_go(failure)
            self.group.give_up(call.exchanges(self)[self.group.done - before :])
            if self._others:
                self._others.answers()
            raise failure
        if self._others and (theirs := self._others.answers()):
            raise theirs
        return result


def let_go(error: Exception) -> None:
    """Frees the tensors of what has failed, which the frames of its traceback hold: giving up takes memory, too."""
    traceback.clear_frames(error.__traceback__)
    if is_memory_short(error):
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use


def best_of_all(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Each rank's `own_propose`, float64 [3, ranks, rows], ranks in the order of their tokens -> as `propose`.

    Of equals, the first rank's is the token with the lowest id.
    """
    tokens, best, others = parts
    winner = best.argmax(dim=0, keepdim=True)
    rest = torch.logaddexp(best, others).scatter(0, winner, others.gather(0, winner)).logsumexp(dim=0)
    log_odds = best.gather(0, winner).squeeze(0) - rest
    return tokens.gather(0, winner).squeeze(0).long(), log_odds.float()


@dataclass(frozen=True, slots=True)
class Forward:
    """`Runner.hidden`."""

    flat: FlatBatch

    def exchanges(self, runner: RankedRunner) -> list[Exchange]:
        flat, dtype, geometry = self.flat, runner.model.embed.dtype, runner.whole
        rows = Rows(len(flat.ids), len(flat.logit_rows), flat.adapted is not None, flat.open_rows is not None)
        watched = [(span.stop - span.start, int(flat.horizons[span.start])) for span in flat.watched]
        judged = [(len(slots) - (judges.stop - judges.start),) for judges, slots, _ in flat.judged]
        weights = [shape for shape in (*watched, *judged) for _ in range(geometry.num_layers)]
        return [
            *(Exchange("sum", shape, dtype) for shape in sums(geometry, rows)),
            *(Exchange("sum", shape, torch.float32) for shape in weights),
        ]

    def follow(self, runner: RankedRunner) -> None:
        upload = Upload(runner.device)
        batch = self.flat.add_to(upload)
        upload.send()
        runner.own_hidden(batch())


@dataclass(frozen=True, slots=True)
class Head:
    """`Runner.head`."""

    count: int

    def exchanges(self, runner: RankedRunner) -> list[Exchange]:
        dtype = torch.float32 if runner.whole.sandwich else runner.model.embed.dtype
        vocab = runner.model.config.vocab_size
        return [_hidden(runner, self.count), Exchange("gather", (self.count, vocab), dtype)]

    def follow(self, runner: RankedRunner) -> None:
        runner.own_head(_empty(runner, _hidden(runner, self.count)))


@dataclass(frozen=True, slots=True)
class Propose:
    """`Runner.propose`."""

    count: int
    mask_id: int | None

    def exchanges(self, runner: RankedRunner) -> list[Exchange]:
        return [_hidden(runner, self.count), Exchange("gather", (3, self.count), torch.float64)]

    def follow(self, runner: RankedRunner) -> None:
        runner.own_propose(_empty(runner, _hidden(runner, self.count)), self.mask_id)


@dataclass(frozen=True, slots=True)
class Remember:
    """`Runner.remember`."""

    count: int

    def exchanges(self, runner: RankedRunner) -> list[Exchange]:
        whole = runner.whole
        return [
            Exchange("share", (self.count,), torch.int64),
            Exchange("share", (self.count, whole.vocab_size), torch.float32),
            Exchange("sum", (self.count, whole.dim), runner.model.embed.dtype),
        ]

    def follow(self, runner: RankedRunner) -> None:
        slots, probabilities, _ = self.exchanges(runner)
        runner.own_remember(_empty(runner, slots), _empty(runner, probabilities))


@dataclass(frozen=True, slots=True)
class Work:
    """`Runner.everywhere`."""

    work: Callable[..., None]
    """A function of a module, which takes a runner first."""
    arguments: tuple[Any, ...]

    def exchanges(self, _: RankedRunner) -> list[Exchange]:
        return []

    def follow(self, runner: RankedRunner) -> None:
        self.work(runner, *self.arguments)


def _hidden(runner: RankedRunner, count: int) -> Exchange:
    return Exchange("share", (count, runner.whole.dim), runner.model.embed.dtype)


def _empty(runner: RankedRunner, exchange: Exchange) -> Tensor:
    return torch.empty(exchange.shape, dtype=exchange.dtype, device=runner.device)
