"""Requests that arrive: at random times or as given, with lengths from distributions, as turns of conversations.

Times are seconds from the start, lengths are tokens. The same seed gives the same arrivals, however many replicas
there are to serve them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    seconds: float
    prompt: int
    output: int
    """Tokens of its answer, which is as long as it may be."""
    conversation: int
    """A prompt begins with all that stood in the conversation before."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths, each at least 1."""

    kind: Literal["constant", "uniform", "exponential", "lognormal"]
    mean: float
    """Of `lognormal` the median; of `uniform` the lower bound."""
    spread: float = 0.0
    """Of `lognormal` the standard deviation of the logarithm; of `uniform` the upper bound, included."""

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """So many lengths."""
        match self.kind:
            case "constant":
                return [round(self.mean)] * count
            case "uniform":
                drawn = rng.integers(round(self.mean), round(self.spread), count, endpoint=True).astype(np.float64)
            case "exponential":
                drawn = rng.exponential(self.mean, count)
            case "lognormal":
                drawn = self.mean * np.exp(self.spread * rng.standard_normal(count))
        return [int(length) for length in np.maximum(np.rint(drawn), 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A random process of arrivals. Raises ConfigError on numbers that make none."""

    rate: float
    """Requests a second, in the mean."""
    seconds: float
    """How long requests arrive."""
    burstiness: float = 1.0
    """Standard deviation of the gaps between first turns over their mean: 1 is a Poisson process, more is bursts."""
    prompt: Lengths
    """Of what is new in each turn."""
    output: Lengths
    turns: int = 1
    """Of each conversation."""
    think_seconds: float = 30.0
    """Mean of the time between two turns' arrivals, drawn from an exponential distribution."""
    most_tokens: int | None = None
    """A conversation ends before the turn whose prompt and answer are longer; longer first turns are cut to it."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rate", "seconds", "burstiness", "think_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.turns < 1:
            raise ConfigError(f"turns is {self.turns}; it must be at least 1")

    def arrivals(self) -> list[Arrival]:
        """In order of time. Gaps between conversations are of a gamma distribution. Raises ConfigError on none."""
        rng = np.random.default_rng(self.seed)
        starts = self._starts(rng)
        shape = (len(starts), self.turns)
        prompts, outputs = (lengths.draw(rng, len(starts) * self.turns) for lengths in (self.prompt, self.output))
        thinking = rng.exponential(self.think_seconds, shape).cumsum(axis=1).tolist()
        arrivals: list[Arrival] = []
        for conversation, start in enumerate(starts):
            turns = slice(conversation * self.turns, (conversation + 1) * self.turns)
            at = [start, *(start + thought for thought in thinking[conversation][:-1])]
            arrivals += self._turns(conversation, zip(at, prompts[turns], outputs[turns], strict=True))
        if not arrivals:
            raise ConfigError(f"no request arrives in {self.seconds:g} seconds at {self.rate:g} a second")
        return sorted(arrivals, key=lambda arrival: arrival.seconds)

    def _starts(self, rng: np.random.Generator) -> list[float]:
        """Seconds of all first turns."""
        shape = self.burstiness**-2
        scale = self.turns / (self.rate * shape)
        at = rng.gamma(shape, scale, 1)
        while at[-1] < self.seconds:
            at = np.append(at, at[-1] + rng.gamma(shape, scale, 1024).cumsum())
        return [float(start) for start in at[at < self.seconds]]

    def _turns(self, conversation: int, turns: Iterable[tuple[float, int, int]]) -> Iterator[Arrival]:
        said, most = 0, self.most_tokens
        for seconds, prompt, output in turns:
            if most is not None and not said:
                output = min(output, most - 1)
                prompt = min(prompt, most - output)
            if seconds >= self.seconds or (most is not None and said + prompt + output > most):
                return
            yield Arrival(seconds, said + prompt, output, conversation)
            said += prompt + output


def span(arrivals: Sequence[Arrival]) -> float:
    """Seconds from the start to the last arrival."""
    return max(arrival.seconds for arrival in arrivals)
