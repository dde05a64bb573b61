"""A request's state in the engine: its canvas, pages and counts. `engine.scheduling` is the only writer."""

from dataclasses import dataclass, field

import numpy as np

from engine.core.arrays import Ids, Mask
from engine.core.config import ModelSpec
from engine.core.constraint import Constraint
from engine.core.output import Relayed, TokenLogprobs, Usage
from engine.core.params import DiffusionParams, SamplingParams, block_length, resolved
from engine.core.requests.block import Block
from engine.core.requests.canvas import count_blocks, first_block_start, positions_to_fill
from engine.core.requests.history import History
from engine.core.requests.submission import Submission, effective_constraint


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens of a prompt that a source has, too, one for one."""

    source: int
    """The number of the source (`scheduling.relay.sources`)."""
    source_start: int
    """The source's position of its first token."""
    start: int
    """The prompt's position of its first token."""
    length: int


@dataclass(slots=True, eq=False)
class Request:
    """A canvas while it is decoded from masks to an answer.

    `ids[p]` is the token at position p, or what it shows to the model where `masked[p]`: the mask token, or a random
    one where there is none. Masked-ness is state, since a prompt may contain the literal mask token.
    """

    id: str
    spec: ModelSpec
    sampling: SamplingParams
    diffusion: DiffusionParams
    answer_positions: Ids
    """Positions to fill, ascending: all behind the prompt, or those of its holes."""
    stop_ids: frozenset[int]
    """Tokens that end this answer; empty if it fills holes."""
    ids: Ids
    masked: Mask
    block: Block
    history: History
    constraint: Constraint | None = None
    """Of the sampling parameters, without the tokens that these rule out."""
    state: int = 0
    """The constraint's state before the open block."""
    pages: tuple[int, ...] = ()
    """The KV pages it holds, in the order of positions; empty while it waits. More come as blocks open."""
    slots: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """The KV slots of its pages, in order. Those of positions are found by `kept_before`."""
    kept_counts: Ids | None = None
    """[end + 1] how many positions before each are not evicted; None if all are there."""
    num_evicted: int = 0
    """Positions whose keys and values were evicted."""
    most_resident: int = 0
    """With a `kv_budget`: positions that had keys and values at once, at most."""
    committed: int = 0
    """Positions before this one have final keys and values, which other requests may share. 0 where none ever are."""
    arrival: int = 0
    """How many requests came before it."""
    cache_salt: str = ""
    page_keys: list[bytes] = field(default_factory=list)
    """Keys of its first pages (`scheduling.prefix`), as far as they were asked for."""
    num_shared_pages: int = 0
    """Its first pages whose keys are known to the pool: adopted, published, or equal to a page that was."""
    relay_as: str = ""
    relay_from: tuple[str, ...] = ()
    relay_end: int | None = None
    runs: tuple[Run, ...] = ()
    """What it takes over from the requests that it names, ascending: from the first run on, nothing is exact."""
    spared: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """Positions of these runs that it does not compute in its first step, ascending, once it has taken them over."""
    relayed: Relayed | None = None
    """What it has taken over, once it has; None before, and where it names nobody."""
    is_prefilled: bool = False
    """Whether all before its open block has been computed since it got its first pages."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values another request had computed."""
    is_preempted: bool = False
    """Whether it ever had to give its pages back."""
    admitted_at: float | None = None
    """When it left the queue, in seconds of `time.monotonic()`."""
    forwards: int = 0
    """Steps that it took part in."""
    decoding_steps: int = 0
    """Those that decoded tokens: all others computed part of a prompt."""
    rows_computed: int = 0
    completion_tokens: int = 0
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """Of each decoded position, if they were asked for."""
    is_traced: bool = False
    steps: Ids | None = None
    """[end] the step that decoded each position, if they were asked for."""

    @classmethod
    def new(cls, submission: Submission, spec: ModelSpec) -> "Request":
        """A fresh canvas, the first block open: the prompt, and masks where the answer will be."""
        sampling, answer = submission.sampling, positions_to_fill(submission, spec)
        masked = np.zeros(len(submission.prompt_ids) + len(answer), dtype=np.bool_)
        masked[answer] = True
        ids = np.full(len(masked), spec.mask_id or 0, dtype=np.int64)  # without a mask, until their block opens
        ids[~masked] = submission.prompt_ids
        diffusion = resolved(submission.diffusion, spec)
        length = block_length(diffusion, spec)
        start = first_block_start(int(answer[0]), length, spec)
        end = min(start + length, int(answer[-1]) + 1)
        ends_early = not submission.holes
        model_stops = frozenset() if sampling.ignore_eos else spec.eos_ids
        return cls(
            id=submission.request_id,
            spec=spec,
            sampling=sampling,
            diffusion=diffusion,
            answer_positions=answer,
            stop_ids=sampling.stop_ids | model_stops if ends_early else frozenset(),
            ids=ids,
            masked=masked,
            block=Block.opened(masked, start, end, index=0, fresh=0, lookahead=diffusion.lookahead),
            history=History.empty(len(masked)),
            constraint=effective_constraint(sampling, spec),
            cache_salt=submission.cache_salt,
            relay_as=submission.relay_as,
            relay_from=submission.relay_from,
            relay_end=submission.relay_end,
            is_traced=submission.is_traced,
            steps=np.zeros(len(masked), np.int64) if submission.tells_steps else None,
        )

    def kept_before(self, positions: Ids) -> Ids:
        """How many positions before each have not been evicted: where its own keys and values are in `slots`."""
        return positions if self.kept_counts is None else self.kept_counts[positions]

    def num_kept_before(self, position: int) -> int:
        """`kept_before` of one position."""
        return position if self.kept_counts is None else int(self.kept_counts[position])

    @property
    def kept(self) -> Mask | None:
        """bool [end] which positions are not evicted; None if all are there."""
        return None if self.kept_counts is None else np.diff(self.kept_counts) > 0

    @property
    def slots_needed(self) -> int:
        """How many slots its visible positions take while the block is open."""
        if self.diffusion.kv_budget is None:
            return self.block.visible_end
        return min(self.num_kept_before(self.block.visible_end), self.slots_bound)

    @property
    def most_slots(self) -> int:
        """How many slots it may still come to hold."""
        return min(self.num_kept_before(self.canvas_end), self.slots_bound)

    @property
    def slots_bound(self) -> int:
        """Slots that are enough whatever the length of its canvas: a prompt is evicted while it is read, if at all."""
        budget = self.diffusion.kv_budget
        if budget is None or not self.spec.is_block_causal:
            return self.canvas_end
        return budget + self.diffusion.kv_buffer + self.block_length

    @property
    def canvas_end(self) -> int:
        """One past the canvas's last position."""
        return len(self.ids)

    @property
    def answer_start(self) -> int:
        """The first position to fill."""
        return int(self.answer_positions[0])

    @property
    def answer_end(self) -> int:
        """One past the last position to fill; behind a hole, prompt tokens may follow."""
        return int(self.answer_positions[-1]) + 1

    @property
    def num_prompt_tokens(self) -> int:
        """Number of prompt tokens, wherever they are on the canvas."""
        return self.canvas_end - len(self.answer_positions)

    @property
    def prompt_positions(self) -> Ids:
        """Positions of the prompt tokens, ascending."""
        return np.delete(np.arange(self.canvas_end), self.answer_positions)

    @property
    def num_blocks(self) -> int:
        """Number of blocks with positions to fill, if all are `block_length` long."""
        return count_blocks(self.answer_positions, self.first_block_start, self.block_length)

    @property
    def block_length(self) -> int:
        """Positions of a block, in tokens; some policies cut the canvas otherwise."""
        return block_length(self.diffusion, self.spec)

    @property
    def commit_length(self) -> int:
        """Positions whose keys and values are final together: a block's, or one alone where commits are causal."""
        return self.block_length if self.spec.has_grid else 1

    @property
    def lead(self) -> int:
        """How many rows before a block its first token is said, before any other; 0 if it is denoised with them."""
        return self.spec.shift or int(self.spec.says_next and self.diffusion.causal_first)

    @property
    def verifies(self) -> bool:
        """Whether the open block is a whole draft, of which causal rows say next how much stands."""
        block = self.block
        return block.is_drafted and not self.masked[block.start : block.rows_end].any()

    @property
    def first_block_start(self) -> int:
        """Where the first block with positions to fill starts, on the canvas."""
        return first_block_start(self.answer_start, self.block_length, self.spec)

    @property
    def exact_end(self) -> int:
        """Positions before this one have keys and values of their own tokens alone, or will have."""
        return self.runs[0].start if self.runs else self.canvas_end

    @property
    def output_end(self) -> int:
        """One past the last position that may be part of the answer: `max_tokens` need not fill the canvas."""
        return int(self.answer_positions[self.sampling.max_tokens - 1]) + 1

    @property
    def decoded_tokens(self) -> Ids:
        """Tokens decoded so far, in the order of positions."""
        return self.ids[self.answer_positions[~self.masked[self.answer_positions]]]

    @property
    def targets(self) -> Ids:
        """Masked positions of the open block, or of its first sub-block that has any, ascending.

        Most policies score these. Where `replaces_tokens`, all positions of the block behind the prompt; of a draft
        that is to be verified, all its positions.
        """
        start, end = self.block.start, self.block.rows_end
        if self.verifies:
            return np.arange(start, self.block.end)
        if self.block.replaces_tokens:
            return np.arange(max(start, self.answer_start), end)
        masked = start + np.flatnonzero(self.masked[start:end])
        if length := self.diffusion.sub_block_length:
            masked = masked[: np.searchsorted(masked, start + ((masked[0] - start) // length + 1) * length)]
        return masked

    @property
    def usage(self) -> Usage:
        """Tokens, forwards and rows so far."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.completion_tokens,
            forwards=self.forwards,
            rows_computed=self.rows_computed,
            visible_tokens=self.block.visible_end if self.forwards else 0,
            cached_tokens=self.cached_tokens,
            kv_evicted=self.num_evicted,
            kv_resident_peak=self.most_resident,
            relayed=self.relayed,
        )
