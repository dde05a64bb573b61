"""Sources: ended requests whose keys and values later ones may take over, where they name them (docs/adr/039).

A source keeps pages, but does not hold them: they count as free, and the source that was named least recently goes when
anybody needs one. What a request decoded last has keys and values of masks, and where rows see what stands behind them,
all that was computed before knows only masks there: a source is ready once such rows were computed as what they are
now. Who names a source that is not yet ready waits for it, and nobody else does.

Knows requests, pages and slots, but no tensors: what is to be moved is said as `Move`s.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import NamedTuple, TypeVar

import numpy as np

from engine.core.arrays import Ids
from engine.core.output import Relayed
from engine.core.requests.history import History
from engine.core.requests.request import Request, Run
from engine.core.steps.plan import StepPlan
from engine.scheduling.pages import PagePool
from engine.scheduling.prefix import final_pages, page_keys
from engine.scheduling.relay.runs import LEAST, Windows, matches

Score = TypeVar("Score")
MOST_CHOICES = 8
"""Choices of an answer that are looked at: what is asked of a step must not grow with `n`."""


class Move(NamedTuple):
    """Keys and values that a request takes over, each into a slot of its own."""

    request: Request
    sources: Ids
    """[some] slots."""
    targets: Ids
    """[some] slots, none of them among the `sources`."""
    shift: int
    """Positions that the tokens stand further right than they did."""


@dataclass(slots=True, eq=False)
class Source:
    """What is left of one ended request."""

    name: str
    canvas: Request
    """As it was at its end, under an id of its own."""
    pages: tuple[int, ...]
    windows: Windows
    commit: StepPlan | None
    """The rows that are still to be computed as what they are now; None if it is ready."""


class Relay:
    """The sources of one engine, `max_tokens` tokens at most, whole pages counted."""

    def __init__(self, pool: PagePool, max_tokens: int, *, shares_prefixes: bool) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.shares_prefixes = shares_prefixes
        self.counts: Counter[str] = Counter({"adopted": 0, "recomputed": 0, "missed": 0})
        """Prompt tokens of requests that name sources: taken over; of these, computed again; and those that might have
        been taken over, and that no source had."""
        self._sources: dict[int, Source] = {}
        """By number, the one that was named least recently first."""
        self._named: dict[str, dict[int, Source]] = {}
        self._pending: dict[str, int] = {}
        """The numbers of those that are not ready, by the id of their canvas."""
        self._num_made = self._num_dropped = self._num_tokens = 0
        self._matched: tuple[int, int, int] | None = None
        """The request that was matched last, by its arrival, and how many sources had been made and dropped then."""
        self._moves: list[Move] = []
        pool.on_short = self._drop_oldest

    @property
    def sources(self) -> Sequence[Source]:
        """All of them, the one that was named least recently first."""
        return list(self._sources.values())

    @property
    def is_pending(self) -> bool:
        """Whether any source is not ready: a step is worth while for its sake alone."""
        return bool(self._pending)

    def keep(self, request: Request, end: int) -> None:
        """Makes a source of a request that ends with its last kept token before `end`, and still holds its pages.

        Unless it has holes, takes more room than all sources may, or could give up keys and values.
        """
        pages = request.pages[: self.pool.pages_for(end)]
        size = len(pages) * self.pool.page_size
        if _has_holes(request) or size > self.max_tokens or request.diffusion.kv_budget is not None:
            return
        while self._num_tokens + size > self.max_tokens:
            self._drop_oldest()
        self.pool.keep(pages)
        ids = request.ids[:end].copy()
        if request.spec.is_block_causal:
            ids[request.spared] = -1  # taken over itself, and never computed: it is its own source's to hand on
        self._num_made += 1
        canvas = _without_results(request, self._num_made)
        source = Source(request.relay_as, canvas, pages, Windows(ids), _as_itself(canvas, end))
        self._num_tokens += size
        self._sources[self._num_made] = self._named.setdefault(source.name, {})[self._num_made] = source
        if source.commit:
            self._pending[canvas.id] = self._num_made

    def match(self, request: Request) -> None:
        """Sets what a request will take over, before it gets its first pages."""
        request.relayed, request.spared = None, np.empty(0, np.int64)
        now = (request.arrival, self._num_made, self._num_dropped)
        if self._matched == now:  # the queue's first is matched in each step in which there is no room for it
            return
        self._matched = now
        known = dict(self._known(request))
        for number in known:
            self._sources[number] = self._sources.pop(number)
        numbers = list(known)
        found = matches(request.ids[: _end(request)], [source.windows for source in known.values()])
        runs = [Run(numbers[match.text], match.text_start, match.start, match.length) for match in found]
        request.runs = tuple(self._worth_taking(request, runs) if self.shares_prefixes else runs)

    def awaits(self, request: Request) -> StepPlan | None:
        """What must be computed before the request's first plan, if anything: else it has taken over what it can."""
        if request.relayed:
            return None
        if any(run.source not in self._sources for run in request.runs):
            self.match(request)
        for run in request.runs:
            if plan := self._sources[run.source].commit:
                return plan
        self._take_over(request)
        return None

    def commits(self, chosen: Sequence[StepPlan], max_rows: int) -> list[StepPlan]:
        """What is still to be computed of one source, if the rows hold it that these plans leave.

        Of one alone: whoever has a plan in this step, or comes during it, waits for all of it.
        """
        if not self._pending or not self._pending.keys().isdisjoint(plan.request.id for plan in chosen):
            return []
        plan = self._sources[next(iter(self._pending.values()))].commit
        assert plan is not None, "a source that is ready and pending; this is a bug"
        rows = sum(len(plan.rows) for plan in chosen)
        return [plan] if rows + len(plan.rows) <= max_rows or not chosen else []

    def settle(self, plans: Sequence[StepPlan], scores: Sequence[Score]) -> tuple[list[StepPlan], list[Score], int]:
        """Makes the sources ready whose plans are among these, which were computed. Returns the others with their
        scores, and the rows of those."""
        if not self._pending:
            return list(plans), list(scores), 0
        others, rows = [], 0
        for plan, score in zip(plans, scores, strict=True):
            if (number := self._pending.pop(plan.request.id, None)) is None:
                others.append((plan, score))
            else:
                self._sources[number].commit = None
                rows += len(plan.rows)
        return [plan for plan, _ in others], [score for _, score in others], rows

    def fail(self, canvas: Request) -> Ids:
        """Drops the source of this canvas, whose plan failed. Returns the slots that this may have spoilt."""
        number = self._pending.get(canvas.id)
        if number is None or (plan := self._sources[number].commit) is None:
            return np.empty(0, np.int64)
        spoilt: Ids = canvas.slots[plan.rows]
        self._drop(number)
        return spoilt

    def give_up(self, request: Request) -> None:
        """What the request was to take over could not be moved: it computes all of it instead, from now on."""
        assert request.relayed is not None, "a request that has taken over nothing"
        request.runs, request.spared = (), np.empty(0, np.int64)
        request.relayed = replace(request.relayed, adopted=0, recomputed=0)

    def drop_pending(self) -> None:
        """Forgets the sources that are not ready, and moves that were not carried out."""
        for number in list(self._pending.values()):
            self._drop(number)
        self._moves.clear()

    def take_moves(self) -> list[Move]:
        """What is to be moved before the plans of this step are computed, once.

        No page changes hands between planning and then: what a move reads, nobody has written to yet.
        """
        moves, self._moves = self._moves, []
        return moves

    def _worth_taking(self, request: Request, runs: Sequence[Run]) -> Iterator[Run]:
        """What is left of the runs where pages are shared, which are exact: none that are there already are taken over.

        The same tokens from the start on have such pages, or will have; and what is all computed again shall have.
        """
        first = self._known_end(request)
        for run in runs:
            past, is_beginning = max(first - run.start, 0), run.start == run.source_start == 0
            if past < run.length and not is_beginning and request.diffusion.relay_recompute < 1:
                yield Run(run.source, run.source_start + past, run.start + past, run.length - past)

    def _known_end(self, request: Request) -> int:
        """Positions before this one have pages that others have computed for the same tokens."""
        size = self.pool.page_size
        keys = page_keys(request, size, final_pages(request, size, request.block.rows_start))
        return size * sum(1 for _ in takewhile(self.pool.has, keys))

    def _known(self, request: Request) -> Iterator[tuple[int, Source]]:
        """Numbers and sources, in the order of the names: of the request's salt alone."""
        for name in dict.fromkeys(request.relay_from):
            named = self._named.get(name, {}).items()
            same = ((number, source) for number, source in named if source.canvas.cache_salt == request.cache_salt)
            yield from islice(same, MOST_CHOICES)

    def _take_over(self, request: Request) -> None:
        """Fills the slots of the request's runs, but for positions that are final already or computed again."""
        adopted, spared = 0, [request.spared]
        for run in request.runs:
            source = self._sources[run.source].canvas
            start, end = max(run.start, request.committed), run.start + run.length
            length = max(end - start, 0)
            taken = np.arange(start, end - round(request.diffusion.relay_recompute * length))
            if len(taken):
                shift = run.start - run.source_start
                self._moves.append(Move(request, source.slots[taken - shift], request.slots[taken], shift))
            adopted += length
            spared.append(taken)
        request.spared = np.concatenate(spared)
        here = {source.name for _, source in self._known(request)}
        unknown = len(set(request.relay_from) - here)
        recomputed = adopted - len(request.spared)
        request.relayed = Relayed(adopted=adopted, recomputed=recomputed, unknown=unknown)
        missed = max(_end(request) - min(request.committed, request.exact_end) - adopted, 0)
        if not request.is_preempted:
            self.counts.update({"adopted": adopted, "recomputed": recomputed, "missed": missed})

    def _drop_oldest(self) -> None:
        self._drop(next(iter(self._sources)))

    def _drop(self, number: int) -> None:
        source = self._sources.pop(number)
        self._pending.pop(source.canvas.id, None)
        self._num_dropped += 1
        self._num_tokens -= len(source.pages) * self.pool.page_size
        named = self._named[source.name]
        del named[number]
        if not named:
            del self._named[source.name]
        self.pool.let_go(source.pages)


