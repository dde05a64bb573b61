"""The allocator: what it hands out, and that it prefers neighbours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduling.pages import PagePool


def test_neighbours_are_preferred_to_the_lowest_pages():
    pool = PagePool(10, 4)
    first, second, third = pool.allocate(2), pool.allocate(1), pool.allocate(3)
    assert (first, second, third) == ((0, 1), (2,), (3, 4, 5))
    pool.release(second)
    assert pool.allocate(2) == (6, 7)
    assert pool.allocate(1) == (2,)


def test_scattered_pages_are_better_than_none():
    pool = PagePool(5, 4)
    pages = pool.allocate(5)
    pool.release(pages[::2])
    assert pool.allocate(3) == (0, 2, 4)
    assert pool.allocate(1) is None


def test_a_table_grows_by_its_neighbours_while_they_are_free():
    pool = PagePool(12, 4)
    first, second = pool.allocate(2), pool.allocate(1)
    assert (first, second) == ((0, 1), (2,))
    assert pool.allocate(2, first) == (3, 4)
    assert pool.allocate(2, (3, 4)) == (5, 6)
    pool.release((3, 4))
    assert pool.allocate(2, (5, 6)) == (7, 8), "not the lowest run, but the one behind the table"
    assert pool.allocate(3, (7, 8)) == (9, 10, 11)
    assert pool.allocate(1, (11,)) == (3,), "a table need not ascend"


def test_slots_follow_the_table():
    assert PagePool(9, 3).slots((1, 4), 5).tolist() == [3, 4, 5, 12, 13]
    assert PagePool(9, 3).slots((4, 1), 5).tolist() == [12, 13, 14, 3, 4]


def test_releasing_twice_is_a_bug():
    pool = PagePool(2, 4)
    pages = pool.allocate(1)
    pool.release(pages)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(pages)


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60))
def test_pages_are_conserved(num_pages, moves):
    pool, held = PagePool(num_pages, 2), []
    for take, count in moves:
        if take:
            pages = pool.allocate(count, held[-1] if held else ())
            free = num_pages - sum(map(len, held))
            assert (pages is None) == (count > free)
            if pages:
                assert list(pages) == sorted(set(pages))
                assert not {*pages} & {page for table in held for page in table}
                held.append(pages)
        elif held:
            pool.release(held.pop(count % len(held)))
        assert pool.num_free == num_pages - sum(map(len, held))
