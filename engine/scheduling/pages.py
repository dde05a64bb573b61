"""Which KV pages are free. Hands out page numbers; knows nothing of requests, tensors or what a page holds.

Attention reads keys and values in place if the pages of a page table are neighbours. So the pages right behind a
table's last one are taken first, then the lowest run that is long enough, and scattered pages only if there is no such
run.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from engine.core.request import Ids


class PagePool:
    """`num_pages` pages of `page_size` slots: page p holds the slots [p * page_size, (p + 1) * page_size)."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = np.ones(num_pages, dtype=np.bool_)

    @property
    def num_free(self) -> int:
        return int(self._free.sum())

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int, table: Sequence[int] = ()) -> tuple[int, ...] | None:
        """Takes `count` free pages, ascending, to append to the page table `table`; None if too few are free.

        They are the pages right behind the table's last one if these are free, else neighbours of each other if
        possible.
        """
        free = np.flatnonzero(self._free)
        if len(free) < count:
            return None
        first = self._first(free, count, table)
        pages = free[first : first + count]
        self._free[pages] = False
        return tuple(int(page) for page in pages)

    @staticmethod
    def _first(free: Ids, count: int, table: Sequence[int]) -> int:
        """Index in `free` [free pages] of the first page to take."""
        # Free pages are distinct and ascending, so `count` of them are neighbours if the last is the first + count - 1.
        first, last = free[: len(free) - count + 1], free[count - 1 :]
        runs = np.flatnonzero(last == first + count - 1)
        if table:
            behind = runs[free[runs] == table[-1] + 1]
            if len(behind):
                return int(behind[0])
        return int(runs[0]) if len(runs) else 0

    def release(self, pages: Iterable[int]) -> None:
        """Marks pages as free."""
        for page in pages:
            assert not self._free[page], f"page {page} is released twice; this is a bug"
            self._free[page] = True

    def slots(self, pages: tuple[int, ...], num_tokens: int) -> Ids:
        """[num_tokens] the slots of the first positions of a page table."""
        slots = np.asarray(pages, np.int64)[:, None] * self.page_size + np.arange(self.page_size)
        return slots.reshape(-1)[:num_tokens]