def without_spared(plan: StepPlan) -> StepPlan:
    """The plan without rows whose keys and values its request has taken over, if it is one of its first."""
    request = plan.request
    if not len(request.spared) or (request.forwards and not request.spec.is_block_causal):
        return plan
    needed = ~np.isin(plan.rows, request.spared) | np.isin(plan.rows, plan.sources)
    return replace(plan, rows=plan.rows[needed], horizons=plan.horizons[needed])


def _without_results(request: Request, number: int) -> Request:
    """What a plan needs of an ended request, under an id of its own."""
    canvas = copy(request)
    canvas.id, canvas.pages, canvas.is_prefilled = f"{request.id}, {number} (ended)", (), True
    canvas.history, canvas.logprobs, canvas.steps, canvas.page_keys = History.empty(0), {}, None, []
    canvas.constraint, canvas.sampling = None, replace(request.sampling, constraint=None)
    return canvas


def _end(request: Request) -> int:
    """Prompt tokens before this position may be taken over.

    The last `LEAST` ones are computed, and on block-causal models all that are in the first open block, or say what its
    first token is.
    """
    if _has_holes(request):
        return 0
    end = request.num_prompt_tokens - LEAST
    if request.relay_end is not None:
        end = min(end, request.relay_end)
    if request.spec.is_block_causal:
        end = min(end, request.first_block_start - request.lead - 1)
    return max(end, 0)


def _has_holes(request: Request) -> bool:
    return request.num_prompt_tokens != request.answer_start


def _as_itself(canvas: Request, end: int) -> StepPlan | None:
    """Computes rows before `end` whose keys and values are not those of the canvas as it is; None if there are none.

    On block-causal models that is the last block, else all: what the prompt has was computed when the answer was masks,
    and would have others see a gap behind it. Nothing behind `end` is seen: there may be masks.
    """
    if canvas.spec.is_block_causal:
        rows = np.arange(canvas.committed, end)
        horizons = np.minimum((rows // canvas.commit_length + 1) * canvas.commit_length, end)
    else:
        rows = np.arange(end)
        horizons = np.full(len(rows), end)
    none = np.empty(0, np.int64)
    return StepPlan(canvas, rows, horizons, none, is_causal=canvas.spec.says_next) if len(rows) else None
