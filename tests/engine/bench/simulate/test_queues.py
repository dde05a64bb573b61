"""The simulator as a plain queue, for which mathematics has the answer: exact recursions, closed forms for means."""

import heapq
from dataclasses import replace
from math import factorial

import numpy as np
import pytest

from tests.engine.bench.simulate.fleets import ROOMY, TICK, queue, traffic, waits


def recursion(arrivals, servers):
    """Waits of each request (Kiefer and Wolfowitz, 1955; for one server Lindley, 1952): who is next takes the server
    that is free first."""
    free = [0.0] * servers
    for arrival in arrivals:
        begins = max(arrival.seconds, heapq.heappop(free))
        yield begins - arrival.seconds
        heapq.heappush(free, begins + arrival.prompt * TICK)


def erlang_c(servers, load):
    """The probability that an arrival waits, where c servers are each busy for `load` of the time."""
    offered = servers * load
    all_busy = offered**servers / factorial(servers) / (1 - load)
    return all_busy / (sum(offered**busy / factorial(busy) for busy in range(servers)) + all_busy)


@pytest.mark.parametrize("servers", [1, 3, 8])
@pytest.mark.parametrize(("service", "spread"), [("exponential", 0.0), ("lognormal", 1.0), ("constant", 0.0)])
def test_every_single_wait_is_that_of_the_recursion(servers, service, spread):
    arrivals = traffic(0.85, 1000, service, servers=servers, burstiness=2.0, spread=spread)
    np.testing.assert_allclose(waits(queue(servers).serve(arrivals)), list(recursion(arrivals, servers)), atol=1e-6)


def moments(arrivals):
    """Of these arrivals, which are random: the rate, and the means of services and of their squares."""
    services = np.array([arrival.prompt for arrival in arrivals]) * TICK
    return len(arrivals) / arrivals[-1].seconds, services.mean(), np.square(services).mean()


@pytest.mark.parametrize("service", ["exponential", "constant"])
def test_mean_waits_of_one_server_are_pollaczeks_and_khinchines(service):
    """M/M/1 and M/D/1, by the recursion, whose waits are the simulator's: it is quick enough for many requests."""
    arrivals = traffic(0.6, 40_000, service, seed=7)
    rate, mean, square = moments(arrivals)
    assert np.mean(list(recursion(arrivals, 1))) == pytest.approx(rate * square / 2 / (1 - rate * mean), rel=0.05)


def test_mean_waits_of_several_servers_are_erlangs():
    """M/M/3."""
    arrivals = traffic(0.6, 40_000, servers=3, seed=5)
    rate, mean, _ = moments(arrivals)
    load, waited = rate * mean / 3, np.array(list(recursion(arrivals, 3)))
    assert np.mean(waited) == pytest.approx(erlang_c(3, load) * mean / (3 * (1 - load)), rel=0.05)
    assert np.mean(waited > 1e-9) == pytest.approx(erlang_c(3, load), rel=0.05)


def test_mean_waits_of_the_simulator_itself():
    """Of 10,000 requests the mean is off by 4 % for want of more, so that the bound is thrice that."""
    arrivals = traffic(0.6, 10_000, seed=7)
    rate, mean, square = moments(arrivals)
    assert np.mean(waits(queue().serve(arrivals))) == pytest.approx(rate * square / 2 / (1 - rate * mean), rel=0.12)


def test_what_is_in_the_queue_is_what_littles_law_says():
    """Exactly, over all of a run: the area under the queue is the sum of all waits."""
    run = queue(2).serve(traffic(0.9, 3000, servers=2))
    assert run.waiting_area == pytest.approx(sum(waits(run)))
    assert run.running_area == pytest.approx(run.busy_area)
    assert run.running_area == pytest.approx(sum(job.arrival.prompt * TICK for job in run.jobs))


def test_a_full_queue_loses_what_erlangs_other_formula_says():
    """Two places, one of them the server's: an M/M/1/2 queue turns away p^2 / (1 + p + p^2) of all."""
    load = 0.8
    run = queue(limits=replace(ROOMY, max_queued=1), router="least-loaded").serve(traffic(load, 10_000, seed=3))
    assert len(run.refused) / run.arrived == pytest.approx(load**2 / (1 + load + load**2), rel=0.05)


def test_gaps_have_the_burstiness_that_was_asked_for():
    for burstiness in (0.5, 1.0, 3.0):
        at = [arrival.seconds for arrival in traffic(0.5, 20_000, burstiness=burstiness, seed=1)]
        gaps = np.diff(at)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness, rel=0.05)
        assert gaps.mean() == pytest.approx(2.0, rel=0.05)
