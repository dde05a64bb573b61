"""One replica: a queue, requests that run, and steps, by the rules of `engine.scheduling` in a simple form.

Admission is in order of arrival, a step takes the smallest plans first and in every eighth those passed over longest,
and rows that are left go to parts of prompts. Simpler than there: a request holds the pages of its whole canvas from
the start, so nobody waits for pages or gives way, and several run less than would; equal beginnings are those of one
conversation alone.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from engine.bench.simulate.arrivals import Arrival
from engine.bench.simulate.machine import Timer
from engine.bench.simulate.work import Ask, Decoding
from engine.scheduling.scheduler import OLDEST_FIRST_EVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a replica may do at once, as in `EngineConfig`."""

    max_running: int = 64
    max_queued: int = 256
    max_batch_rows: int = 4096
    max_model_len: int | None = None
    """Prompt and answer of a request together; a longer one is refused."""
    kv_tokens: int
    page_size: int = 32


@dataclass(slots=True, eq=False)
class Job:
    """A request at a replica."""

    arrival: Arrival
    canvas: int
    """Tokens in whole pages, for which it holds memory while it runs."""
    asks: Iterator[Ask] | None = None
    ask: Ask | None = None
    """What it wants of the next forward."""
    before: int = 0
    """Rows that it has still to compute before the others of `ask`."""
    cached: int = 0
    """Tokens of its prompt that it found."""
    steps: int = 0
    admitted: float | None = None
    first_block: float | None = None
    ended: float | None = None

    def advance(self) -> bool:
        """To the next ask; returns whether there is one."""
        assert self.asks is not None, "a job that has not been admitted; this is a bug"
        self.ask = next(self.asks, None)
        self.before = self.ask.before if self.ask else 0
        return self.ask is not None


class Replica:
    """Its owner calls `begin` when it stands still and has work, and `end` when that step's seconds are over."""

    def __init__(self, decoding: Decoding, limits: Limits, timer: Timer, prefix_hits: float = 0.0) -> None:
        self.decoding, self.limits, self.timer = decoding, limits, timer
        self.prefix_hits = prefix_hits
        """The share of each prompt that is always found."""
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.is_stepping = self.is_leaving = False
        self.steps = self.last_rows = 0
        self._held = 0
        self._promised = 0
        self._kept: OrderedDict[int, int] = OrderedDict()
        self._kept_tokens = 0
        self._chosen: list[tuple[Job, int | None]] = []

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self.waiting) + len(self.running)

    def canvas(self, arrival: Arrival) -> int:
        """Tokens of memory that a request takes."""
        page = self.limits.page_size
        return -(-self.decoding.canvas(arrival.prompt, arrival.output) // page) * page

    def can_ever_run(self, arrival: Arrival) -> bool:
        """Whether a replica without any other request could answer it."""
        most = self.limits.max_model_len
        fits = self.canvas(arrival) <= self.limits.kv_tokens
        return fits and (most is None or arrival.prompt + arrival.output <= most)

    def has_room(self, arrival: Arrival) -> bool:
        """Whether its next step would admit one request more."""
        fits = self._held + self._promised + self.canvas(arrival) <= self.limits.kv_tokens
        return fits and self.load < self.limits.max_running

    def add(self, arrival: Arrival) -> bool:
        """Queues a request; False if the queue is full."""
        if len(self.waiting) >= self.limits.max_queued:
            return False
        job = Job(arrival, self.canvas(arrival))
        self.waiting.append(job)
        self._promised += job.canvas
        return True

    def begin(self, now: float) -> float:
        """Begins a step and returns its seconds. There must be work."""
        self._admit(now)
        self._chosen = self._plan()
        rows = scored = read = pairs = 0
        for job, part in self._chosen:
            ask = job.ask
            assert ask is not None, "a job without work among those that run; this is a bug"
            before = job.before if part is None else part
            if before:  # they see what becomes final with them: what stands there, and half of their own
                committed = ask.end - ask.rows - job.before
                pairs += before * (committed + (before + 1) // 2)
            rows += before
            if part is None:
                rows, scored, read = rows + ask.rows, scored + ask.scored, read + ask.end
                pairs += ask.rows * ask.end
            else:
                read += committed + before
        self.steps, self.last_rows, self.is_stepping = self.steps + 1, rows, True
        return self.timer.seconds(rows, scored, read, pairs)

    def end(self, now: float) -> list[Job]:
        """Ends the step. Returns the requests that it answered."""
        self.is_stepping = False
        answered = []
        for job, part in self._chosen:
            job.steps += 1
            if part is not None:
                job.before -= part
                continue
            if job.first_block is None and job.ask is not None and job.ask.ends_block:
                job.first_block = now
            if not job.advance():
                job.ended = now
                answered.append(job)
        if answered:
            self.running = [job for job in self.running if job.ended is None]
        for job in answered:
            self._held -= job.canvas
            self._keep(job)
        return answered

    def _admit(self, now: float) -> None:
        while self.waiting and len(self.running) < self.limits.max_running:
            job = self.waiting[0]
            if self._held + job.canvas > self.limits.kv_tokens:
                return
            self.waiting.popleft()
            self._promised -= job.canvas
            self._held += job.canvas
            job.cached = self._found(job.arrival)
            self._make_room()
            job.asks = self.decoding.asks(job.arrival.prompt, job.arrival.output, job.cached)
            job.advance()
            job.admitted = now
            self.running.append(job)

    def _plan(self) -> list[tuple[Job, int | None]]:
        """The jobs of this step, each with the rows before its ask's to which the step keeps; None is all it wants."""
        budget = self.limits.max_batch_rows
        wanted = [(job, job.before + job.ask.rows) for job in self.running if job.ask]
        if sum(size for _, size in wanted) <= budget:
            return [(job, None) for job, _ in wanted]
        if (self.steps + 1) % OLDEST_FIRST_EVERY:
            wanted.sort(key=lambda each: each[1])
        chosen: list[tuple[Job, int | None]] = []
        rows, block = 0, self.decoding.block
        for job, size in wanted:
            part = None if rows + size <= budget else min((budget - rows) // block * block, job.before)
            if part != 0 or not chosen:
                chosen.append((job, part or None))
                rows += part or size
        served = {id(job) for job, _ in chosen}
        self.running.sort(key=lambda job: id(job) in served)
        return chosen

    def _found(self, arrival: Arrival) -> int:
        """Tokens of a prompt, in whole pages before its first block, whose keys and values are there."""
        if not self.decoding.is_block_causal:
            return 0
        kept = self._kept.pop(arrival.conversation, 0)
        self._kept_tokens -= kept
        page, most = self.limits.page_size, arrival.prompt // self.decoding.block * self.decoding.block
        return min(max(kept, int(self.prefix_hits * arrival.prompt)), most) // page * page

    def _keep(self, job: Job) -> None:
        """Keeps the pages of an answered request for its conversation's next turn, while nobody needs the room."""
        if not self.decoding.is_block_causal:
            return
        arrival, page = job.arrival, self.limits.page_size
        kept = (job.canvas - self.decoding.block) // page * page  # the last block is never committed
        self._kept_tokens += kept - self._kept.pop(arrival.conversation, 0)
        self._kept[arrival.conversation] = kept
        self._make_room()

    def _make_room(self) -> None:
        while self._kept and self._held + self._kept_tokens > self.limits.kv_tokens:
            _, tokens = self._kept.popitem(last=False)
            self._kept_tokens -= tokens
