"""Converts bodies of completions and chat to generation requests, and chooses the form of their responses."""

from collections.abc import Sequence

from engine import InvalidRequest, ModelSpec
from server.constraints import Compiled
from server.prompts.constraints import compiled, compiled_chat, is_constrained
from server.prompts.convert import cache_salt, diffusion_params, relay_from, sampling_params
from server.prompts.fim import is_templated, with_hole
from server.prompts.prompts import Prompt
from server.protocols.forms import ChatForm, Extras, TextForm
from server.protocols.response import Answer, ResponseWriter
from server.protocols.service import Service
from server.protocols.trace import TraceWriter
from server.replies.generation import GenerationRequest
from server.replies.logprobs import LogprobWriter
from server.schemas import (
    ChatRequest,
    CompletionRequest,
    ConstraintUsage,
    DiffusionRequest,
    NamedTool,
    Prompts,
    SamplingRequest,
    StreamOptions,
)
from server.schemas.completions import DEFAULT_MAX_TOKENS, NO_LIMIT
from server.text.tokenizer import Tokenizer


async def from_completion(
    body: CompletionRequest, service: Service, tenant: str, form_of: type[TextForm] = TextForm
) -> tuple[ResponseWriter, GenerationRequest]:
    """The generation request of a completion, and its response writer. Raises InvalidRequest, or ModelNotFound.

    `tenant`: who shares keys and values, as `server.guards.auth` tells it. `form_of`: the form of the answer.
    """
    model, spec = service.models.resolve(body.model), service.engine.info.spec
    diffusion = diffusion_params(body.diffusion, service.diffusion, spec)
    _check_direction(body, spec)
    prompts = await _prompts(body, service)
    is_infill = any(prompt.fills for prompt in prompts)
    if is_infill and body.echo and body.logprobs is not None:
        raise InvalidRequest("With holes to fill, `logprobs` is of the fills: leave `echo` out.", "logprobs")
    drawn = max(body.best_of or 1, body.n)
    default = service.default_max_tokens if body.max_tokens == NO_LIMIT else DEFAULT_MAX_TOKENS
    if is_constrained(body):
        _check_constrained(body, is_infill=is_infill)
    constraint = await compiled(body, service.constraints, service.json_whitespace, tenant, diffusion.unmask)
    sampling = await sampling_params(
        body,
        service.tokenizer,
        max_tokens=default if body.num_asked is None else body.num_asked,
        temperature=service.temperature,
        logprobs=0 if drawn > body.n and body.logprobs is None else body.logprobs,
        constraint=constraint.constraint if constraint else None,
    )
    extras = _extras(body, service, prompts, has_logprobs=body.logprobs is not None)
    answer = Answer(
        prefix=form_of.prefix,
        model=model,
        fingerprint=service.fingerprint,
        diffusion=diffusion,
        extras=extras,
        constraint=_usage(constraint),
    )
    writer = ResponseWriter(form=form_of(extras=extras), answer=answer, options=body.stream_options or StreamOptions())
    request = GenerationRequest(
        response_id=answer.id,
        prompts=prompts,
        sampling=sampling,
        diffusion=diffusion,
        seed=body.seed,
        has_default_length=body.num_asked is None,
        num_drawn=drawn,
        num_kept=body.n,
        stops=body.stop,
        keeps_stop=body.include_stop_str_in_output,
        skips_special=body.skip_special_tokens,
        echoes=body.echo,
        num_scored=body.logprobs if body.echo else None,
        is_traced=extras.trace is not None,
        tells_steps=extras.has_step_map,
        is_tracked=sampling.logprobs is not None or extras.lists_tokens,
        cache_salt=cache_salt(tenant, body.cache_salt),
        relay_from=relay_from(body),
    )
    return writer, request


def _check_direction(body: CompletionRequest, spec: ModelSpec) -> None:
    """Raises InvalidRequest for what needs a model that sees what stands behind a mask."""
    if not spec.is_block_causal:
        return
    blind = f"the model is block-causal ({spec.family}): it cannot see what stands behind a mask"
    if body.suffix:
        raise InvalidRequest(f"`suffix` is not for this model: {blind}. Leave it out.", "suffix")
    if body.echo and body.logprobs is not None:
        raise InvalidRequest(
            f"`echo` with `logprobs` scores each token of the prompt given those behind it, and {blind}. "
            "Leave one of them out.",
            "logprobs",
        )


def _check_constrained(body: CompletionRequest, *, is_infill: bool) -> None:
    """Raises InvalidRequest for what a constraint cannot be combined with, and the engine has other words for."""
    if is_infill:
        raise InvalidRequest(
            "What an answer must be can be said of one that stands behind the prompt, not of text that fills holes.",
            "suffix" if body.suffix else "prompt",
        )
    if body.echo and body.logprobs is not None:
        raise InvalidRequest("`echo` with `logprobs` scores a prompt, which nothing constrains; leave it out.", "echo")


async def _prompts(body: CompletionRequest, service: Service) -> list[Prompt]:
    special = body.add_special_tokens is not False
    length = DEFAULT_MAX_TOKENS if body.num_asked is None else body.num_asked
    if body.suffix:
        if not length:
            raise InvalidRequest("Prompt and `suffix` need room between them: `max_tokens` of 1 or more.", "max_tokens")
        return await service.prompts.read_infix(
            body.prompt, body.suffix, length, add_special_tokens=special, echo=body.echo
        )
    prompts = await service.prompts.read(
        _with_holes(body.prompt, length, service.tokenizer),
        add_special_tokens=special,
        echo=body.echo,
        locate=body.echo and body.logprobs is not None,
    )
    for prompt in prompts:
        if prompt.fills and body.num_asked not in (None, prompt.num_filled):
            raise InvalidRequest(
                f"The holes of a prompt have {prompt.num_filled} positions; leave `max_tokens` out, or let it be that.",
                "max_tokens",
            )
    return prompts


