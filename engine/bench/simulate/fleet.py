"""Replicas behind a router, as discrete events in order of time: arrivals, ends of steps, and the autoscaler's rounds.

Nothing here is measured: seconds are those of the events. The same arrivals and seed give the same run.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import ceil, inf

from engine.bench.simulate.arrivals import Arrival
from engine.bench.simulate.replica import Job, Replica
from engine.bench.simulate.routers import Router

Progress = Callable[[int, int], None]
"""Called now and then with requests that have arrived, and their number."""
TOLD_EVERY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """An autoscaler that looks at requests in the system, as KEDA and HorizontalPodAutoscaler do at a metric."""

    least: int
    most: int
    per_replica: float = 32.0
    """Requests, waiting or running, for which one replica is wanted."""
    start_seconds: float = 120.0
    """From the wish for a replica to its first step: a machine, an image, weights."""
    every: float = 15.0
    """Seconds between two rounds."""
    down_after: float = 300.0
    """Seconds for which fewer replicas must have been enough before any leaves."""


@dataclass(slots=True)
class Run:
    """What happened. Areas are integrals over the time that is measured, in seconds times their unit."""

    jobs: list[Job] = field(default_factory=list)
    """Those that were answered, in this order."""
    arrived: int = 0
    refused: list[Arrival] = field(default_factory=list)
    """Found every place taken (429), or can never be served."""
    waiting_area: float = 0.0
    running_area: float = 0.0
    replica_area: float = 0.0
    """Replicas that start, serve or leave: those that are paid for."""
    busy_area: float = 0.0
    """Replicas that compute a step."""
    most_waiting: int = 0
    most_running: int = 0
    """At one replica."""
    most_replicas: int = 0
    steps: int = 0
    rows: int = 0

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and are neither answered nor refused: 0 once a run has ended."""
        return self.arrived - len(self.jobs) - len(self.refused)


