"""A run's figures: what users would have waited for, and what the fleet was used for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.bench.simulate.fleet import Run
from engine.bench.simulate.replica import Job
from engine.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Mean and quantiles of a time, in seconds."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is wanted: a share of all requests answered within so many seconds. A request that is refused is not."""

    seconds: float
    share: float = 0.99
    of: str = "first-block"
    """`first-block` or `answer`: up to when the seconds count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFigures:
    """Of the requests that arrived, and the time that passed, while it was measured. None where there were none."""

    replicas: int
    """At most."""
    mean_replicas: float
    arrived: int
    answered: int
    refused: int
    seconds: float
    """That were measured."""
    utilisation: float
    """The share of replicas' time in which they compute a step."""
    requests_per_second: float
    """Answers that ended while it was measured."""
    tokens_per_second: float
    """Of these answers."""
    queue_seconds: Waits | None
    """From arrival to admission."""
    first_block: Waits | None
    """From arrival to the first block's end."""
    answer: Waits | None
    """From arrival to the answer's end."""
    mean_waiting: float
    most_waiting: int
    mean_running: float
    """Of each replica."""
    most_running: int
    """At one replica."""
    cached_share: float
    """Of prompt tokens."""
    rows_per_step: float
    goal_share: float | None
    """The share of requests that met the goal, if there is one."""

    @property
    def refused_share(self) -> float:
        """Of those that arrived."""
        return self.refused / self.arrived if self.arrived else 0.0


def summarise(run: Run, first: float, last: float, goal: Goal | None = None) -> FleetFigures:
    """The figures of requests that arrived in [first, last). Raises ConfigError if there are none."""
    jobs = [job for job in run.jobs if first <= job.arrival.seconds < last]
    refused = sum(first <= arrival.seconds < last for arrival in run.refused)
    if not jobs and not refused:
        raise ConfigError(f"no request arrives from second {first:g} to {last:g}, which is all that is measured")
    seconds = last - first
    ended = [job.arrival.output for job in run.jobs if job.ended is not None and first <= job.ended < last]
    prompts = sum(job.arrival.prompt for job in jobs)
    return FleetFigures(
        replicas=run.most_replicas,
        mean_replicas=run.replica_area / seconds,
        arrived=len(jobs) + refused,
        answered=len(jobs),
        refused=refused,
        seconds=seconds,
        utilisation=run.busy_area / run.replica_area if run.replica_area else 0.0,
        requests_per_second=len(ended) / seconds,
        tokens_per_second=sum(ended) / seconds,
        queue_seconds=_waits(jobs, lambda job: job.admitted),
        first_block=_waits(jobs, lambda job: job.first_block),
        answer=_waits(jobs, lambda job: job.ended),
        mean_waiting=run.waiting_area / seconds,
        most_waiting=run.most_waiting,
        mean_running=run.running_area / run.replica_area if run.replica_area else 0.0,
        most_running=run.most_running,
        cached_share=sum(job.cached for job in jobs) / prompts if prompts else 0.0,
        rows_per_step=run.rows / run.steps if run.steps else 0.0,
        goal_share=met(jobs, goal) / (len(jobs) + refused) if goal else None,
    )


def met(jobs: Iterable[Job], goal: Goal) -> int:
    """How many of these met the goal."""
    until = _ENDS[goal.of]
    return sum(_since(job, until) <= goal.seconds for job in jobs)


_ENDS: dict[str, Callable[[Job], float | None]] = {
    "first-block": lambda job: job.first_block,
    "answer": lambda job: job.ended,
}


def _since(job: Job, until: Callable[[Job], float | None]) -> float:
    end = until(job)
    assert end is not None, "an answered job without all its times; this is a bug"
    return end - job.arrival.seconds


def _waits(jobs: Sequence[Job], until: Callable[[Job], float | None]) -> Waits | None:
    if not jobs:
        return None
    values = np.array([_since(job, until) for job in jobs])
    p50, p95, p99 = np.quantile(values, (0.5, 0.95, 0.99))
    return Waits(mean=float(values.mean()), p50=float(p50), p95=float(p95), p99=float(p99))