def _with_holes(prompts: Prompts, length: int, tokenizer: Tokenizer) -> Prompts:
    """Prompts in the templates of coder models have a hole instead."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not any(map(is_templated, texts)) or not length:
        return prompts
    known = {token.content for token in tokenizer.added_tokens.values()}
    return [with_hole(text, length, known) for text in texts]


async def from_chat(body: ChatRequest, service: Service, tenant: str) -> tuple[ResponseWriter, GenerationRequest]:
    """The generation request of a chat completion, and its response writer. Raises what `conversed` raises."""
    answer, request = await conversed(body, service, tenant, prefix=ChatForm.prefix, is_strict=True)
    form = ChatForm(
        extras=answer.extras,
        service_tier=body.service_tier,
        metadata=body.metadata,
        has_tools=bool(body.shown_tools),
        shows_reasoning=body.include_reasoning,
        is_named=isinstance(body.tool_choice, NamedTool),
    )
    return ResponseWriter(form=form, answer=answer, options=body.stream_options or StreamOptions()), request


async def conversed(
    body: ChatRequest, service: Service, tenant: str, *, prefix: str, is_strict: bool
) -> tuple[Answer, GenerationRequest]:
    """What every API that answers conversations shares: what its answer is made of, and the generation request.

    Raises InvalidRequest, or ModelNotFound. `tenant`: who shares keys and values, as `server.guards.auth` tells it.
    `prefix`: of the answer's id. `is_strict`: all tools are, whatever they say of themselves.
    """
    model = service.models.resolve(body.model)
    diffusion = diffusion_params(body.diffusion, service.diffusion, service.engine.info.spec)
    prompt = await conversation(body, service)
    asked = body.max_completion_tokens or body.max_tokens
    constraint = await compiled_chat(
        body, service.constraints, service.json_whitespace, tenant, diffusion.unmask, is_strict=is_strict
    )
    sampling = await sampling_params(
        body,
        service.tokenizer,
        max_tokens=asked or service.default_max_tokens,
        temperature=service.temperature,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=constraint.constraint if constraint else None,
    )
    answer = Answer(
        prefix=prefix,
        model=model,
        fingerprint=service.fingerprint,
        diffusion=diffusion,
        extras=_extras(body, service, [prompt], has_logprobs=body.logprobs),
        constraint=_usage(constraint),
    )
    request = GenerationRequest(
        response_id=answer.id,
        prompts=[prompt],
        sampling=sampling,
        diffusion=diffusion,
        seed=body.seed,
        has_default_length=asked is None,
        num_drawn=body.n,
        num_kept=body.n,
        stops=body.stop,
        keeps_stop=body.include_stop_str_in_output,
        skips_special=body.skip_special_tokens,
        reads_calls=bool(body.shown_tools),
        reads_reasoning=service.tokenizer.reasons and _may_reason(body),
        begun=_begun(body),
        is_traced=answer.extras.trace is not None,
        tells_steps=answer.extras.has_step_map,
        is_tracked=body.logprobs or answer.extras.lists_tokens,
        cache_salt=cache_salt(tenant, body.cache_salt),
        relay_from=relay_from(body),
        relay_end=await _relay_end(body, service, prompt) if relay_from(body) else None,
    )
    return answer, request


async def _relay_end(body: ChatRequest, service: Service, prompt: Prompt) -> int:
    """How many of the prompt's first tokens are those of messages before the last one of the user."""
    effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    return await service.conversations.count_before_last(
        prompt.ids,
        body.messages,
        body,
        add_special_tokens=bool(body.add_special_tokens),
        tools=body.shown_tools,
        variables=effort,
    )


async def conversation(body: ChatRequest, service: Service) -> Prompt:
    """The prompt of a chat. Raises InvalidRequest."""
    effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    return await service.conversations.read(
        body.messages,
        body,
        add_special_tokens=bool(body.add_special_tokens),
        tools=body.shown_tools,
        variables=effort,
    )


def _may_reason(body: ChatRequest) -> bool:
    """Whether the answer may begin with reasoning: what an answer must be is said of all of it."""
    return not is_constrained(body) and not body.must_call


def _begun(body: ChatRequest) -> str:
    """The text of a last message of the assistant that the answer goes on with."""
    last = body.messages[-1]
    return last.content if body.continue_final_message and last.role == "assistant" else ""


def _extras(body: SamplingRequest, service: Service, prompts: Sequence[Prompt], *, has_logprobs: bool) -> Extras:
    writer = LogprobWriter(service.tokenizer, as_ids=body.return_tokens_as_token_ids)
    asked = body.diffusion or DiffusionRequest()
    return Extras(
        logprobs=writer if has_logprobs else None,
        prompt_ids=[prompt.ids for prompt in prompts for _ in range(body.n)] if body.return_token_ids else None,
        stop_ids=frozenset(body.stop_token_ids),
        has_step_map=asked.step_map,
        trace=TraceWriter(service.tokenizer) if asked.trace else None,
    )


def _usage(constraint: Compiled | None) -> ConstraintUsage | None:
    if constraint is None:
        return None
    return ConstraintUsage(
        compile_ms=round(1000 * constraint.seconds, 1),
        cached=constraint.is_cached,
        states=constraint.constraint.num_states,
    )
