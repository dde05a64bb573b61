"""What the model says of a plan's targets, and what a policy may ask of it: arrays [targets] on the host."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from engine.core.arrays import Floats, Ids, Mask
from engine.core.output import TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an unmask policy must have to decide, beside its targets' proposed tokens and log-odds."""

    processed: bool = False
    """Scores of the distribution that tokens are drawn from, after temperature, top_p and top_k, not the model's."""
    entropy: bool = False
    margin: bool = False
    vocabulary: int | None = None
    """Log-odds under a softmax over this many of the most probable tokens only; None is all tokens."""
    by_entropy: bool = False
    """With a `vocabulary`, log-odds of 1 / (1 + entropy) in place of the proposed token's probability."""
    samples: "Samples | None" = None
    """`Scores.samples`, with the entropy of the distribution that they are drawn from."""
    without: tuple[tuple[Ids, Ids], ...] = ()
    """`Scores.without`: for each of these, pairs (position, token) that a further proposal leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """How a token of each target is drawn from softmax(logits / temperature).

    The next step's rows then know that distribution: each carries its mean embedding beside its token.
    """

    temperature: float
    uniform: Callable[[Ids], Floats]
    """Positions -> numbers in [0, 1): each target's token is the first one whose cumulated probability exceeds it."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """What the model itself says of one plan's targets: natural logarithms, all finite."""

    proposed: Floats
    """[targets] of the proposed token."""
    tokens: Ids
    """[targets, some] the most probable tokens, as many as asked for or more; never the mask token."""
    values: Floats
    """[targets, some] of these tokens."""

    num_top: int
    """How many most probable tokens were asked for."""
    named: Floats
    """[targets, named] of each of `logprob_ids`, in their order."""
    without: Floats
    """[targets, some] of the tokens of `Scores.without`, in its order."""

    def at(self, sources: Ids, proposal: Ids) -> "Logprobs":
        """Those of these targets [some], each with another proposal: 0 is the proposed token, and `without` follows."""
        every = np.column_stack((self.proposed, self.without))
        return Logprobs(
            every[sources, proposal],
            self.tokens[sources],
            self.values[sources],
            self.num_top,
            self.named[sources],
            self.without[sources],
        )

    def of(self, chosen: Mask) -> Iterator[TokenLogprobs]:
        """One for each chosen target, in order; equally probable tokens are in order of their ids."""
        for index in np.flatnonzero(chosen):
            order = np.lexsort((self.tokens[index], -self.values[index]))[: self.num_top]
            top = zip(self.tokens[index, order].tolist(), self.values[index, order].tolist(), strict=True)
            yield TokenLogprobs(float(self.proposed[index]), tuple(top), tuple(self.named[index].tolist()))


class Proposals(NamedTuple):
    """A token of each target, and its log-odds as in `Scores`."""

    tokens: Ids
    log_odds: Floats


@dataclass(frozen=True)
class Scores:
    """What the model says of one plan's targets, on the host."""

    positions: Ids
    """[targets] ascending, as in the plan."""
    tokens: Ids
    """[targets] the proposed token; never the mask token."""
    log_odds: Floats
    """[targets] log(p / (1 - p)) of its probability p under the full softmax of the edited logits (`scoring.edits`),
    without temperature, unless the policy `Needs` another. Infinite where nothing else may be drawn.

    Rank by these: float32 probabilities of a sure model are all 1, and which is larger depends on rounding, and so on
    the batch.
    """
    entropy: Floats | None = None
    """[targets] of the distribution, in nats: never negative, 0 where the model is sure. None unless needed."""
    margin: Floats | None = None
    """[targets] p(best token that is not the mask) - p(best other token, mask included). None unless needed.

    Negative when the mask is the most probable.
    """
    importance: Floats | None = None
    """[visible end] attention that reaches each position (`engine.kernels.rollout`), if the plan asked for it."""
    retention: Floats | None = None
    """[candidates] what each is worth keeping (`engine.kernels.kv.retention`), if the plan's eviction asked for it."""
    logprobs: Logprobs | None = None
    """Of all targets, if the request asked for them."""
    samples: Ids | None = None
    """[targets] a token drawn from its distribution, if the policy needs it."""
    without: tuple[Proposals, ...] = ()
    """The best tokens without those that `Needs.without` names, the mask among all others; of a target with no other
    token that may be drawn, the proposed one.
    """
    is_possible: bool = True
    """Whether any answer is left that the request's constraint allows; there always is, but for a bug."""
    valid: "Scores | None" = None
    """To be taken in place of these scores if what is chosen by them cannot become a valid answer any more; only where
    a constraint leaves the proposals to the model."""

    @cached_property
    def confidence(self) -> Floats:
        """[targets] the probability p; cached, since policy, tally and history all read it."""
        return 1.0 / (1.0 + np.exp(np.minimum(-self.log_odds, 700.0)))  # beyond that, float64 overflows

    def first(self, count: int) -> "Scores":
        """Scores of the first `count` targets only, without those that no policy reads."""
        if count == len(self.positions):
            return self
        return Scores(
            self.positions[:count],
            self.tokens[:count],
            self.log_odds[:count],
            None if self.entropy is None else self.entropy[:count],
            None if self.margin is None else self.margin[:count],
            self.importance,
            samples=None if self.samples is None else self.samples[:count],
        )
