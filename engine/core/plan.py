"""One step of one request as data, and the two protocols that decide it.

A step computes rows; row i then attends to positions [0, horizons[i]); the logits of the targets are scored; the
unmask policy says which targets become tokens. Independent of what makes a plan and what carries it out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from engine.core.config import ModelSpec
from engine.core.output import TokenLogprobs
from engine.core.params import DiffusionParams, block_length
from engine.core.request import BlockEdits, Floats, Ids, Mask, Request


@dataclass(frozen=True, slots=True)
class Eviction:
    """Which keys and values a plan's request gives up after the step, and by what its kernels judge them."""

    candidates: Ids
    """Positions of which some go, ascending."""
    keep: int
    """How many of them stay."""
    judges: slice
    """Of the plan's rows: neighbours behind all candidates, which stay."""
    weight: float | None
    """As `kernels.kv.retention` takes it; None if no attention is asked for."""

    @property
    def end(self) -> int:
        """One past the last candidate."""
        return int(self.candidates[-1]) + 1


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one request asks of one forward. Positions are of its own canvas, ascending."""

    request: Request
    rows: Ids
    """Positions to compute."""
    horizons: Ids
    """For each row, one past the last position that it sees."""
    targets: Ids
    """Positions to score: masked ones, and in a block that `replaces_tokens` decoded ones, too.

    The logits of each come from one of the `sources`, which are among `rows`.

    A plan without targets only computes keys and values.

    Targets behind the open block are scored for a cache policy that ranks them; they do not become tokens yet.
    """
    rollout: bool = False
    """Asks for `Scores.importance`, which takes attention weights."""
    is_causal: bool = False
    """Whether finished rows say the targets: the logits of target t come from row t - 1, whatever the model's shift."""
    eviction: Eviction | None = None
    """Behind this step, where the request keeps only so many keys and values and has too many."""

    @property
    def sources(self) -> Ids:
        """For each target, the row that has its logits."""
        return np.maximum(self.targets - (1 if self.is_causal else self.request.spec.shift), 0)

    @property
    def is_draft(self) -> bool:
        """Whether what it decodes is a draft, of which a later step says whether it stands."""
        return self.request.block.is_drafted and not self.is_causal

    @property
    def adapted(self) -> Mask:
        """bool [rows] that go through the model's adapter: the open block's, where they make a draft."""
        request = self.request
        is_asked = self.is_draft and request.diffusion.draft_adapter and request.spec.has_draft_adapter
        return np.asarray(is_asked & (self.rows >= request.block.rows_start))

    @property
    def num_open(self) -> int:
        """How many targets may become tokens now: those of the open block, which come first."""
        targets, count, end = self.targets, len(self.targets), self.request.block.end
        return count if not count or targets[-1] < end else int(np.searchsorted(targets, end))


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


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a step makes of the open block's targets where tokens may move."""

    scores: Scores
    """Tokens that the targets hold now, with the log-odds and log-probabilities of the step that wrote them."""
    chosen: Mask
    """bool [targets] that hold a token which this step has written."""
    masked: Mask
    """bool [targets] that are masked now."""
    sources: Ids
    """[targets] index of the target whose token it is; of a mask, its own or that of the token that asked for it."""
    is_settled: bool
    """Whether the block is finished, and has no mask."""
    edits: BlockEdits
    """What the policy keeps until the next step."""

    @property
    def moved(self) -> Mask:
        """bool [targets] that hold a token which was written at another place."""
        return np.asarray(~self.masked & (self.sources != np.arange(len(self.sources))))


class Choice(NamedTuple):
    """What one request's step chose, not yet committed."""

    plan: StepPlan
    scores: Scores
    chosen: Mask
    """bool [targets] which of the proposals become tokens, of a mask or in the place of another token."""
    is_forced: bool = False
    """Whether the only one that does is taken only because every step must take one."""
    shown: Ids | None = None
    """[targets] what those that stay masked show to the next step; None leaves what they show."""
    rewritten: Rewritten | None = None
    """What becomes of all targets, of a policy that moves tokens; `scores` and `chosen` are then its."""


