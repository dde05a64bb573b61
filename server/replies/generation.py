"""Turns a generation request into engine requests, one for each choice, and submits them to the engine's queue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from engine import DiffusionParams, EngineLoop, InvalidRequest, QueueFull, SamplingParams, Submission
from server.errors import Busy
from server.observe.observer import Observers, Siblings
from server.prompts.convert import seeds
from server.prompts.prompts import Prompt, PromptReader
from server.replies.choice import NOTHING, Choice, EmptyStream, Stream
from server.replies.completion import Completion
from server.replies.forwards import IDS_PER_TOKEN, Forwards
from server.replies.passage import Passage, Token
from server.replies.prompt_logprobs import PromptScorer
from server.replies.reasoning import ReasoningReader
from server.replies.stop_strings import StopStrings
from server.replies.tool_calls import ToolCallReader
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import CLOSE_REASONING, OPEN_REASONING, Tokenizer
from server.threads import in_thread_if_long

MAX_LOGPROBS_OF_ANSWER = 262_144
"""Bound on an answer's log-probabilities: tokens of all choices and scored prompts, times (alternatives + 1)."""
IDS_OF_TAG = 16
"""Tokens in which a tag and white space behind it certainly stand."""
MAX_TRACED = 65_536
"""Bound on the tokens of an answer that is watched: of all choices, each with its prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Everything that one HTTP request asks of the engine, and how its text is made, whichever route it came by."""

    response_id: str
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    """Parameters of every choice, except the seed. With `max_tokens` of 0 nothing is generated."""
    diffusion: DiffusionParams
    seed: int | None
    has_default_length: bool = False
    """`max_tokens` is a default, not the client's: it is reduced to what the context holds after the prompt."""
    num_drawn: int = 1
    """Choices that are decoded for each prompt."""
    num_kept: int = 1
    """Choices of each prompt that a whole answer keeps."""
    stops: Sequence[str] = ()
    keeps_stop: bool = False
    """The stop string stays in the text."""
    skips_special: bool = True
    """Special tokens stay out of the text."""
    echoes: bool = False
    """The text begins with the prompt's; with infilling, it includes everything around the fills."""
    num_scored: int | None = None
    """Prompts are scored, with this many alternatives for each token; None: they are not scored."""
    reads_calls: bool = False
    """Tool calls in the text are told apart from it."""
    reads_reasoning: bool = False
    """Reasoning before the text is told apart from it."""
    begun: str = ""
    """What there is of the answer already: the text that a conversation has it go on with."""
    is_traced: bool = False
    """The answer has each step."""
    tells_steps: bool = False
    """The answer has the step of each token."""
    is_tracked: bool = False
    """The answer has tokens besides the text."""
    cache_salt: str = ""
    """The engine's: it shares keys and values only among requests of the same salt."""

    relay_from: tuple[str, ...] = ()
    """Ids of answers whose keys and values may be taken over."""
    relay_end: int | None = None
    """Prompt tokens from here on are computed, whatever they repeat; None: all but the last ones may be taken over."""

    @property
    def is_scoring_call(self) -> bool:
        """Whether the request scores prompts and generates one token, which is shown even if it is a stop token.

        Clients that score with `max_tokens` of 1 (lm-eval) drop the last token, whatever it is.
        """
        return self.num_scored is not None and self.sampling.max_tokens == 1


