"""What a request asks for: how its tokens are drawn, and how its canvas is decoded. Frozen; token ids only, no text.

Ranges stand with the fields they belong to; `engine.scheduling.checks.ranges` enforces them.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, Literal

from engine.core.config import ModelSpec
from engine.core.constraint import Constraint
from engine.core.ranges import Ge, Gt, Le, Lt

MAX_LOGPROBS = 20
"""Alternatives that may be asked for beside each token."""
MAX_BIAS = 100.0
"""What may be added to a logit, or taken off it, at most."""
MAX_BIASED = 1024
"""Entries of a `logit_bias`."""
MAX_STOP_IDS = 1024
"""Entries of `stop_ids`."""
MAX_BAD_WORDS = 128
"""Sequences of `bad_words`."""
MAX_BAD_WORD_TOKENS = 1024
"""Tokens in all of them together."""
MAX_STEPS = MAX_BLOCK = 65_536
"""Steps and positions: more than any canvas has, and still numbers to compute with."""
MAX_LOGPROB_IDS = 512
"""Entries of `logprob_ids`."""
MAX_POST_STEPS = 256
"""Steps that a block may take after its last mask: what is drawn at a high temperature may change in each of them."""
MAX_RELAYED = 8
"""Entries of `relay_from`."""
INT64 = 2**63
BLOCK_LENGTH = 32
"""Default block of models that attend in both directions, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn and where an answer ends.

    From a model's logits to a token: `repetition_penalty`, `frequency_penalty`, `presence_penalty`, `logit_bias`,
    `allowed_ids`, `bad_words` and `min_tokens` edit the logits, as if the model had said so: unmask policies see the
    confidence of what is left. Then `temperature`, `min_p`, `top_p` and `top_k` shape the draw alone. The mask token is
    never drawn.

    A canvas has no left and right: penalties count what is decoded anywhere on it before the step. They leave the
    tokens alone that end the answer, of which the tail of a canvas is full: they are no part of it.
    """

    max_tokens: Annotated[int, Ge(1)]
    """Tokens to generate at most; the canvas is this, rounded up to blocks as far as the context goes."""
    temperature: Annotated[float, Ge(0), Le(2)] = 0.0
    """0 takes the most probable token; above, Gumbel noise is added as in LLaDA's `generate.py`."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Draw among the most probable tokens whose probabilities just exceed this sum."""
    top_k: Annotated[int, Ge(0), Lt(INT64)] = 0
    """Draw among this many of the most probable tokens; 0 is all of them."""
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Draw among tokens at least this share as probable as the best one that may be drawn."""
    presence_penalty: Annotated[float, Ge(-2), Le(2)] = 0.0
    """Taken off the logit of every token that the answer holds already, wherever on the canvas."""
    frequency_penalty: Annotated[float, Ge(-2), Le(2)] = 0.0
    """Taken off once for each time that the answer holds it."""
    repetition_penalty: Annotated[float, Gt(0), Lt(inf)] = 1.0
    """Divides positive logits of tokens in the prompt or the answer, multiplies negative ones (CTRL, 1909.05858).

    Of the model's own logits: before all other edits.
    """
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit) pairs."""
    allowed_ids: frozenset[int] | None = None
    """All other tokens, the mask too, have no probability; None is no such limit.

    A single one is sure to come out, and `logprobs` still say what the model thinks of it.
    """
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the answer must not hold, nor prompt and answer together.

    The token that would complete one is banned where all its other tokens stand already; of tokens that would complete
    one together, the least confident waits for a later step. Where this leaves nothing to draw, sequences of several
    tokens give way.
    """
    min_tokens: Annotated[int, Ge(0)] = 0
    """No token that ends the answer is drawn for its first so many positions."""
    seed: Annotated[int, Ge(-INT64), Lt(INT64)] = 0
    """Of the counter-based noise: it is the same whatever else is in the batch, and so are tokens where logits are."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the answer, beside the model's own."""
    ignore_eos: bool = False
    """Decode the whole canvas even if the model ends its answer earlier."""
    logprobs: Annotated[int, Ge(0), Le(MAX_LOGPROBS)] | None = None
    """Report each token's log-probability, and those of this many of the most probable tokens; None is nothing.

    They are the model's own, of the step that decodes the token: before any edit, temperature or `top_p`. The mask
    token has its share of the probability, but is not among the most probable ones.
    """
    logprob_ids: tuple[int, ...] = ()
    """With `logprobs`: report those of these tokens too, at each position."""
    constraint: Constraint | None = None
    """The language that the answer is a whole text of, whatever else is asked; None is any text.

    Proposals are then drawn from, and scored by, the posterior given that the answer is valid and ends within
    `max_tokens`. `min_p`, `top_p` and `top_k` look at the tokens that may stand at a position. Bad words of several
    tokens give way where only they are valid.
    """


