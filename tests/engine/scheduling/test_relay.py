"""Sources without tensors: no page is lost, none is written that others read, and nobody waits for any."""

import random
from collections import Counter

import pytest

from engine.core.config import ModelSpec
from engine.core.output import FinishReason
from engine.core.requests.request import Request
from engine.scheduling.scheduler import Scheduler

from .simulated import PREFIXES, Simulated, spec, submission

FULL = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset({48}), max_model_len=96)
SPECS = {"full": FULL, "block-causal": spec(), "shifted": spec(shift=1)}


class World(Simulated):
    """Steps a scheduler with sources; what slots hold is another test's."""

    def __init__(self, relay_tokens, *, shares_prefixes, pages):
        super().__init__(pages, 4)
        self.scheduler = Scheduler(
            self.pool, max_batch_rows=128, max_running=8, shares_prefixes=shares_prefixes, relay_tokens=relay_tokens
        )

    def step(self, failing=0.0, rng=None):
        """Returns rows of each request's plan, and ended requests. Some sources' rows fail."""
        plans = self.scheduler.schedule()
        assert sum(len(plan.rows) for plan in plans) <= 128
        self.check_moves()
        rows = {plan.request.id: len(plan.rows) for plan in plans}
        for plan in self.scheduler.relay.commits([], 10_000):
            if rng and rng.random() < failing:
                self.scheduler.relay.fail(plan.request)
        known = {source.canvas for source in self.scheduler.relay.sources}
        dead = [plan for plan in plans if plan.request.id.endswith("(ended)") and plan.request not in known]
        plans = [plan for plan in plans if not any(plan is one for one in dead)]
        plans, *_ = self.scheduler.relay.settle(plans, plans)
        outputs = self.scheduler.commit(self.choices(plans))
        assert not self.scheduler.faults.take()
        self.check_pages()
        ends = [output.request_id for output in outputs if output.finish_reason]
        return {name: count for name, count in rows.items() if not name.endswith("(ended)")}, ends

    def check_moves(self):
        for move in self.scheduler.relay.take_moves():
            own = {slot // 4 for slot in move.targets.tolist()}
            assert own <= set(move.request.pages)
            assert all(self.pool.num_holders(page) == 1 and page not in self.pool._key_of for page in own)
            assert not own & {slot // 4 for slot in move.sources.tolist()}
            assert len(move.sources) == len(move.targets) > 0

    def check_pages(self):
        pool, relay = self.pool, self.scheduler.relay
        holders = Counter(page for request in self.scheduler.running for page in request.pages)
        keepers = Counter(page for source in relay.sources for page in source.pages)
        for page in range(pool.num_pages):
            assert pool._holders[page] == holders[page]
            assert pool._keepers[page] == keepers[page]
            assert pool._empty[page] == (not holders[page] and not keepers[page] and page not in pool._key_of)
        assert 4 * sum(len(source.pages) for source in relay.sources) <= relay.max_tokens


def request_of(rng, name, model, names):
    text = [token for _ in range(rng.randint(1, 3)) for token in rng.choice(PREFIXES)[rng.randrange(20) :][:25]]
    salt, length = rng.choice(["", "", "other"]), rng.choice([1, 4, 9])
    one = submission(name, text[: rng.randint(10, 60)], length, salt=salt, block_length=4)
    request = Request.new(one, model)
    request.relay_as, request.relay_from = rng.choice([str(name), "shared", ""]), tuple(names)
    return request


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("seed", range(4))
def test_pages_are_conserved(kind, seed):
    is_tight = seed < 2
    rng, world = random.Random(seed), World(400, shares_prefixes=kind != "full", pages=30 if is_tight else 120)
    scheduler, number = world.scheduler, 0
    for _ in range(120):
        if rng.random() < 0.4:
            names = ["shared", rng.choice(["unknown", str(max(number - 4, 0)), str(max(number - 2, 0))])]
            scheduler.add(request_of(rng, number, SPECS[kind], names if rng.random() < 0.7 else ()))
            number += 1
        if rng.random() < 0.1 and (live := [*scheduler.running, *scheduler.waiting]):
            scheduler.abort(rng.choice(live).id, FinishReason.ABORT)
        world.step(failing=0.2, rng=rng)
    assert scheduler.relay.counts["adopted"] or is_tight or kind != "full"
    for _ in range(300):
        if not (scheduler.running or scheduler.waiting or scheduler.relay.is_pending):
            break
        world.step()
    assert not [*scheduler.running, *scheduler.waiting]
    assert not scheduler.relay.is_pending
    assert world.pool.num_free == world.pool.num_pages


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("seed", range(2))
def test_sources_change_nothing_for_those_who_name_none(kind, seed):
    """Step by step the same requests with the same rows: nobody waits, gives way, or comes later for them."""
    seen = []
    for relay_tokens in (0, 80, 160):
        rng, world, steps = random.Random(seed), World(relay_tokens, shares_prefixes=False, pages=50), []
        for number in range(60):
            if rng.random() < 0.6:
                world.scheduler.add(request_of(rng, number, SPECS[kind], ()))
            steps.append(world.step())
        seen.append((steps, world.scheduler.num_preemptions))
        assert bool(relay_tokens) == bool(world.scheduler.relay._num_made)
    assert seen[0] == seen[1] == seen[2]