class Submitter:
    """Hands generation requests to the engine."""

    def __init__(
        self,
        engine: EngineLoop,
        tokenizer: Tokenizer,
        prompts: PromptReader,
        observers: Observers,
        forwards: Forwards,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._observers = observers
        self._scorer = PromptScorer(engine, forwards)

    async def start(self, request: GenerationRequest) -> Completion:
        """Submits the request and scores its prompts. Returns the answer, which the engine is still decoding.

        Raises InvalidRequest for too many choices or log-probabilities, Busy if the queue is full, and what
        `EngineLoop.submit` raises otherwise.
        """
        self._check_count(request)
        self._check_trace(request)
        self._check_logprobs(request)
        streams = await self._submit(request) if request.sampling.max_tokens else self._nothing(request)
        scored: list[list[Token]] = [[] for _ in request.prompts]
        spent = NOTHING
        try:
            if request.num_scored is not None:
                ids = [prompt.ids for prompt in request.prompts]
                scores, spent = await self._scorer.score(request.response_id, ids, request.num_scored)
                scored = [
                    list(map(Token, prompt.ids, prompt.starts, found))
                    for prompt, found in zip(request.prompts, scores, strict=True)
                ]
        except BaseException:
            for stream in streams:
                stream.abort()
            raise
        choices = []
        for index, stream in enumerate(streams):
            number = index // request.num_drawn
            prompt = request.prompts[number]
            choices.append(
                Choice(
                    index,
                    stream,
                    self._passages(request, prompt),
                    literals=prompt.literals if request.echoes else (),
                    prompt_ids=prompt.ids,
                    starts=prompt.starts_on_canvas,
                    prompt_tokens=scored[number],
                    reader=ToolCallReader() if request.reads_calls else None,
                    reasoning=self._reasoning(prompt, request.begun) if request.reads_reasoning else None,
                )
            )
        num_prompt_tokens = [len(prompt.ids) for prompt in request.prompts]
        counts = self._observers.tokens
        return Completion(choices, num_prompt_tokens, num_kept=request.num_kept, scoring=spent, counts=counts)

    def _reasoning(self, prompt: Prompt, begun: str) -> ReasoningReader:
        """The reader of an answer to the prompt. Reasoning is open if what has begun, or the template, opens it."""
        if text := begun.strip():
            is_open = text.startswith(OPEN_REASONING) and CLOSE_REASONING not in text
        else:
            is_open = self._tokenizer.decode(prompt.ids[-IDS_OF_TAG:]).rstrip().endswith(OPEN_REASONING)
        added = self._tokenizer.added_tokens.items()
        close_id = next((id_ for id_, token in added if token.content == CLOSE_REASONING), None)
        return ReasoningReader(is_open=is_open, close_id=close_id)

    async def _submit(self, request: GenerationRequest) -> Sequence[Stream]:
        sampling, diffusion = request.sampling, request.diffusion
        if request.is_scoring_call:
            sampling = replace(sampling, ignore_eos=True, stop_ids=frozenset())
            diffusion = replace(diffusion, block_length=1, steps=None)
        submissions: list[Submission] = []
        siblings: list[Siblings] = []
        for prompt in request.prompts:
            siblings += [Siblings(n=request.num_kept, num_running=request.num_drawn)] * request.num_drawn
            for seed in seeds(request.seed, request.num_drawn):
                submissions.append(
                    Submission(
                        request_id=f"{request.response_id}-{len(submissions)}",
                        prompt_ids=prompt.ids,
                        sampling=replace(sampling, seed=seed, max_tokens=self._length(request, prompt)),
                        diffusion=diffusion,
                        holes=prompt.holes,
                        cache_salt=request.cache_salt,
                        relay_as="" if request.is_scoring_call else request.response_id,
                        relay_from=request.relay_from,
                        relay_end=request.relay_end,
                        is_traced=request.is_traced,
                        tells_steps=request.tells_steps,
                    )
                )
        num_ids = sum(len(prompt.ids) for prompt in request.prompts) + len(sampling.allowed_ids or ())
        prepare = partial(self._engine.prepare, submissions)
        engine_requests = await in_thread_if_long(request.num_drawn * num_ids // IDS_PER_TOKEN, prepare)
        try:
            streams = self._engine.enqueue(engine_requests)
        except QueueFull as error:
            raise Busy(str(error), self._observers.pace.seconds_to_halve(self._engine.num_waiting)) from None
        return list(map(self._observers.observe, streams, submissions, siblings))

    def _length(self, request: GenerationRequest, prompt: Prompt) -> int:
        """Positions of one choice. 1 if the context has no room left: the engine then raises the error."""
        wanted = prompt.num_filled or request.sampling.max_tokens
        if prompt.fills or not request.has_default_length:
            return wanted
        return max(min(wanted, self._engine.info.max_model_len - len(prompt.ids)), 1)

    def _check_count(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for more choices than the server has places: a retry could never succeed.

        The bound holds for answers without generation as well, because each choice repeats its prompt.
        """
        info, count = self._engine.info, len(request.prompts) * request.num_drawn
        if count > (places := info.max_running_requests + info.max_queued_requests):
            param = "prompt" if request.num_drawn == 1 else "n" if request.num_drawn == request.num_kept else "best_of"
            raise InvalidRequest(
                f"{len(request.prompts)} prompts with {request.num_drawn} choices each are {count} requests, and this "
                f"server takes {places} at most.",
                param,
            )

    def _check_logprobs(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for too many log-probabilities: each takes memory, and time to be written."""
        if request.sampling.logprobs is None:
            return
        context = self._engine.info.max_model_len  # the engine's error for longer requests is clearer
        num_tokens = sum(
            min(self._length(request, prompt), context) + (0 if request.num_scored is None else len(prompt.ids))
            for prompt in request.prompts
        )
        count = request.num_drawn * num_tokens * (request.sampling.logprobs + 1)
        if count > MAX_LOGPROBS_OF_ANSWER:
            raise InvalidRequest(
                f"{request.num_drawn * num_tokens} tokens with {request.sampling.logprobs} alternatives each are "
                f"{count} log-probabilities, and one answer may have {MAX_LOGPROBS_OF_ANSWER} of them: ask for fewer "
                "alternatives, choices or tokens.",
                "best_of" if request.num_drawn > request.num_kept else "logprobs",
            )

    def _check_trace(self, request: GenerationRequest) -> None:
        """Raises InvalidRequest for too many tokens to be told with their steps, or as a choice's prompt."""
        if not request.is_traced:
            return
        context = self._engine.info.max_model_len  # the engine's error for longer requests is clearer
        sizes = [len(prompt.ids) + self._length(request, prompt) for prompt in request.prompts]
        count = request.num_drawn * sum(min(size, context) for size in sizes)
        if count > MAX_TRACED:
            raise InvalidRequest(
                f"{count} tokens would be told, prompts included, and an answer with its steps may have {MAX_TRACED}: "
                "ask for fewer choices or tokens, or leave `diffusion.trace` out.",
                "diffusion.trace",
            )

    def _nothing(self, request: GenerationRequest) -> Sequence[Stream]:
        """An empty stream for each choice. Checks the prompts, since the engine does not see them.

        Raises InvalidRequest, or ContextLengthExceeded.
        """
        for prompt in request.prompts:
            if not prompt.ids:
                raise InvalidRequest("The prompt is empty; it needs at least one token.", "prompt")
            self._prompts.check_ids(prompt.ids)
        return [EmptyStream() for _ in range(len(request.prompts) * request.num_drawn)]

    def _passages(self, request: GenerationRequest, prompt: Prompt) -> list[Passage]:
        """One for each fill, or one for the whole answer after the prompt."""
        stop_ids = request.sampling.stop_ids
        if not request.sampling.ignore_eos:
            stop_ids |= self._engine.info.spec.eos_ids
        lengths: list[int | None] = [fill.length for fill in prompt.fills]
        return [
            Passage(
                Detokenizer(self._tokenizer, skip_special=request.skips_special),
                StopStrings(request.stops, is_kept=request.keeps_stop),
                length=length,
                stop_ids=stop_ids if prompt.fills or request.is_scoring_call else frozenset(),
                shows_stop=request.is_scoring_call,
                min_tokens=request.sampling.min_tokens if request.stops else 0,
                is_tracked=request.is_tracked,
            )
            for length in lengths or [None]
        ]
