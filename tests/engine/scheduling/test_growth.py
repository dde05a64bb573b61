"""Growth, sharing and preemption by hand: who computes what, who gives way, how many run."""

import pytest

from engine.core.requests.request import Request
from engine.scheduling.safe_state import most_alike_growing

from .simulated import PREFIXES, Simulated, spec, submission


def drain(world, requests):
    for request in requests:
        world.scheduler.add(request)
    while world.scheduler.running or world.scheduler.waiting:
        world.step()
    return [request.decoded_tokens.tolist() for request in requests]


def crowd(count, prompt, **own):
    return [Request.new(submission(number, prompt, **own), spec()) for number in range(count)]


@pytest.mark.parametrize("max_batch_rows", [1000, 64, 20])
def test_a_common_prefix_is_computed_once_though_all_come_at_once(max_batch_rows):
    """Also where the budget is less than the prompt, which then comes in parts."""
    requests = crowd(16, PREFIXES[0][:41], max_tokens=3)
    world = Simulated(200, 8, max_batch_rows=max_batch_rows, max_running=16)
    drain(world, requests)
    common = 40
    assert world.rows == common + 16 * 4 * 3, "and each computes its own block in three steps"
    assert [request.cached_tokens for request in requests] == [0] + [common] * 15, "the oldest computes all of it"
    assert world.scheduler.residency.num_found == 15 * common


def test_requests_of_another_salt_or_another_block_length_share_nothing():
    alike = [{}, {"salt": "other"}, {"block_length": 8}]
    requests = [
        Request.new(submission(number, PREFIXES[0][:40], max_tokens=4, **own), spec())
        for number, own in enumerate(alike)
    ]
    drain(Simulated(200, 8, max_batch_rows=1000), requests)
    assert [request.cached_tokens for request in requests] == [0, 0, 0]


def test_a_second_turn_finds_the_first_ones_prompt_and_answer():
    world = Simulated(40, 4, max_batch_rows=1000)
    [first] = crowd(1, PREFIXES[0][:13], max_tokens=20)
    [answer] = drain(world, [first])
    [second] = crowd(1, PREFIXES[0][:13] + answer[:19] + [1, 2, 3], max_tokens=4)
    world.scheduler.add(second)
    [[plan], _] = world.step()
    assert plan.rows.tolist() == [32, 33, 34, 35], "what the first turn's last block never computed without masks"
    assert second.cached_tokens == 32


def test_the_youngest_gives_way_and_gets_the_same_answer():
    alone = [drain(Simulated(12, 8), crowd(1, PREFIXES[0][:40], max_tokens=40))[0]]
    requests = crowd(3, PREFIXES[0][:40], max_tokens=40)
    world = Simulated(13, 8, shares_prefixes=False)
    assert drain(world, requests) == alone * 3
    assert world.scheduler.num_preemptions
    assert not requests[0].is_preempted, "the oldest never gives way"


def test_a_request_that_resumes_finds_its_pages_if_they_are_still_there():
    world = Simulated(30, 8)
    [request] = crowd(1, PREFIXES[0][:40], max_tokens=40)
    world.scheduler.add(request)
    while request.block.start < 56 or request.block.step:
        world.step()
    world.scheduler._preempt(request)
    rows = world.rows
    world.step()
    assert world.rows - rows <= 8 + 4 + 4, "no more than what its last page lacked, and the open block"
    assert request.cached_tokens == 0, "its own tokens are not another request's"


def test_requests_that_cannot_grow_need_no_room_beside_them():
    world = Simulated(16, 8, max_running=16)
    for request in crowd(16, [1, 2], max_tokens=4):
        world.scheduler.add(request)
    world.step()
    assert len(world.scheduler.running) == 16


@pytest.mark.parametrize(("pages", "prompt", "expected"), [(16, 16, 5), (17, 16, 6), (13, 40, 2)])
def test_as_many_run_at_once_as_the_plan_says(pages, prompt, expected):
    """Each opens with so many pages, and may grow to more: one page stays free for each but the last."""
    world = Simulated(pages, 8, max_batch_rows=1000, max_running=64)
    for request in crowd(16, PREFIXES[0][: prompt - 4], max_tokens=30):
        request.cache_salt = request.id  # they share nothing
        world.scheduler.add(request)
    world.step()
    assert (
        len(world.scheduler.running) == most_alike_growing(pages, -(-prompt // 8), -(-(prompt + 26) // 8)) == expected
    )


def test_nobody_gives_way_where_that_would_not_be_enough():
    world = Simulated(13, 8, max_batch_rows=1000, shares_prefixes=False)
    old, middle, young = (
        Request.new(submission(number, PREFIXES[0][:prompt], max_tokens=tokens), spec())
        for number, (prompt, tokens) in enumerate([(28, 60), (28, 60), (4, 4)])
    )
    for request in (old, middle, young):
        world.scheduler.add(request)
    world.step()
    taken = world.pool.allocate(world.pool.num_free)
    young.block.step, middle.block.step = 0, 1  # one is in the middle of its block
    old.block.visible_end = 64
    old.block.end = 64
    assert world.scheduler._who_gives_way(old) == []
    middle.block.step = 0
    assert world.scheduler._who_gives_way(old) == [young, middle]
    world.pool.release(taken)
