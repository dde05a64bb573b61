"""Fleets whose requests take one step of as many seconds as a thousandth of their prompt's tokens: plain queues."""

from functools import partial
from math import inf

from engine.bench.simulate.arrivals import Lengths, Traffic
from engine.bench.simulate.fleet import Fleet
from engine.bench.simulate.replica import Limits, Replica
from engine.bench.simulate.routers import ROUTERS
from engine.bench.simulate.work import Decoding

TICK = 1e-3
ONE_STEP = Decoding(cache="block", block=1, tokens_per_forward=1)
ROOMY = Limits(max_running=1, max_queued=10**9, max_batch_rows=10**9, kv_tokens=10**9)


class Ticks:
    """A step takes a tick for each row but the answer's one."""

    def seconds(self, rows, scored, read, pairs):
        return (rows - 1) * TICK


def queue(servers=1, router="central", limits=ROOMY, measured=(0.0, inf), scaling=None, seed=0):
    """Servers that serve one request at a time, in order of arrival."""
    return Fleet(partial(Replica, ONE_STEP, limits, Ticks()), servers, ROUTERS[router](seed), scaling, measured)


def traffic(load, number, service="exponential", *, servers=1, mean=1000, burstiness=1.0, seed=0, spread=0.0):
    """So many requests in the mean, which keep each server busy for `load` of the time; a service's mean is 1 s."""
    rate = load * servers / (mean * TICK)
    return Traffic(
        rate=rate,
        seconds=number / rate,
        burstiness=burstiness,
        prompt=Lengths(service, mean, spread),
        output=Lengths("constant", 1),
        seed=seed,
    ).arrivals()


def waits(run):
    """Seconds from arrival to admission, in order of arrival."""
    jobs = sorted(run.jobs, key=lambda job: job.arrival.conversation)  # arrivals may be at the same time
    return [job.admitted - job.arrival.seconds for job in jobs]