class CachePolicy(Protocol):
    """Which rows to recompute; all other positions keep their last keys and values."""

    attention: ClassVar[Literal["full", "block_causal"]] = "full"
    """The attention of the models that it is for."""
    reads_history: ClassVar[bool] = False
    """Whether it needs more of a request's `History` than what the last step decoded."""
    computes_block: ClassVar[bool] = False
    """Whether each step with targets computes all of the open block, and all that is not final before it."""
    allows_eviction: ClassVar[bool] = True
    """Whether positions may lose their keys and values for good."""

    keeps: ClassVar[bool] = True
    """Whether keys and values of one step are read in a later one."""

    def fits(self, spec: ModelSpec) -> bool:
        return spec.attention == self.attention

    def plan(self, request: Request) -> StepPlan: ...

    def cut(self, plan: StepPlan, max_rows: int) -> StepPlan | None:
        """A first part of a plan, of at most `max_rows` rows; None if no part of it can be computed alone.

        Computing it is progress: the request's next plan has fewer rows.
        """
        return None


class UnmaskPolicy(Protocol):
    """Which targets become tokens now: at least one while any is masked, so that every request ends.

    But for policies that renew the block.
    """

    cuts_canvas: ClassVar[bool] = False
    """Whether the policy itself cuts the canvas, which then has exactly `max_tokens` positions to fill.

    The parameter `block_length` does not apply then.
    """
    reads_history: ClassVar[bool] = False
    """Whether it needs more of a request's `History` than what the last step decoded."""

    replaces_tokens: ClassVar[bool] = False
    """Whether it may replace tokens that it decoded in the open block; then these are targets, too.

    It needs a cache that `computes_block`, and a bounded number of steps in a block without masks (`is_done`).
    """

    moves_tokens: ClassVar[bool] = False
    """Whether it may insert and delete places in the open block, and so move tokens; `rewrite` then stands in place of
    `select`. It `replaces_tokens`, and chooses among the model's best tokens alone.
    """

    drafts: ClassVar[bool] = False
    """Whether what it decodes is a draft, whose block ends where causal rows would have said another token.

    It needs a model whose finished rows say the next token, and a cache that `computes_block`. `select` sees all of a
    whole draft's block (`Request.verifies`), and takes the tokens that stand, with the one behind them.
    """

    renews: ClassVar[bool] = False
    """Whether masked positions show random tokens, which it draws (`opening`) and draws again in each step (`shown`).

    A step may then decode nothing; a bounded number of them in a block does. For models without a mask alone, and with
    a cache that `computes_block`.
    """

    def fits(self, spec: ModelSpec) -> bool:
        if spec.mask_id is None or (self.drafts and not spec.says_next):
            return False
        return not (self.cuts_canvas and spec.is_block_causal)

    def opening(self, request: Request) -> Ids | None:
        """[block] what the positions of the block that has just been opened show; None leaves what they show."""
        return None

    def shown(self, request: Request, scores: Scores) -> Ids | None:
        """As `Choice.shown`, of a step that leaves targets masked."""
        return None

    def rewrite(self, request: Request, scores: Scores) -> Rewritten | None:
        """What a step makes of the open block's targets; None, unless the policy `moves_tokens`."""
        return None

    def is_done(self, request: Request) -> bool:
        """Whether the open block ends, before whose part of the answer nothing is masked any more."""
        return True

    def block_length(self, request: Request) -> int:
        """Length in positions of the block that opens now; the canvas may end before."""
        return request.block_length

    def longest_block(self, diffusion: DiffusionParams, spec: ModelSpec) -> int:
        """The most positions that `block_length` gives for such requests."""
        return block_length(diffusion, spec)

    def needs(self, request: Request) -> Needs:
        """What this step's `scores` must hold."""
        return Needs()

    def select(self, request: Request, scores: Scores) -> Mask:
        """`scores` are of the open block's targets alone -> bool [targets]."""
        ...

    def is_forced(self, request: Request, scores: Scores) -> bool:
        """Whether no target met the policy's criterion; it still takes one, since every step decodes one."""
        return False
