"""Turns an order into engine requests, one for each choice, and submits them to the engine's queue."""

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
from server.replies.passage import Passage, Token
from server.replies.prompt_logprobs import PromptScorer
from server.replies.stop_strings import StopStrings
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer
from server.threads import in_thread_if_long

MAX_LOGPROBS_OF_ANSWER = 262_144
"""Bound on an answer's log-probabilities: tokens of all choices and scored prompts, times (alternatives + 1)."""
IDS_PER_TOKEN = 64
"""Ids that can be checked in the time that reading or writing one token takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Everything that one HTTP request asks of the engine, and how its text is made."""

    answer_id: str
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    """Parameters of every choice, except the seed. With `max_tokens` of 0 nothing is generated."""
    diffusion: DiffusionParams
    seed: int | None
    takes_room: bool = False
    """`max_tokens` is a default, not the request's: it is reduced to what the context holds after the prompt."""
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
    is_tracked: bool = False
    """The answer has tokens besides the text."""

    @property
    def is_scoring_call(self) -> bool:
        """Whether the order scores prompts and generates one token, which is shown even if it is a stop token.

        Clients that score with `max_tokens` of 1 (lm-eval) drop the last token, whatever it is.
        """
        return self.num_scored is not None and self.sampling.max_tokens == 1


