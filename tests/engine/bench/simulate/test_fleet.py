"""Fleets: nothing is lost, the same seed gives the same run, and what more replicas, routers and an autoscaler do."""

from dataclasses import replace

import numpy as np
import pytest

from engine import ConfigError, Goal, Scaling
from engine.bench.simulate.arrivals import Arrival, Lengths, Traffic
from engine.bench.simulate.plan import FleetPlan
from engine.bench.simulate.replica import Limits, Replica
from engine.bench.simulate.routers import ROUTERS
from engine.bench.simulate.work import Decoding
from tests.engine.bench.simulate.fleets import ONE_STEP, ROOMY, Ticks, queue, traffic, waits

DECODING = Decoding(cache="block", block=8, tokens_per_forward=4)
LIMITS = Limits(max_running=8, max_queued=16, max_batch_rows=256, kv_tokens=4096, max_model_len=1024)


class RowsAndMore:
    """A step of a hundredth of a second and as many tenths of milliseconds as it has rows."""

    def seconds(self, rows, scored, read, pairs):
        return 0.01 + rows * 1e-4


def chats(rate=8.0, seconds=60.0, seed=0, **fields):
    return Traffic(
        rate=rate,
        seconds=seconds,
        prompt=Lengths("lognormal", 60, 1.0),
        output=Lengths("exponential", 40),
        think_seconds=5.0,
        seed=seed,
        **{"turns": 3, "most_tokens": 1024, **fields},
    ).arrivals()


def plan(**fields):
    return FleetPlan(**{"timer": RowsAndMore(), "decoding": DECODING, "limits": LIMITS, **fields})


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(
    "scaling", [None, Scaling(least=0, most=4, per_replica=4, start_seconds=3, every=1, down_after=4)]
)
def test_every_request_is_answered_or_refused(router, scaling):
    arrivals = chats(rate=20.0, burstiness=3.0)
    arrivals.insert(0, Arrival(0.0, 1000, 100, -1))  # longer than a request may be
    fleet = queue(3, router, scaling=scaling)
    fleet._new_replica = lambda: Replica(DECODING, LIMITS, RowsAndMore())
    fleet._ready = [fleet._new_replica() for _ in fleet._ready]
    run = fleet.serve(arrivals)
    assert run.arrived == len(arrivals) == len(run.jobs) + len(run.refused)
    assert run.in_flight == fleet._waiting == fleet._running == fleet._busy == 0
    assert arrivals[0] in run.refused
    assert len(run.jobs) > len(arrivals) / 2
    for job in run.jobs:
        assert job.arrival.seconds <= job.admitted < job.first_block <= job.ended
        assert job.cached < job.arrival.prompt
    for replica in fleet._ready:
        assert replica._held == replica._promised == replica.load == 0
        assert replica._kept_tokens == sum(replica._kept.values()) <= LIMITS.kv_tokens


def test_the_same_seed_gives_the_same_figures():
    one, other = (plan(router="two-choices", seed=3).simulated(chats(seed=5), 3) for _ in range(2))
    assert one == other
    assert plan(router="two-choices", seed=3).simulated(chats(seed=6), 3) != one


def test_more_servers_of_one_queue_never_make_anybody_wait_longer():
    """By the recursion of Kiefer and Wolfowitz, for each single request. With queues of their own that is not so."""
    arrivals = traffic(0.9, 800, servers=3, burstiness=2.0)
    longer = None
    for servers in range(3, 7):
        waited = np.array(waits(queue(servers).serve(arrivals)))
        assert longer is None or (waited <= longer + 1e-9).all()
        longer = waited


def test_what_routers_cost_in_waiting():
    """One queue for all is best, then who has least, then the less loaded of two; who is next in turn is last."""
    arrivals = traffic(0.9, 2000, servers=8, seed=4)
    means = [np.mean(waits(queue(8, router).serve(arrivals)))
             for router in ("central", "least-loaded", "two-choices", "round-robin")]  # fmt: skip
    assert means == sorted(means)
    assert means[-1] > 3 * means[0]


