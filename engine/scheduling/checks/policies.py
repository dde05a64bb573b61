"""Whether cache and unmask policy fit the model, and what does not go with a policy."""

from engine.cache.policies import CACHES
from engine.core.config import ModelSpec
from engine.core.errors import InvalidRequest
from engine.core.params import DiffusionParams, resolved
from engine.core.requests.submission import Submission
from engine.scheduling.checks.ranges import check_name
from engine.unmask.policies import UNMASKS


def check_cache(diffusion: DiffusionParams, spec: ModelSpec) -> None:
    """Raises InvalidRequest if there is no such cache policy, or if it is for models of the other attention."""
    check_name("diffusion.cache", diffusion.cache, ("auto", *CACHES))
    cache = resolved(diffusion, spec).cache
    if CACHES[cache].fits(spec):
        return
    fitting = ", ".join(name for name, policy in CACHES.items() if policy.fits(spec)) or "none that this engine has"
    attention = "is block-causal" if spec.is_block_causal else "attends in both directions"
    raise InvalidRequest(
        f"diffusion.cache is {cache!r}, which does not fit the model: it {attention} ({spec.family}). "
        f"Caches that fit it: {fitting}.",
        "diffusion.cache",
    )


def check_unmask(unmask: str, spec: ModelSpec) -> None:
    """Raises InvalidRequest if there is no such unmask policy, or if the model lacks what it needs."""
    check_name("diffusion.unmask", unmask, UNMASKS)
    policy = UNMASKS[unmask]
    if policy.fits(spec):
        return
    fitting = ", ".join(name for name, other in UNMASKS.items() if other.fits(spec))
    if policy.renews:
        why = f"denoises random tokens: for models without a mask, and {spec.family} has one"
    elif spec.mask_id is None:
        why = f"fills masks, of which the model has none ({spec.family})"
    elif policy.cuts_canvas:
        why = f"sets the length of blocks itself; the model is block-causal ({spec.family}), its blocks have one length"
    elif policy.moves_tokens:
        why = f"inserts and deletes tokens: for models with tokens that ask for it, of which {spec.family} lacks some"
    elif policy.drafts:
        why = (
            "verifies its drafts by rows that say the next token: for models that are autoregressive ones, too, and "
            f"{spec.family} is none"
        )
    else:
        why = (
            f"replaces decoded tokens: for block-causal models whose logits are not shifted, and {spec.family} is none"
        )
    raise InvalidRequest(
        f"diffusion.unmask is {unmask!r}, which {why}. Policies that fit it: {fitting}.", "diffusion.unmask"
    )


def check_constrained(unmask: str, param: str) -> None:
    """Raises InvalidRequest, which names `param`, if no constraint can be combined with the unmask policy.

    For front ends, before they compile what `param` asks for. Unknown policies pass; `check` refuses them.
    """
    if unmask in UNMASKS and (named := _replacing(unmask)):
        raise InvalidRequest(f"{param} cannot be combined with {named}.", param)


def _replacing(unmask: str) -> str | None:
    """The policy in words if it replaces or moves tokens, drafts them, or draws a block anew in each step."""
    policy = UNMASKS[unmask]
    if policy.renews:
        does = "draws the whole block anew in each step"
    elif policy.moves_tokens:
        does = "inserts and deletes tokens"
    elif policy.replaces_tokens:
        does = "replaces decoded tokens"
    elif policy.drafts:
        does = "verifies its drafts"
    else:
        return None
    return f"diffusion.unmask {unmask!r}, which {does}"


def check_replacing(submission: Submission, spec: ModelSpec) -> None:
    """Raises InvalidRequest on what cannot be combined with such a policy: one that replaces tokens, drafts them, or
    draws a block anew in each step."""
    diffusion, sampling = submission.diffusion, submission.sampling
    policy, named = UNMASKS[diffusion.unmask], _replacing(diffusion.unmask)
    if not named:
        return
    if not CACHES[resolved(diffusion, spec).cache].computes_block:
        fitting = ", ".join(name for name, policy in CACHES.items() if policy.computes_block)
        raise InvalidRequest(
            f"diffusion.cache {diffusion.cache!r} cannot be combined with {named}. Caches that can: {fitting}.",
            "diffusion.cache",
        )
    if diffusion.sub_block_length:
        raise InvalidRequest(
            f"diffusion.sub_block_length cannot be combined with {named} anywhere in a block.",
            "diffusion.sub_block_length",
        )
    if sampling.constraint is not None:
        raise InvalidRequest(f"Structured outputs cannot be combined with {named}.", "diffusion.unmask")
    if any(len(word) > 1 for word in sampling.bad_words):
        raise InvalidRequest(f"bad_words of several tokens cannot be combined with {named}.", "bad_words")
    why = ", at temperatures of its own: diffusion.t_max to t_min" if policy.renews else ", by the most probable ones"
    for name, neutral in (("temperature", 0.0), ("top_p", 1.0), ("top_k", 0.0), ("min_p", 0.0)):
        if (policy.renews or policy.moves_tokens) and getattr(sampling, name) != neutral:
            raise InvalidRequest(f"{name} cannot be combined with {named}{why}.", name)
    if policy.moves_tokens and sampling.min_tokens:
        raise InvalidRequest(
            f"min_tokens cannot be combined with {named}: the token that ends an answer may move.", "min_tokens"
        )
    if not policy.drafts:
        return
    for name, neutral in (("presence_penalty", 0.0), ("frequency_penalty", 0.0), ("repetition_penalty", 1.0)):
        if getattr(sampling, name) != neutral:
            raise InvalidRequest(f"{name} cannot be combined with {named}: it would count these.", name)
