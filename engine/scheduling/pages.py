"""The KV pages: which are free, which are held by how many requests, which may be shared and under which key.

Hands out page numbers; knows nothing of requests, tensors or what a page holds. A page with a key stays in the pool
when nobody holds it any more, until its room is needed: the one that was held least recently goes first. So do pages
that somebody keeps as they are without holding them, after those: `on_short` is called, and is to let some of them go.

Attention reads keys and values in place if the pages of a page table are neighbours. So the pages right behind a
table's last one are taken first, then the lowest run that is long enough, and scattered pages only if there is no such
run.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from engine.core.arrays import Ids


class PagePool:
    """`num_pages` pages of `page_size` slots: page p holds the slots [p * page_size, (p + 1) * page_size)."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._holders = np.zeros(num_pages, np.int64)
        self._empty = np.ones(num_pages, dtype=np.bool_)
        """Pages that nobody holds or keeps and that have no key."""
        self._keepers = np.zeros(num_pages, np.int64)
        self.on_short: Callable[[], None] = lambda: None
        """Lets some of the kept pages go; called as long as free pages are all kept, and more of them are needed."""
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}
        """Pages with a key that nobody holds, in the order in which they were given back."""

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return int(np.count_nonzero(self._holders == 0))

    @property
    def num_used(self) -> int:
        return self.num_pages - self.num_free

    @property
    def num_kept(self) -> int:
        """Free pages that still hold what may be shared."""
        return len(self._idle)

    @property
    def num_relayed(self) -> int:
        """Pages that are kept as they are, whether anybody holds them or not."""
        return int(np.count_nonzero(self._keepers))

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int, table: Sequence[int] = ()) -> tuple[int, ...] | None:
        """Takes `count` free pages, ascending, to append to the page table `table`; None if too few are free.

        They are the pages right behind the table's last one if these are free, else neighbours of each other if
        possible. Pages that hold what may be shared are only taken where there are too few others, and pages that are
        kept only after those.
        """
        if self.num_free < count:
            return None
        while np.count_nonzero(self._empty) < count:
            # Of a page that is kept, too, the room would not be there, and what may be shared would be gone.
            if (page := next((page for page in self._idle if not self._keepers[page]), None)) is not None:
                self._forget(page)
            else:
                self.on_short()
        free = np.flatnonzero(self._empty)
        first = self._first(free, count, table)
        pages = free[first : first + count]
        self._empty[pages], self._holders[pages] = False, 1
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
        """Gives pages back, each for one of its holders."""
        for page in pages:
            assert self._holders[page], f"page {page} is released twice; this is a bug"
            self._holders[page] -= 1
            if not self._holders[page]:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._empty[page] = not self._keepers[page]

    def keep(self, pages: Iterable[int]) -> None:
        """Keeps pages as they are when nobody holds them any more. They count as free all the same."""
        for page in pages:
            assert self._holders[page], f"page {page} is kept and may have changed; this is a bug"
            self._keepers[page] += 1

    def let_go(self, pages: Iterable[int]) -> None:
        """Ends a `keep` of these pages."""
        for page in pages:
            assert self._keepers[page], f"page {page} is let go twice; this is a bug"
            self._keepers[page] -= 1
            self._empty[page] = not (self._keepers[page] or self._holders[page] or page in self._key_of)

    def publish(self, page: int, key: bytes) -> None:
        """Lets others adopt a page that is held and will not be written any more. The first page of a key stays it."""
        assert self._holders[page], f"page {page} is published by nobody; this is a bug"
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def adopt(self, key: bytes) -> int | None:
        """Takes the page with this key for one holder more; None if there is none."""
        if (page := self._page_of.get(key)) is not None:
            self._holders[page] += 1
            self._idle.pop(page, None)
        return page

    def has(self, key: bytes) -> bool:
        """Whether there is a page with this key."""
        return key in self._page_of

    def num_holders(self, page: int) -> int:
        return int(self._holders[page])

    def withdraw(self, pages: Iterable[int]) -> tuple[int, ...]:
        """Keeps anybody from adopting these pages from now on. Returns those of a single holder, which nobody keeps."""
        alone = tuple(page for page in pages if self._holders[page] == 1 and not self._keepers[page])
        for page in pages:
            self._forget(page)
        return alone

    def slots(self, pages: tuple[int, ...], num_tokens: int) -> Ids:
        """[num_tokens] the slots of the first positions of a page table."""
        slots = np.asarray(pages, np.int64)[:, None] * self.page_size + np.arange(self.page_size)
        return slots.reshape(-1)[:num_tokens]

    def _forget(self, page: int) -> None:
        """Takes a page's key away. If nobody holds or keeps it, it is empty then."""
        if (key := self._key_of.pop(page, None)) is not None:
            del self._page_of[key]
        if page in self._idle:
            del self._idle[page]
            self._empty[page] = not self._keepers[page]
