"""Runs the engine on its own thread and connects it to asyncio.

Submissions and aborts are applied between steps; completed blocks come out as async iterators. The queue is bounded: a
full queue raises an error instead of waiting. Knows no HTTP.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from engine.core.errors import DeviceLost, EngineUnavailable, InvalidRequest, QueueFull, RequestFailed
from engine.core.output import FinishReason, Output, TracedStep, Usage
from engine.core.requests.request import Request
from engine.core.requests.submission import Submission
from engine.engine import Engine, EngineInfo, EngineStats

logger = logging.getLogger(__name__)

IDLE_BEAT_SECONDS = 1.0
"""Seconds between two heartbeats of an idle engine."""

JOIN_SECONDS = 5.0
"""Seconds that `stop` waits for a step that is under way."""


class OutputStream:
    """One request's completed blocks, in the order of their positions; the last has a finish reason, and none follows.

    If it is watched, its steps too, each before the block that it completes.

    No order is promised between the streams of different requests.

    Iterate it on the event loop that submitted it. Raises RequestFailed if the engine failed while serving it.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.event_loop = asyncio.get_running_loop()
        self._abort = abort
        self._outputs: asyncio.Queue[Output | TracedStep] = asyncio.Queue()
        self._ended = False

    def __aiter__(self) -> "OutputStream":
        return self

    async def __anext__(self) -> Output | TracedStep:
        if self._ended:
            raise StopAsyncIteration
        output = await self._outputs.get()
        if isinstance(output, TracedStep):
            return output
        self._ended = output.finish_reason is not None
        if output.finish_reason is FinishReason.ERROR:
            raise RequestFailed(f"request {self.request_id} failed in the engine")
        return output

    def put(self, output: Output | TracedStep) -> None:
        """Adds an output. The engine loop calls it, on the event loop's thread."""
        self._outputs.put_nowait(output)

    def abort(self) -> None:
        """Withdraws the request; the engine frees its pages before its next step. Harmless after the end."""
        if not self._ended:
            self._abort(self.request_id)


