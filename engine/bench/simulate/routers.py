"""Which replica a request goes to. A router sees how many requests each has, and a request's conversation."""

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.bench.simulate.arrivals import Arrival
from engine.bench.simulate.replica import Replica

MOST_OVER_MEAN = 1.25
"""A replica with more requests than so many times the mean is passed over by `affinity` (consistent hashing with
bounded loads, arXiv 1608.01350)."""
_GOLDEN = 0x9E3779B97F4A7C15


class Router(Protocol):
    """Chooses one of the replicas that take requests, of which there is at least one."""

    holds_queue: bool
    """Whether requests wait at the router until a replica's next step would admit them, and not at replicas."""

    def choose(self, arrival: Arrival, replicas: Sequence[Replica]) -> Replica: ...


class RoundRobin:
    """One after the other."""

    holds_queue = False

    def __init__(self, seed: int) -> None:
        self._next = 0

    def choose(self, arrival: Arrival, replicas: Sequence[Replica]) -> Replica:
        self._next += 1
        return replicas[(self._next - 1) % len(replicas)]


class LeastLoaded:
    """The one with the fewest requests, as an endpoint picker that reads each pod's metrics finds it."""

    holds_queue = False

    def __init__(self, seed: int) -> None:
        pass

    def choose(self, arrival: Arrival, replicas: Sequence[Replica]) -> Replica:
        return min(replicas, key=lambda replica: replica.load)


class TwoChoices:
    """The less loaded of two at random (Mitzenmacher, 2001), as Ray Serve and nginx's `random two` do."""

    holds_queue = False

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def choose(self, arrival: Arrival, replicas: Sequence[Replica]) -> Replica:
        two = [replicas[self._rng.randrange(len(replicas))] for _ in range(2)]
        return min(two, key=lambda replica: replica.load)


class Affinity:
    """The one that a conversation's hash says, where its pages are; the least loaded if that has too much to do."""

    holds_queue = False

    def __init__(self, seed: int) -> None:
        pass

    def choose(self, arrival: Arrival, replicas: Sequence[Replica]) -> Replica:
        home = replicas[(arrival.conversation * _GOLDEN % 2**64 >> 32) % len(replicas)]
        mean = sum(replica.load for replica in replicas) / len(replicas)
        return home if home.load <= MOST_OVER_MEAN * mean + 1 else min(replicas, key=lambda replica: replica.load)


class Central(LeastLoaded):
    """One queue for all, and a replica gets a request when it has room: what no other router here is better than."""

    holds_queue = True


ROUTERS: Mapping[str, type[RoundRobin] | type[LeastLoaded] | type[TwoChoices] | type[Affinity]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "two-choices": TwoChoices,
    "affinity": Affinity,
    "central": Central,
}
