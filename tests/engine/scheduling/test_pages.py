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


def test_a_shared_page_is_free_when_its_last_holder_gives_it_back():
    pool = PagePool(4, 8)
    (page,) = pool.allocate(1)
    pool.publish(page, b"key")
    assert pool.adopt(b"key") == page
    pool.release([page])
    assert pool.num_used == 1
    pool.release([page])
    assert (pool.num_used, pool.num_kept) == (0, 1)
    assert pool.adopt(b"key") == page, "it still holds what it held"
    assert pool.adopt(b"other") is None


def test_pages_that_may_be_shared_go_last_and_the_least_recently_held_first():
    pool = PagePool(4, 8)
    first, second, third = (pool.allocate(1)[0] for _ in range(3))
    for page, key in ((first, b"1"), (second, b"2"), (third, b"3")):
        pool.publish(page, key)
    pool.release([second, first, third])
    assert pool.allocate(1) == (3,), "the one that holds nothing"
    assert pool.num_kept == 3
    assert pool.allocate(1) == (second,)
    assert pool.adopt(b"2") is None
    pool.release([pool.adopt(b"1")])
    assert pool.allocate(1) == (third,), "the other was held after it"
    assert pool.adopt(b"3") is None
    assert pool.allocate(2) is None


def test_the_first_page_of_a_key_stays_it():
    pool = PagePool(4, 8)
    first, second = pool.allocate(2)
    pool.publish(first, b"key")
    pool.publish(second, b"key")
    pool.release([first, second])
    assert pool.num_kept == 1
    assert pool.adopt(b"key") == first


def test_a_withdrawn_page_is_adopted_by_nobody():
    pool = PagePool(4, 8)
    pages = pool.allocate(3)
    for page in pages:
        pool.publish(page, bytes([page]))
    held = pool.adopt(bytes([pages[1]]))
    assert pool.withdraw(pages) == (pages[0], pages[2]), "the other has a second holder"
    assert [pool.adopt(bytes([page])) for page in pages] == [None] * 3
    pool.release(pages)
    pool.release([held])
    assert (pool.num_free, pool.num_kept) == (4, 0)


def test_pages_that_are_kept_stay_as_they_are_and_count_as_free():
    pool, let_go = PagePool(4, 8), []
    kept = pool.allocate(3)
    pool.keep(kept)
    pool.publish(kept[0], b"key")
    assert pool.withdraw(kept) == (), "others read them"
    pool.release(kept)
    assert (pool.num_free, pool.num_relayed, pool.num_kept) == (4, 3, 0)
    assert pool.allocate(1) == (3,)
    pool.on_short = lambda: let_go.append(kept[len(let_go)]) or pool.let_go(let_go[-1:])
    assert pool.allocate(2) == kept[:2]
    assert pool.num_relayed == 1
    assert pool.allocate(2) is None, "more than there are"
    assert let_go == list(kept[:2])
