"""Which KV pages are free. Hands out page numbers; knows nothing of requests, tensors or what a page holds.

A table of neighbouring pages lets attention read keys and values in place, so pages behind those that a table has are
taken first, then the lowest run that is long enough, and scattered ones only where there is none.
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
        """`count` free pages, ascending, to come behind those of `table`; None if there are too few.

        Neighbours of its last page if these are free, else neighbours of each other if possible.
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
        """Where in `free` the pages to be taken begin."""
        # Free pages are distinct and ascending, so `count` of them are neighbours if the last is the first + count - 1.
        first, last = free[: len(free) - count + 1], free[count - 1 :]
        runs = np.flatnonzero(last == first + count - 1)
        if table:
            behind = runs[free[runs] == table[-1] + 1]
            if len(behind):
                return int(behind[0])
        return int(runs[0]) if len(runs) else 0

    def release(self, pages: Iterable[int]) -> None:
        """Takes pages back."""
        for page in pages:
            assert not self._free[page], f"page {page} is released twice; this is a bug"
            self._free[page] = True

    def slots(self, pages: tuple[int, ...], num_tokens: int) -> Ids:
        """The slot of each of the first `num_tokens` positions of a table of pages."""
        slots = np.asarray(pages, np.int64)[:, None] * self.page_size + np.arange(self.page_size)
        return slots.reshape(-1)[:num_tokens]