class EngineLoop:
    """Runs an engine from `start` to `stop`. Public methods are for other threads; only its thread steps."""

    def __init__(self, engine: Engine, *, stuck_after: float = 60.0) -> None:
        """`stuck_after`: seconds without a heartbeat after which the engine counts as unhealthy."""
        self._engine = engine
        self._stuck_after = stuck_after
        self._changed = threading.Condition()
        """Guards the attributes below that two threads access."""
        self._incoming: deque[Request] = deque()
        self._aborted: deque[str] = deque()
        self._streams: dict[str, OutputStream] = {}
        self._rejected = 0
        self._undelivered: list[Output | TracedStep] = []
        """Of the last step: on a GPU they go out under the next forward. Only the engine's thread knows them."""
        self._accepting = False
        self._halted = False
        self._died = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats(incoming=len(self._incoming), rejected=self._rejected)

    @property
    def num_waiting(self) -> int:
        """Requests that are submitted and do not run yet; cheaper than all of `stats`."""
        return len(self._engine.scheduler.waiting) + len(self._incoming)

    @property
    def healthy(self) -> bool:
        """Whether the engine's thread is alive with a recent heartbeat. A thread that is stuck in a step has none."""
        return self._thread.is_alive() and not self._died and self.heartbeat_age < self._stuck_after

    @property
    def died(self) -> bool:
        """Whether the engine's thread has ended without `stop`; it is not restarted."""
        return self._died

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the last heartbeat of the engine's thread."""
        return time.monotonic() - self._beat

    @property
    def accepting(self) -> bool:
        """Whether `submit` takes requests."""
        return self._accepting and self._thread.is_alive()

    def start(self) -> None:
        self._beat = time.monotonic()
        self._accepting = True
        self._thread.start()

    def submit(self, submissions: Sequence[Submission]) -> list[OutputStream]:
        """`prepare`, then `enqueue`. Raises what these raise."""
        return self.enqueue(self.prepare(submissions))

    def prepare(self, submissions: Sequence[Submission]) -> list[Request]:
        """Checks submissions and makes their requests. Any thread may call it, since many submissions take a while.

        Raises InvalidRequest for a submission that can never be served.
        """
        return [self._engine.new_request(submission) for submission in submissions]

    def enqueue(self, requests: Sequence[Request]) -> list[OutputStream]:
        """Hands all prepared requests to the engine, or none. Call it on an event loop.

        Raises InvalidRequest on a duplicate id, QueueFull if the queue has no place for all of them, EngineUnavailable
        before `start` and from `stop` on.
        """
        streams = [OutputStream(request.id, self._abort) for request in requests]
        with self._changed:
            if not self.accepting:
                raise EngineUnavailable("The engine is not accepting requests.")
            self._check_ids(requests)
            if len(requests) > self._places():
                self._rejected += len(requests)
                raise QueueFull("The request queue is full; try again later.")
            self._incoming.extend(requests)
            self._streams.update((stream.request_id, stream) for stream in streams)
            self._changed.notify()
        return streams

    async def stop(self, drain_seconds: float) -> None:
        """Refuses new requests, gives the others `drain_seconds` to finish, aborts the rest and ends the thread.

        If the step under way does not end within `JOIN_SECONDS`, its thread is left running and all streams fail.
        """
        self._accepting = False
        deadline = time.monotonic() + drain_seconds
        while self._streams and self._thread.is_alive() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        with self._changed:
            self._halted = True
            self._changed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)
        if self._thread.is_alive():
            logger.error("the engine has been in one step for %.0f s; its thread is left behind", self.heartbeat_age)
            self._fail_all()

    def _check_ids(self, requests: Sequence[Request]) -> None:
        """If two requests had one id, one stream would get the outputs of both, and the other would wait for ever."""
        for request_id, count in Counter(request.id for request in requests).items():
            if count > 1 or request_id in self._streams:
                raise InvalidRequest(f"A request with the id {request_id!r} is here already.", "request_id")

    def _places(self) -> int:
        """How many more requests fit: free places in the queue, and free places to run if no request waits."""
        scheduler, info = self._engine.scheduler, self._engine.info
        waiting = len(scheduler.waiting)
        free = 0 if waiting else info.max_running_requests - len(scheduler.running)
        return info.max_queued_requests + free - waiting - len(self._incoming)

    def _abort(self, request_id: str) -> None:
        with self._changed:
            self._aborted.append(request_id)
            self._changed.notify()

    def _run(self) -> None:
        try:
            self._engine.enter_thread()
            self._serve()
        except BaseException:
            self._died = True
            logger.critical("the engine's thread has died", exc_info=True)
        finally:
            self._deliver_last()
            self._fail_all()

    def _fail_all(self) -> None:
        """Fails all open streams, so that none waits for ever, and refuses further requests."""
        with self._changed:
            self._accepting = False
            request_ids = list(self._streams)
        self._deliver([_failed(request_id) for request_id in request_ids])

    def _serve(self) -> None:
        while not self._halted:
            self._take_in()
            try:
                outputs = self._engine.step(self._use_the_wait)
            except DeviceLost:
                raise
            except Exception:
                # A defect of the engine: `step` confines the faults of a single request to that request.
                logger.exception("a step failed; its requests fail with it")
                self._engine.recover()
                running = [request.id for request in self._engine.scheduler.running]
                outputs = self._ended(running or self._engine.request_ids, FinishReason.ERROR)
            self._deliver_last()
            self._undelivered = [*self._engine.take_traced(), *outputs]
            if not (self._engine.is_async and self._engine.request_ids):
                self._deliver_last()
        self._deliver_last()
        self._take_in()
        self._deliver(self._ended(self._engine.request_ids, FinishReason.ABORT))

    def _take_in(self) -> None:
        """Waits until there is work, then applies the submissions and aborts since the last step."""
        with self._changed:
            self._beat = time.monotonic()
            while not (self._incoming or self._aborted or self._halted or self._engine.has_work):
                self._changed.wait(IDLE_BEAT_SECONDS)
                self._engine.check()
                self._beat = time.monotonic()
            self._admit()
            aborted = list(self._aborted)
            self._aborted.clear()
        if aborted:
            self._deliver_last()  # their last blocks come before their ends
            self._deliver(self._ended(aborted, FinishReason.ABORT))

    def _use_the_wait(self) -> None:
        """What need not wait for the device: called while it computes."""
        if self._engine.is_async:
            self._deliver_last()
            with self._changed:
                self._admit()

    def _admit(self) -> None:
        """Hands submissions to the engine. Its caller holds the lock."""
        while self._incoming:
            self._engine.submit(self._incoming.popleft())

    def _deliver_last(self) -> None:
        """Delivers the last step's outputs, unless that is done."""
        outputs, self._undelivered = self._undelivered, []
        self._deliver(outputs)

    def _ended(self, request_ids: Sequence[str], reason: FinishReason) -> list[Output]:
        outputs = (self._engine.abort(request_id, reason) for request_id in request_ids)
        return [output for output in outputs if output]

    def _deliver(self, outputs: Sequence[Output | TracedStep]) -> None:
        by_event_loop = defaultdict(list)
        with self._changed:
            for output in outputs:
                stream = self._streams.get(output.request_id)
                if stream is None:  # `stop` has failed it and left this thread behind
                    continue
                by_event_loop[stream.event_loop].append((stream, output))
                if isinstance(output, Output) and output.finish_reason:
                    del self._streams[output.request_id]
        for event_loop, deliveries in by_event_loop.items():
            with suppress(RuntimeError):  # the event loop may be closed by now: it has no readers
                event_loop.call_soon_threadsafe(_put_all, deliveries)


def _failed(request_id: str) -> Output:
    usage = Usage(prompt_tokens=0, completion_tokens=0, forwards=0, rows_computed=0)
    return Output(request_id=request_id, token_ids=(), finish_reason=FinishReason.ERROR, usage=usage)


def _put_all(deliveries: Sequence[tuple[OutputStream, Output | TracedStep]]) -> None:
    for stream, output in deliveries:
        stream.put(output)
