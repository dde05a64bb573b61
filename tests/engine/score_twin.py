"""The slow twin of `engine.scoring.scores`, one request, one position and one token at a time; and batches for both."""

import math
from collections import Counter

import numpy as np
import torch
from hypothesis import strategies as st

from engine.core.config import ModelSpec
from engine.core.errors import InvalidRequest
from engine.core.noise import hashed
from engine.core.params import DiffusionParams, SamplingParams
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs
from engine.scheduling.checks.submission import check

VOCAB, MASK, EOS = 24, 23, 22
SPEC = ModelSpec(family="toy", vocab_size=VOCAB, mask_id=MASK, eos_ids=frozenset({EOS}), max_model_len=32_768)
PROMPT = (1, 2, MASK, EOS, 1)


def plan(num_targets=8, decoded=(), forwards=0, replaces_tokens=False, **sampling):
    """A canvas with `decoded` (offset behind the prompt, token) pairs in it; what is left are its targets.

    All are, where tokens are replaced.
    """
    sampling = SamplingParams(max_tokens=num_targets, **sampling)
    diffusion = DiffusionParams(block_length=num_targets)
    submission = Submission(request_id="r", prompt_ids=PROMPT, sampling=sampling, diffusion=diffusion)
    check(submission, SPEC)
    request = Request.new(submission, SPEC)
    request.decoding_steps, request.block.replaces_tokens = forwards, replaces_tokens
    for offset, token in decoded:
        request.ids[len(PROMPT) + offset], request.masked[len(PROMPT) + offset] = token, False
        request.history.tokens.append(token)
    return StepPlan(
        request, np.arange(request.canvas_end), np.full(request.canvas_end, request.canvas_end), request.targets
    )


def twin_edit(raw, request, position):
    """The edited logits of one position, token by token."""
    asked, stops, counts = request.sampling, request.stop_ids, Counter(request.history.tokens)
    if not request.masked[position]:
        counts[int(request.ids[position])] -= 1  # a token is not penalised for where it stands
    others = np.arange(request.canvas_end) != position
    seen = set(request.ids[others & ~request.masked].tolist())
    edited = []
    for token, logit in enumerate(raw.tolist()):
        if token not in stops:
            if token in seen:
                divides = logit > 0
                logit = logit / asked.repetition_penalty if divides else logit * asked.repetition_penalty
            logit -= asked.frequency_penalty * counts[token] + asked.presence_penalty * (counts[token] > 0)
        logit += sum(bias for biased, bias in asked.logit_bias if biased == token)
        is_early_stop = token in stops and position < len(PROMPT) + asked.min_tokens
        is_foreign = asked.allowed_ids is not None and token not in asked.allowed_ids
        edited.append(-math.inf if is_early_stop or is_foreign or (token,) in asked.bad_words else logit)
    completing = {
        word[place]
        for word in asked.bad_words
        for place in range(len(word))
        if len(word) > 1 and lacks_only(word, place, request, position - place)
    }
    left = [token for token in range(VOCAB) if edited[token] > -math.inf and token != MASK]
    if set(left) - completing:
        edited = [-math.inf if token in completing else logit for token, logit in enumerate(edited)]
    return edited


def lacks_only(word, place, request, start):
    others = [(start + i, token) for i, token in enumerate(word) if i != place]
    return all(
        0 <= at < request.canvas_end and not request.masked[at] and request.ids[at] == token for at, token in others
    )


def softmax(logits):
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def twin_narrow(logits, asked):
    """Those of the tempered distribution that top_p, top_k and min_p keep, each by its definition; others are -inf."""
    p = softmax([logit / (asked.temperature or 1.0) for logit in logits])
    order, total, kept = sorted(range(VOCAB), key=lambda token: -p[token]), 0.0, set()
    for token in order:
        if total > asked.top_p:
            break
        kept.add(token)
        total += p[token]
    best = next(token for token in order if token != MASK)
    kept &= set(order[: asked.top_k or VOCAB]) & {token for token in order if p[token] >= asked.min_p * p[best]}
    return [logit if token in kept | {best} else -math.inf for token, logit in enumerate(logits)]


def gumbel(asked, position, step, token):
    uniform = torch.tensor((hashed(asked.seed, position, step, token) + 0.5) / 2.0**32, dtype=torch.float32)
    return float(-torch.log(-torch.log1p(-uniform)))