def test_a_conversation_that_stays_where_its_pages_are():
    """Almost all of what was said before is found: all but what is no whole page, and the last block of an answer."""
    arrivals = chats(rate=2.0, turns=6)
    said = {}
    before = 0
    for arrival in arrivals:
        before += said.get(arrival.conversation, 0)
        said[arrival.conversation] = arrival.prompt + arrival.output
    share = before / sum(arrival.prompt for arrival in arrivals)
    roomy = replace(LIMITS, kv_tokens=10**6)
    found = {
        router: plan(router=router, limits=roomy).simulated(arrivals, 4).cached_share
        for router in ("affinity", "round-robin")
    }
    assert 0.7 * share < found["affinity"] < share
    assert found["round-robin"] < 0.5 * found["affinity"]


def test_kept_pages_give_way_to_requests_that_run():
    """With room for one canvas of two, the first conversation's pages are gone when it comes back."""
    for room, found in ((256, 64), (128, 0)):
        replica = Replica(ONE_STEP, replace(ROOMY, kv_tokens=room), Ticks())
        for at, conversation in ((0.0, 0), (1.0, 1), (2.0, 0)):
            assert replica.add(Arrival(at, 100, 1, conversation))
            replica.begin(at)
            [job] = replica.end(at + 0.5)
        assert job.cached == (96 if found else 0)


def test_a_share_of_prompts_that_is_always_found():
    figures = plan(prefix_hits=0.5, limits=replace(LIMITS, page_size=1)).simulated(chats(turns=1), 4)
    assert figures.cached_share == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("of", ["first-block", "answer"])
def test_the_fewest_replicas_that_reach_a_goal(of):
    arrivals = chats(rate=150.0, seconds=8.0)
    wanted = plan(goal=Goal(seconds=1.5, share=0.95, of=of))
    tried = []
    best = wanted.least(arrivals, tried.append)
    assert best == wanted.simulated(arrivals, best.replicas)
    assert best.goal_share >= 0.95
    assert wanted.simulated(arrivals, best.replicas - 1).goal_share < 0.95
    assert best.replicas > 2
    assert len(tried) < 8


def test_a_goal_that_nobody_reaches(monkeypatch):
    monkeypatch.setattr("engine.bench.simulate.plan.MOST_REPLICAS", 8)
    with pytest.raises(ConfigError, match=r"not even 8 replicas answer 0\.99 of all requests in 0\.001 s"):
        plan(goal=Goal(seconds=0.001)).least(chats(seconds=5.0))


def test_an_autoscaler_starts_what_is_wanted_and_lets_it_go():
    """From nothing: the first answer takes a start; a burst of 40 wants ten replicas, of which four are allowed."""
    scaling = Scaling(least=0, most=4, per_replica=4, start_seconds=10, every=1, down_after=5)
    burst = [Arrival(0.5, 4000, 1, number) for number in range(40)]
    late = [Arrival(200.0, 1000, 1, 40), Arrival(230.0, 1000, 1, 41)]
    run = queue(scaling=scaling).serve([*burst, *late])
    assert run.most_replicas == 4
    assert sorted(waits(run)[:36]) == pytest.approx([10.5 + 4 * (number // 4) for number in range(36)])
    assert sorted(waits(run)[36:40]) == pytest.approx([46.5, 46.5, 50.5, 50.5]), "two have left: eight were to answer"
    assert waits(run)[40:] == pytest.approx([10.0, 10.0]), "both find nobody: the last one has left"
    assert run.replica_area < 4 * 60 + 2 * 20


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="nearest is no router"):
        plan(router="nearest")
    with pytest.raises(ConfigError, match="the warm-up"):
        plan(warm_up=1000.0).simulated(chats(), 1)
    with pytest.raises(ConfigError, match="no request arrives"):
        traffic(0.5, 0.01)
    with pytest.raises(ConfigError, match="must divide the block, 8"):
        Decoding(cache="block", block=8, tokens_per_forward=3)
    for field in ("rate", "seconds", "burstiness"):
        with pytest.raises(ConfigError, match=field):
            chats(**{field: 0.0})