def banned_everywhere(sampling: SamplingParams) -> frozenset[int]:
    """The tokens of bad words that are a single token."""
    return frozenset(word[0] for word in sampling.bad_words if len(word) == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionParams:
    """How the canvas is decoded: two policies, and the parameters of all policies under their papers' names.

    A new policy's parameter is a field here and nothing else: settings, flags, the API and the checks follow from its
    type, range, default and the text below it.
    """

    cache: str = "auto"
    """Which rows each step recomputes; auto is dual, or block where the model is block-causal."""
    unmask: str = "threshold"
    """Which scored positions become tokens."""
    block_length: Annotated[int, Ge(1), Le(MAX_BLOCK)] | None = None
    """Positions decoded together before the next ones, in tokens; null is what a block-causal model was trained with,
    32 for others. dream (one block) and cad have their own."""
    sub_block_length: Annotated[int, Ge(1), Le(MAX_BLOCK)] | None = None
    """Block-causal models: positions of a block decoded together before the block's next ones, in tokens; null is the
    whole block (Fast-dLLM v2, arXiv 2509.26328). Each takes at least one step, whatever a schedule says."""
    steps: Annotated[int, Ge(1), Le(MAX_STEPS)] | None = None
    """Denoising steps over the whole canvas, for policies that follow a schedule; null is as many as it has tokens."""
    causal_first: bool = True
    """Models whose finished rows say the next token: they say each block's first one, as Nemotron's own sampler has it;
    false leaves it to diffusion, as vLLM does, which saves a forward a block. No effect on other models."""
    denoising_steps: Annotated[int, Ge(1), Le(MAX_STEPS)] | None = None
    """sequential, low_confidence_static, low_confidence_dynamic: steps over a block of full length; null is as many as
    it has tokens (SDAR, arXiv 2510.06303). confidence_threshold, low_confidence, leftmost: steps of a block at most."""
    threshold: Annotated[float, Ge(0), Le(1)] = 0.9
    """threshold, confidence_threshold, certainty_threshold, low_confidence_dynamic, edit, insert_delete: confidence
    from which a token is accepted (Fast-dLLM, arXiv 2505.22618); some block-causal models accept what exceeds it."""
    editing_threshold: Annotated[float, Ge(0), Le(1)] = 0.9
    """edit, insert_delete: a decoded token becomes another one whose confidence exceeds it, as long as its block is
    open (LLaDA2.1, arXiv 2602.08676)."""
    max_post_steps: Annotated[int, Ge(0), Le(MAX_POST_STEPS)] = 16
    """edit: steps in a block without masks, at most; it ends before if one of them replaces nothing. insert_delete:
    steps in a block without any of its first masks."""
    num_to_transfer: Annotated[int, Ge(1), Le(MAX_BLOCK)] = 1
    """edit: masks that become tokens in each step, at least."""
    draft_threshold: Annotated[float, Ge(0), Le(1)] = 0.0
    """linear_spec: confidence from which a token of a draft is accepted; 0 drafts each block in one forward."""
    draft_adapter: bool = True
    """linear_spec: drafts go through the checkpoint's adapter, where it has one; the text is the same without."""
    factor: Annotated[float, Gt(0), Lt(inf)] = 1.0
    """factor: accepts the n most confident while (n + 1)(1 - confidence) stays below it (Fast-dLLM)."""
    gamma: Annotated[float, Ge(0), Lt(inf)] = 0.001
    """entropy_bound: entropy that tokens decoded together may have beside the largest, in nats (arXiv 2505.24857);
    entropy_bounded: what all their entropies stay below together."""
    max_denoising_steps: Annotated[int, Ge(1), Le(MAX_STEPS)] = 48
    """renoise: steps of a block, at most (DiffusionGemma)."""
    entropy_bound: Annotated[float, Ge(0), Lt(inf)] = 0.1
    """renoise: accepts the tokens of lowest entropy while those before one sum to no more, in nats."""
    t_min: Annotated[float, Gt(0), Le(100)] = 0.4
    """renoise: temperature to which a block's steps fall; the last one's is a step above it."""
    t_max: Annotated[float, Gt(0), Le(100)] = 0.8
    """renoise: temperature of a block's first step."""
    stability_threshold: Annotated[int, Ge(0), Le(MAX_STEPS)] = 1
    """renoise: a block may end early in a step whose best tokens are those of so many steps before it."""
    confidence_threshold: Annotated[float, Ge(0), Lt(inf)] = 0.005
    """renoise: it does if the mean entropy of its tokens is below this then, in nats. No effect on the policy
    confidence_threshold, whose number is `threshold`."""
    alg: Literal["entropy", "maskgit_plus", "topk_margin", "origin"] = "entropy"
    """dream: the order of tokens, by entropy, by probability, by the lead over the second best, or by chance."""
    alg_temp: Annotated[float, Ge(0), Lt(inf)] | None = None
    """dream: chance in that order; null or 0 is none."""
    eps: Annotated[float, Ge(0), Lt(1)] = 1e-3
    """dream: the time at which its schedule ends, from 1."""
    lookahead: Annotated[int, Ge(0)] | None = 32
    """Masked positions behind the open block that are computed and attended to, in tokens; null is all of the canvas
    (Streaming-dLLM, arXiv 2601.17917). No effect on dream, whose one block is the canvas, nor on block-causal
    models, which see none."""
    refresh_before: Annotated[int, Ge(0)] = 32
    """window, delayed: positions before a block that are recomputed when it opens."""
    refresh_after: Annotated[int, Ge(0)] = 0
    """window, delayed: positions behind the block that are recomputed when it opens."""
    prompt_refresh: Annotated[int, Ge(0)] = 0
    """window, delayed: the prompt is recomputed every so many blocks; 0 is never."""
    current_k: Annotated[int, Ge(1)] = 32
    """d2: masked positions recomputed each step, the best by confidence x certainty density (d2Cache, 2509.23094)."""
    rollout_p: Annotated[float, Ge(0), Le(1)] = 0.1
    """d2: share of the attention rollout's mass whose positions are recomputed beside them."""
    sigma: Annotated[float, Ge(0.01), Le(1e6)] = 10.0
    """d2, certainty: width of the certainty density, in tokens."""
    inflate_w: Annotated[int, Ge(0)] = 4
    """d2: recomputed positions at most this far apart have those between them recomputed too; 0 is never."""
    initial_block_length: Annotated[int, Ge(1), Le(MAX_BLOCK)] = 24
    """cad: length of the first block, in tokens (CadLLM, arXiv 2512.07173); in place of `block_length`."""
    min_block_length: Annotated[int, Ge(1), Le(MAX_BLOCK)] = 4
    """cad: blocks are no shorter, unless the canvas ends."""
    max_block_length: Annotated[int, Ge(1), Le(MAX_BLOCK)] = 64
    """cad: nor longer; the surer the model, the longer the block."""
    initial_steps: Annotated[int, Ge(1), Le(MAX_STEPS)] = 24
    """cad: steps over which the threshold falls in a block of `initial_block_length`, for a sure model."""
    max_steps: Annotated[int, Ge(1), Le(MAX_STEPS)] = 90
    """cad: the same for a model that is not sure at all."""
    confidence_method: Literal["softmax", "entropy"] = "softmax"
    """cad: the proposed token's probability, or 1 / (1 + entropy), each over a subset of the vocabulary."""
    kv_budget: Annotated[int, Ge(16), Le(MAX_BLOCK)] | None = None
    """Tokens before the open block whose keys and values are kept; null is all. The others are evicted for good (R-KV,
    arXiv 2505.24133), which changes answers."""
    kv_buffer: Annotated[int, Ge(1), Le(MAX_BLOCK)] = 128
    """kv_budget: tokens above it before the next eviction, on block-causal models; at least a block. On others each
    block that opens evicts."""
    kv_score: Literal["rkv", "attention", "recent", "random"] = "rkv"
    """kv_budget: who stays. Keys that are read and unlike others, keys that are read, the latest; random is what to
    measure these against."""
    kv_lambda: Annotated[float, Ge(0), Le(1)] = 0.1
    """rkv: share of attention in the score, against the likeness of keys."""
    kv_sink: Annotated[int, Ge(0), Le(MAX_BLOCK)] = 4
    """kv_budget: first tokens that always stay."""
    relay_recompute: Annotated[float, Ge(0), Le(1)] = 0.15
    """With relay_from: share of each adopted run that is computed again in the first step, its last tokens; 1 is all of
    it, as if nothing were adopted."""
    guidance: Literal["posterior", "model"] = "posterior"
    """Structured output: tokens and confidences of the valid answers alone, or the model's own proposals as long as
    these can become a valid answer, which takes more steps."""


def block_length(diffusion: DiffusionParams, spec: ModelSpec) -> int:
    """Positions of a block, in tokens."""
    return diffusion.block_length or spec.block_length or BLOCK_LENGTH


def resolved(diffusion: DiffusionParams, spec: ModelSpec) -> DiffusionParams:
    """With the model's own values where a parameter leaves the choice to the model."""
    return replace(
        diffusion,
        cache=("block" if spec.is_block_causal else "dual") if diffusion.cache == "auto" else diffusion.cache,
        block_length=block_length(diffusion, spec),
        lookahead=0 if spec.is_block_causal else diffusion.lookahead,
    )