class Submitter:
    """Hands orders to the engine."""

    def __init__(self, engine: EngineLoop, tokenizer: Tokenizer, prompts: PromptReader, observers: Observers) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._observers = observers
        self._scorer = PromptScorer(engine)

    async def start(self, order: Order) -> Completion:
        """Submits the order and scores its prompts. Returns the answer, which the engine is still decoding.

        Raises InvalidRequest for too many choices or log-probabilities, Busy if the queue is full, and what
        `EngineLoop.submit` raises otherwise.
        """
        self._check_count(order)
        self._check_logprobs(order)
        streams = await self._submit(order) if order.sampling.max_tokens else self._nothing(order)
        scored: list[list[Token]] = [[] for _ in order.prompts]
        spent = NOTHING
        try:
            if order.num_scored is not None:
                ids = [prompt.ids for prompt in order.prompts]
                scores, spent = await self._scorer.score(order.answer_id, ids, order.num_scored)
                scored = [
                    list(map(Token, prompt.ids, prompt.starts, found))
                    for prompt, found in zip(order.prompts, scores, strict=True)
                ]
        except BaseException:
            for stream in streams:
                stream.abort()
            raise
        choices = []
        for index, stream in enumerate(streams):
            number = index // order.num_drawn
            prompt = order.prompts[number]
            choices.append(
                Choice(
                    index,
                    stream,
                    self._passages(order, prompt),
                    literals=prompt.literals if order.echoes else (),
                    prompt_tokens=scored[number],
                )
            )
        num_prompt_tokens = [len(prompt.ids) for prompt in order.prompts]
        counts = self._observers.tokens
        return Completion(choices, num_prompt_tokens, num_kept=order.num_kept, scoring=spent, counts=counts)

    async def _submit(self, order: Order) -> Sequence[Stream]:
        sampling, diffusion = order.sampling, order.diffusion
        if order.is_scoring_call:
            sampling = replace(sampling, ignore_eos=True, stop_ids=frozenset())
            diffusion = replace(diffusion, block_length=1, steps=None)
        submissions: list[Submission] = []
        siblings: list[Siblings] = []
        for prompt in order.prompts:
            siblings += [Siblings(n=order.num_kept, num_running=order.num_drawn)] * order.num_drawn
            for seed in seeds(order.seed, order.num_drawn):
                submissions.append(
                    Submission(
                        request_id=f"{order.answer_id}-{len(submissions)}",
                        prompt_ids=prompt.ids,
                        sampling=replace(sampling, seed=seed, max_tokens=self._length(order, prompt)),
                        diffusion=diffusion,
                        holes=prompt.holes,
                    )
                )
        num_ids = sum(len(prompt.ids) for prompt in order.prompts) + len(sampling.allowed_ids or ())
        prepare = partial(self._engine.prepare, submissions)
        requests = await in_thread_if_long(order.num_drawn * num_ids // IDS_PER_TOKEN, prepare)
        try:
            streams = self._engine.enqueue(requests)
        except QueueFull as error:
            raise Busy(str(error), self._observers.pace.seconds_to_halve(self._engine.num_waiting)) from None
        return list(map(self._observers.observe, streams, submissions, siblings))

    def _length(self, order: Order, prompt: Prompt) -> int:
        """Positions of one choice. 1 if the context has no room left: the engine then raises the error."""
        wanted = prompt.num_filled or order.sampling.max_tokens
        if prompt.fills or not order.takes_room:
            return wanted
        return max(min(wanted, self._engine.info.max_model_len - len(prompt.ids)), 1)

    def _check_count(self, order: Order) -> None:
        """Raises InvalidRequest for more choices than the server has places: a retry could never succeed.

        The bound holds for answers without generation as well, because each choice repeats its prompt.
        """
        info, count = self._engine.info, len(order.prompts) * order.num_drawn
        if count > (places := info.max_running_requests + info.max_queued_requests):
            param = "prompt" if order.num_drawn == 1 else "n" if order.num_drawn == order.num_kept else "best_of"
            raise InvalidRequest(
                f"{len(order.prompts)} prompts with {order.num_drawn} choices each are {count} requests, and this "
                f"server takes {places} at most.",
                param,
            )

    def _check_logprobs(self, order: Order) -> None:
        """Raises InvalidRequest for too many log-probabilities: each takes memory, and time to be written."""
        if order.sampling.logprobs is None:
            return
        context = self._engine.info.max_model_len  # the engine's error for longer requests is clearer
        num_tokens = sum(
            min(self._length(order, prompt), context) + (0 if order.num_scored is None else len(prompt.ids))
            for prompt in order.prompts
        )
        count = order.num_drawn * num_tokens * (order.sampling.logprobs + 1)
        if count > MAX_LOGPROBS_OF_ANSWER:
            raise InvalidRequest(
                f"{order.num_drawn * num_tokens} tokens with {order.sampling.logprobs} alternatives each are {count} "
                f"log-probabilities, and one answer may have {MAX_LOGPROBS_OF_ANSWER} of them: ask for fewer "
                "alternatives, choices or tokens.",
                "best_of" if order.num_drawn > order.num_kept else "logprobs",
            )

    def _nothing(self, order: Order) -> Sequence[Stream]:
        """An empty stream for each choice. Checks the prompts, since the engine does not see them.

        Raises InvalidRequest, or ContextLengthExceeded.
        """
        for prompt in order.prompts:
            if not prompt.ids:
                raise InvalidRequest("The prompt is empty; it needs at least one token.", "prompt")
            self._prompts.check_ids(prompt.ids)
        return [EmptyStream() for _ in range(len(order.prompts) * order.num_drawn)]

    def _passages(self, order: Order, prompt: Prompt) -> list[Passage]:
        """One for each fill, or one for the whole answer after the prompt."""
        stop_ids = order.sampling.stop_ids
        if not order.sampling.ignore_eos:
            stop_ids |= self._engine.info.spec.eos_ids
        lengths: list[int | None] = [fill.length for fill in prompt.fills]
        return [
            Passage(
                Detokenizer(self._tokenizer, skip_special=order.skips_special),
                StopStrings(order.stops, is_kept=order.keeps_stop),
                length=length,
                stop_ids=stop_ids if prompt.fills or order.is_scoring_call else frozenset(),
                shows_stop=order.is_scoring_call,
                min_tokens=order.sampling.min_tokens if order.stops else 0,
                is_tracked=order.is_tracked,
            )
            for length in lengths or [None]
        ]
