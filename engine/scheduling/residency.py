"""Which pages a request holds: as many as its visible positions need, some of them shared with others.

Pages come as blocks open. Requests of models that attend in both directions are never preempted, because their keys and
values depend on when they were computed: they get pages as long as the state stays safe (`safe_state`). Those of
block-causal models get what is free, share final pages with requests that have the same tokens (`prefix`), and may lose
all pages at the beginning of a block: what they compute again is the same. Writes the fields of `Request` that say
where its keys and values are.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from engine.core.arrays import Ids
from engine.core.requests.request import Request
from engine.core.steps.plan import StepPlan
from engine.scheduling.pages import PagePool
from engine.scheduling.prefix import final_pages, page_keys
from engine.scheduling.safe_state import Claim, is_safe


class Residency:
    """The pages of all running requests."""

    def __init__(self, pool: PagePool, *, shares_prefixes: bool) -> None:
        self.pool = pool
        self.shares_prefixes = shares_prefixes
        self.num_looked_up = self.num_found = 0
        """Prompt tokens of admitted requests, and those of them whose keys and values were there."""
        self.num_evictions = self.num_evicted = self.num_freed = 0
        """How often requests gave up keys and values, of how many tokens, and pages that this freed."""

    def enter(self, request: Request, running: Sequence[Request]) -> bool:
        """Gives a waiting request its first pages; returns whether there are enough."""
        self._adopt(request)
        if not self._leaves_room(request, running) or not self.grow(request, running):
            self.leave(request)
            return False
        if self.shares_prefixes and self._shares(request) and not request.is_preempted:
            self.num_looked_up += request.num_prompt_tokens
            self._count_found(request, 0)
        return True

    def catch_up(self, request: Request) -> None:
        """Takes over pages that others have computed since the request entered, instead of computing the same."""
        if self.shares_prefixes and self._shares(request) and not request.is_prefilled:
            before = request.committed
            self._adopt(request)
            if not request.is_preempted:
                self._count_found(request, before)

    def leave(self, request: Request) -> None:
        """Takes all pages from a request. It keeps its tokens, and may enter again."""
        # The last page first: of pages with a key, those that most answers begin with stay longest.
        self.pool.release(reversed(request.pages))
        request.pages, request.slots = (), np.empty(0, np.int64)
        request.committed = request.num_shared_pages = 0
        request.kept_counts = None
        request.is_prefilled = request.block.is_computed = False

    def lacks(self, request: Request) -> bool:
        """Whether positions are visible that have no slot."""
        return len(request.slots) < request.slots_needed

    def grow(self, request: Request, running: Iterable[Request]) -> bool:
        """Takes the pages that its visible positions lack, if that is possible; returns whether all have a slot."""
        pool, count = self.pool, self.missing(request)
        if count > 0:
            if count > pool.num_free or not (request.spec.is_block_causal or self._can_spare(count, request, running)):
                return False
            pages = pool.allocate(count, request.pages)
            assert pages is not None, "fewer free pages than counted; this is a bug"
            request.pages += pages
            self._place(request)
        return True

    def share(self, request: Request) -> None:
        """Lets others adopt the pages that have become final."""
        if not (self.shares_prefixes and self._shares(request)):
            return
        first, end = request.num_shared_pages, min(request.committed, request.exact_end)
        count = final_pages(request, self.pool.page_size, end)
        if first < count:
            keys = page_keys(request, self.pool.page_size, count)
            for page, key in zip(request.pages[first:count], keys[first:], strict=True):
                self.pool.publish(page, key)
            request.num_shared_pages = count

    def without_repeats(self, plans: Sequence[StepPlan]) -> list[StepPlan]:
        """The plans without those whose first rows another one of them computes, for the same tokens.

        In the next step, these find the other's pages.
        """
        if not self.shares_prefixes:
            return list(plans)
        under_way, waiting = set[bytes](), set[str]()
        # Who is furthest leads, and among equals the oldest: so nobody computes what another one has begun.
        for plan in sorted(plans, key=lambda plan: (-plan.request.committed, plan.request.arrival)):
            keys = self._keys_to_compute(plan.request)
            if keys and keys[0] in under_way:
                waiting.add(plan.request.id)
            under_way.update(keys)
        return [plan for plan in plans if plan.request.id not in waiting]

    def freed_by(self, requests: Iterable[Request]) -> int:
        """How many pages would be free if these requests gave all of theirs back."""
        holders = Counter(page for request in requests for page in request.pages)
        return sum(self.pool.num_holders(page) == count for page, count in holders.items())

    def missing(self, request: Request) -> int:
        """How many pages its visible positions lack."""
        return self.pool.pages_for(request.slots_needed) - len(request.pages)

    def withdraw(self, request: Request) -> Ids:
        """Keeps anybody from adopting the request's pages. Returns the slots that only it holds."""
        alone = self.pool.withdraw(request.pages)
        return self.pool.slots(alone, len(alone) * self.pool.page_size)

    def evict(self, request: Request, kept: Ids, end: int) -> tuple[Ids, Ids]:
        """Gives up what the request holds before `end`, but for the positions `kept`, ascending.

        What stays moves to its first slots, and pages that are empty then are given back. Returns the slots that are
        to be copied, and where to, before anybody writes.
        """
        assert not self._shares(request), "an eviction from pages that others may read; this is a bug"
        stays = request.kept if request.kept is not None else np.ones(request.canvas_end, np.bool_)
        stays[:end] = False
        stays[kept] = True
        # Whatever stands behind `end` and has been computed moves, too.
        positions = np.flatnonzero(stays)
        sources = request.kept_before(positions)
        kept_counts = np.concatenate([[0], np.cumsum(stays)])
        moved = (sources != kept_counts[positions]) & (sources < len(request.slots))
        move = request.slots[sources[moved]], request.slots[kept_counts[positions[moved]]]
        request.num_evicted = max(request.num_evicted, request.canvas_end - len(positions))
        self.num_evictions += 1
        self.num_evicted += request.num_kept_before(end) - len(kept)
        request.kept_counts = kept_counts
        count = self.pool.pages_for(request.slots_needed)
        self.pool.release(reversed(request.pages[count:]))
        self.num_freed += len(request.pages[count:])
        request.pages = request.pages[:count]
        self._place(request)
        return move

    @staticmethod
    def _shares(request: Request) -> bool:
        """Whether its keys and values are those of any request with its tokens: they are not where some are evicted."""
        return request.diffusion.kv_budget is None

    def _adopt(self, request: Request) -> None:
        """Takes over final pages in place of those that the request lacks or has not computed."""
        if not (self.shares_prefixes and self._shares(request)):
            return
        size, first = self.pool.page_size, request.committed // self.pool.page_size
        pages: list[int] = []
        for key in page_keys(request, size, self._num_exact(request))[first:]:
            if (page := self.pool.adopt(key)) is None:
                break
            pages.append(page)
        if pages:
            end = first + len(pages)
            self.pool.release(request.pages[first:end])
            request.pages = (*request.pages[:first], *pages, *request.pages[end:])
            request.committed, request.num_shared_pages = end * size, end
            self._place(request)

    def _count_found(self, request: Request, before: int) -> None:
        """Counts prompt tokens in adopted pages: those whose keys and values have become final without a step."""
        prompt = request.num_prompt_tokens
        found = min(request.committed, prompt) - min(before, prompt)
        request.cached_tokens += found
        self.num_found += found

    def _keys_to_compute(self, request: Request) -> list[bytes]:
        """Keys of the whole pages before the open block that the request has still to compute."""
        if request.is_prefilled or not self._shares(request):
            return []
        size = self.pool.page_size
        return page_keys(request, size, self._num_exact(request))[request.committed // size :]

    def _num_exact(self, request: Request) -> int:
        """How many pages before the open block hold what any request with the same tokens computes."""
        return final_pages(request, self.pool.page_size, min(request.block.rows_start, request.exact_end))

    def _leaves_room(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether a page is left for each running request that may take more: else the newcomer would soon give way."""
        if not request.spec.is_block_causal:
            return True
        growing = sum(self.pool.pages_for(other.most_slots) > len(other.pages) for other in running)
        return self.pool.num_free - self.missing(request) >= growing or not running

    def _can_spare(self, count: int, taker: Request, running: Iterable[Request]) -> bool:
        """Whether all running requests and the taker could end one after the other if it took `count` pages more."""
        claims = [self._claim(request) for request in running if request is not taker]
        held, missing = self._claim(taker)
        return is_safe(self.pool.num_free - count, [*claims, Claim(held + count, missing - count)])

    def _claim(self, request: Request) -> Claim:
        held = len(request.pages)
        return Claim(held, self.pool.pages_for(request.most_slots) - held)

    def _place(self, request: Request) -> None:
        """Sets the slots of the request's positions."""
        request.slots = self.pool.slots(request.pages, len(request.pages) * self.pool.page_size)
