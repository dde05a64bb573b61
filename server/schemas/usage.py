"""The wire types of what an answer has cost."""

from pydantic import BaseModel

from server.schemas.wire import IfGiven


class ConstraintUsage(BaseModel):
    """What making the answer's constraint has cost."""

    compile_ms: float
    """Milliseconds that compiling took, when it was compiled."""
    cached: bool
    """Whether that was for an earlier request."""
    states: int
    """States of its automaton."""


class DiffusionUsage(BaseModel):
    """What decoding has cost, beside tokens."""

    cache: str
    unmask: str
    lookahead: int | None
    """Positions behind the open block that were computed and attended to; null is all of the canvas."""
    forwards: int
    """Steps that the choices took part in, summed; scoring a prompt included."""
    rows_computed: int
    """Positions whose hidden states were computed."""
    visible_tokens: int
    """Positions of prompt and canvas that came to have keys and values, over all choices; the others were spared."""
    kv_evicted: IfGiven[int] = None
    """Only with `kv_budget`: tokens of prompts and answers whose keys and values were evicted, over all choices."""
    kv_resident_peak: IfGiven[int] = None
    """Only with it: positions that had keys and values at once, of the choice that had most."""
    tokens_per_forward: float
    constraint: IfGiven[ConstraintUsage] = None
    """Only with a constraint."""
    relay_adopted: IfGiven[int] = None
    """With `relay_from`: prompt tokens whose keys and values the named answers had, over all choices."""
    relay_recomputed: IfGiven[int] = None
    """Those of them that were computed again in the first step."""
    relay_unknown: IfGiven[int] = None
    """Named answers of which the server has nothing, or not for this key and salt."""
    fills: IfGiven[list[str]] = None
    """Of infilling: the text of each hole, in the order of choices and of holes in them."""


class PromptTokensDetails(BaseModel):
    """Of the prompts' tokens: all is text."""

    cached_tokens: int = 0
    """Those whose keys and values were there from earlier requests; block-causal models alone can share them."""
    audio_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    """Of the choices' tokens: no `prediction` is looked at."""

    reasoning_tokens: int = 0
    """Those of the reasoning that is told apart from the text of a chat."""
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(BaseModel):
    """Tokens of the prompts, each counted once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()
    diffusion: DiffusionUsage
