"""The two protocols that decide a step: which rows are computed, and which targets become tokens."""

from typing import ClassVar, Literal, Protocol

from engine.core.arrays import Ids, Mask
from engine.core.config import ModelSpec
from engine.core.params import DiffusionParams, block_length
from engine.core.requests.request import Request
from engine.core.steps.choice import Rewritten
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs, Scores


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
