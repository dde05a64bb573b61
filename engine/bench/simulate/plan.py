"""A fleet by its numbers: simulated once, or with ever more replicas until a goal is met."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from engine.bench.simulate.arrivals import Arrival, span
from engine.bench.simulate.figures import FleetFigures, Goal, summarise
from engine.bench.simulate.fleet import Fleet, Progress, Scaling
from engine.bench.simulate.machine import Timer
from engine.bench.simulate.replica import Limits, Replica
from engine.bench.simulate.routers import ROUTERS
from engine.bench.simulate.work import Decoding
from engine.core.errors import ConfigError

MOST_REPLICAS = 4096
"""No more are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """A fleet but for the number of its replicas, which are all alike. Raises ConfigError on a router that is none."""

    timer: Timer
    decoding: Decoding
    limits: Limits
    router: str = "least-loaded"
    scaling: Scaling | None = None
    prefix_hits: float = 0.0
    """The share of each prompt whose keys and values are always there: a system prompt."""
    warm_up: float = 0.0
    """Seconds at the start of which nothing is measured."""
    goal: Goal | None = None
    seed: int = 0
    """Of the router."""

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ConfigError(f"{self.router} is no router, but {', '.join(ROUTERS)} are")

    def simulated(self, arrivals: Sequence[Arrival], replicas: int, progress: Progress | None = None) -> FleetFigures:
        """The figures with so many replicas. Raises ConfigError if all arrivals fall into the warm-up."""
        first, last = self.warm_up, span(arrivals)
        if last <= first:
            raise ConfigError(f"all requests arrive within {first:g} seconds, the warm-up, in which none is measured")
        new = partial(Replica, self.decoding, self.limits, self.timer, self.prefix_hits)
        fleet = Fleet(new, replicas, ROUTERS[self.router](self.seed), self.scaling, (first, last))
        return summarise(fleet.serve(arrivals, progress), first, last, self.goal)

    def least(
        self, arrivals: Sequence[Arrival], tried: Callable[[int], Progress | None] = lambda _: None
    ) -> FleetFigures:
        """The figures with the fewest replicas that meet the goal, found by doubling and then by bisection.

        More replicas are taken to be no worse. `tried` is told each number, and says who is told of progress. Raises
        ConfigError if no number up to `MOST_REPLICAS` does.
        """
        goal = self.goal
        assert goal is not None, "fewest replicas for no goal; this is a bug"
        failing, replicas, best = 0, 1, None
        while best is None or best.replicas - failing > 1:
            figures = self.simulated(arrivals, replicas, tried(replicas))
            if (figures.goal_share or 0.0) >= goal.share:
                best = figures
            elif replicas == MOST_REPLICAS:
                raise ConfigError(
                    f"not even {replicas} replicas answer {goal.share:.4g} of all requests in {goal.seconds:g} s up "
                    f"to the {goal.of}: {figures.goal_share or 0.0:.3g} are"
                )
            else:
                failing = replicas
            replicas = min(2 * replicas, MOST_REPLICAS) if best is None else (failing + best.replicas) // 2
        return best