def twin(raw, request, position, need):
    """Everything that is said of one position."""
    asked = request.sampling
    edited = twin_edit(raw, request, position)
    narrowed = twin_narrow(edited, asked)
    drawable = [token for token in range(VOCAB) if token != MASK]
    token = max(drawable, key=lambda token: edited[token])
    if asked.temperature:
        token = max(
            (token for token in drawable if narrowed[token] > -math.inf),
            key=lambda token: (
                narrowed[token] + asked.temperature * gumbel(asked, position, request.decoding_steps, token)
            ),
        )
    seen = [logit / (asked.temperature or 1.0) for logit in narrowed] if need.processed else edited
    if need.vocabulary:
        least = sorted(seen, reverse=True)[need.vocabulary - 1]
        p = softmax([logit if logit >= least else -math.inf for logit in seen])
    else:
        p = softmax(seen)
    others = sum(p[other] for other in range(VOCAB) if other != token)
    said = {
        "token": token,
        "log_odds": math.log(p[token] / others) if others and p[token] else math.copysign(math.inf, p[token] - 0.5),
    }
    if need.entropy:
        said["entropy"] = -sum(q * math.log(q) for q in p if q > 0)
    if need.margin:
        first, second = sorted(p, reverse=True)[:2]
        said["margin"] = second - first if p[MASK] == first else first - second
    logprobs = raw.double().log_softmax(-1)
    best = sorted(drawable, key=lambda token: -logprobs[token])[: asked.logprobs or 0]
    named = [float(logprobs[token]) for token in asked.logprob_ids]
    said["logprobs"] = (float(logprobs[token]), [(token, float(logprobs[token])) for token in best], named)
    return said


SMALL = st.integers(0, 5)
WORDS = st.lists(st.lists(SMALL, min_size=1, max_size=3).map(tuple), max_size=6).map(tuple)
SAMPLING = st.fixed_dictionaries(
    {
        "num_targets": st.integers(4, 8),
        "decoded": st.dictionaries(st.integers(0, 7), SMALL | st.just(EOS), max_size=6),
        "forwards": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 0.0, 0.4, 1.3]),
        "seed": st.integers(0, 2**40),
    },
    optional={
        "top_p": st.sampled_from([0.3, 0.9]),
        "top_k": st.integers(1, 5),
        "min_p": st.sampled_from([0.05, 0.4, 1.0]),
        "presence_penalty": st.floats(-2, 2, width=16),
        "frequency_penalty": st.floats(-2, 2, width=16),
        "repetition_penalty": st.sampled_from([0.5, 1.2, 3.0]),
        "logit_bias": st.lists(st.tuples(st.integers(0, VOCAB - 1), st.floats(-3, 3, width=16)), max_size=5).map(tuple),
        "allowed_ids": st.frozensets(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
        "bad_words": WORDS,
        "min_tokens": st.integers(1, 8),
        "stop_ids": st.frozensets(SMALL, max_size=2),
        "ignore_eos": st.booleans(),
        "logprobs": st.integers(0, 20),
        "logprob_ids": st.lists(st.integers(0, VOCAB - 1), max_size=5).map(tuple),
    },
)
NEEDS = st.sampled_from(
    [
        Needs(),
        Needs(entropy=True),
        Needs(entropy=True, margin=True),
        Needs(vocabulary=6),
        Needs(processed=True, entropy=True),
        Needs(processed=True, margin=True),
    ]
)


@st.composite
def batches(draw):
    """(plans, needs): a batch of requests that may be served."""
    plans = []
    for asked in draw(st.lists(SAMPLING, min_size=1, max_size=5)):
        asked["decoded"] = [(o, t) for o, t in asked["decoded"].items() if o < asked["num_targets"]][:-1]
        asked["min_tokens"] = min(asked.get("min_tokens", 0), asked["num_targets"])
        asked |= {} if "logprobs" in asked else {"logprob_ids": ()}
        try:
            plans.append(plan(**asked))
        except InvalidRequest:
            plans.append(plan(decoded=asked["decoded"], num_targets=asked["num_targets"]))
    return plans, draw(st.lists(NEEDS, min_size=len(plans), max_size=len(plans)))


def random_logits(plans, seed):
    torch.manual_seed(seed)
    return torch.randn(sum(len(plan.targets) for plan in plans), VOCAB) * 3