class Fleet:
    """Runs arrivals through `replicas` replicas, or as many as `scaling` wants, until all are answered.

    `measured` are the seconds from which and up to which areas count.
    """

    def __init__(
        self,
        new_replica: Callable[[], Replica],
        replicas: int,
        router: Router,
        scaling: Scaling | None = None,
        measured: tuple[float, float] = (0.0, inf),
    ) -> None:
        self._new_replica, self._router, self._scaling, self._measured = new_replica, router, scaling, measured
        self._ready = [new_replica() for _ in range(scaling.least if scaling else replicas)]
        self._max_held = new_replica().limits.max_queued * (scaling.most if scaling else replicas)
        self._starting = self._leaving = 0
        self._enough_since: float | None = None
        self._held: deque[Arrival] = deque()
        """Requests that wait at the router."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._now = 0.0
        self._arrivals: Iterator[Arrival] = iter(())
        self._left = 0
        self._waiting = self._running = self._busy = 0
        self._progress: Callable[[], None] = lambda: None
        self._run = Run(most_replicas=len(self._ready))

    def serve(self, arrivals: Sequence[Arrival], progress: Progress | None = None) -> Run:
        """The whole run; arrivals are in order of time. Call it once.

        `progress` is told now and then.
        """
        self._arrivals, self._left = iter(arrivals), len(arrivals)
        if progress:
            self._progress = lambda: progress(self._run.arrived, len(arrivals))
        self._await_arrival()
        if self._scaling:
            self._at(0.0, self._scale)
        while self._events:
            now, _, happen = heapq.heappop(self._events)
            self._pass_time(now)
            happen()
        return self._run

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        # Of events at the same time, the one that was foreseen first happens first.
        heapq.heappush(self._events, (seconds, next(self._numbers), happen))

    def _pass_time(self, now: float) -> None:
        first, last = self._measured
        passed = min(now, last) - max(self._now, first)
        self._now = now
        if passed > 0.0:
            run = self._run
            run.waiting_area += passed * self._waiting
            run.running_area += passed * self._running
            run.busy_area += passed * self._busy
            run.replica_area += passed * self._paid_for

    @property
    def _paid_for(self) -> int:
        return len(self._ready) + self._starting + self._leaving

    def _await_arrival(self) -> None:
        if arrival := next(self._arrivals, None):
            self._at(arrival.seconds, partial(self._arrive, arrival))

    def _arrive(self, arrival: Arrival) -> None:
        run = self._run
        run.arrived += 1
        self._left -= 1
        if run.arrived % TOLD_EVERY == 0:
            self._progress()
        if not self._ready:
            self._hold(arrival)
        elif not self._ready[0].can_ever_run(arrival):
            run.refused.append(arrival)
        elif self._router.holds_queue:
            roomy = [] if self._held else [replica for replica in self._ready if replica.has_room(arrival)]
            if roomy:
                self._hand(arrival, self._router.choose(arrival, roomy))
            else:
                self._hold(arrival)
        else:
            self._hand(arrival, self._router.choose(arrival, self._ready))
        self._await_arrival()

    def _hold(self, arrival: Arrival) -> None:
        if len(self._held) < self._max_held:
            self._held.append(arrival)
            self._wait(1)
        else:
            self._run.refused.append(arrival)

    def _hand(self, arrival: Arrival, replica: Replica) -> None:
        if not replica.add(arrival):
            self._run.refused.append(arrival)
            return
        self._wait(1)
        if not replica.is_stepping:
            self._begin(replica)

    def _wait(self, more: int) -> None:
        self._waiting += more
        self._run.most_waiting = max(self._run.most_waiting, self._waiting)

    def _begin(self, replica: Replica) -> None:
        waiting = len(replica.waiting)
        seconds = replica.begin(self._now)
        admitted = waiting - len(replica.waiting)
        self._wait(-admitted)
        self._running += admitted
        self._busy += 1
        run = self._run
        run.steps, run.rows = run.steps + 1, run.rows + replica.last_rows
        run.most_running = max(run.most_running, len(replica.running))
        self._at(self._now + seconds, partial(self._end, replica))

    def _end(self, replica: Replica) -> None:
        run = self._run
        answered = replica.end(self._now)
        self._busy -= 1
        self._running -= len(answered)
        run.jobs += answered
        if not replica.is_leaving:
            self._refill(replica)
        if replica.load:
            self._begin(replica)
        elif replica.is_leaving:
            self._leaving -= 1

    def _refill(self, replica: Replica) -> None:
        """Hands on what waits at the router and fits."""
        while self._held and replica.has_room(self._held[0]):
            self._wait(-1)
            self._wait(1 if replica.add(self._held.popleft()) else 0)

    def _scale(self) -> None:
        """One round of the autoscaler."""
        scaling, now = self._scaling, self._now
        assert scaling is not None, "a round without an autoscaler; this is a bug"
        asked = ceil((self._waiting + self._running) / scaling.per_replica)
        wanted = min(max(asked, scaling.least), scaling.most)
        serving = len(self._ready) + self._starting
        for _ in range(wanted - serving):
            self._starting += 1
            self._at(now + scaling.start_seconds, self._start)
        if wanted >= serving:
            self._enough_since = None
        elif self._enough_since is None:
            self._enough_since = now
        elif now - self._enough_since >= scaling.down_after:
            for replica in sorted(self._ready, key=lambda replica: replica.load)[: serving - wanted]:
                self._ready.remove(replica)
                replica.is_leaving = True
                self._leaving += bool(replica.load)
        self._run.most_replicas = max(self._run.most_replicas, self._paid_for)
        if self._left or self._run.in_flight:
            self._at(now + scaling.every, self._scale)

    def _start(self) -> None:
        """A replica begins to serve."""
        self._starting -= 1
        replica = self._new_replica()
        self._ready.append(replica)
        while self._held and not (self._router.holds_queue and not replica.has_room(self._held[0])):
            arrival = self._held.popleft()
            self._wait(-1)
            if replica.can_ever_run(arrival):
                self._hand(arrival, replica if self._router.holds_queue else self._router.choose(arrival, self._ready))
            else:
                self._run.refused.append(arrival)
