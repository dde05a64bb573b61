"""The constraints of one model: compiled in a worker process, each once, and kept while there is room.

Several requests for one spec wait for one compilation. A refusal is kept too. A job has a bound on its processor time,
whatever the spec is, and the event loop is never held up.
"""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from engine import Constraint, ModelSpec
from server.jobs.workers import Failed, TookTooLong, Workers
from server.structured.compiler import BYTES_AS, unpacked
from server.structured.refusals import Malformed, NoValue, Refused, TooLarge, Unsupported
from server.structured.schema.keywords import ENFORCED, REFUSED
from server.structured.spec import Spec
from server.text.tokenizer import Tokenizer

SECONDS = 5.5
"""Processor time of a compilation, after which its process is ended: more than its own budget, which is told better."""
SETUP_SECONDS = 60.0
"""The same for the answer that the vocabulary is ready."""
REFUSAL_BYTES = 1024
"""What a kept refusal is said to take, beside its spec."""

LANE = "constraints"
KEYWORDS = ENFORCED | REFUSED

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A constraint, and what it took to make it."""

    constraint: Constraint
    seconds: float
    """From the request to the result, other jobs of the worker included."""
    is_cached: bool = False
    """Whether it was made for an earlier request."""


class CompileObserver(Protocol):
    """Is told of each compilation, each that was not needed, and each refusal."""

    def on_compiled(self, seconds: float) -> None: ...

    def on_cached(self) -> None: ...

    def on_refused(self, reason: str, keyword: str) -> None:
        """`keyword`: of JSON Schema, where one is the cause, or empty."""


class Constraints:
    """Compiles specs for one tokenizer and model, and keeps the constraints that were used last."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        spec: ModelSpec,
        observer: CompileObserver,
        *,
        is_enabled: bool,
        cache_bytes: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._observer = observer
        self._is_enabled = is_enabled
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[Spec, Compiled | Refused] = OrderedDict()
        """The last used one is the last."""
        self._kept_bytes = 0
        self._running: dict[Spec, asyncio.Task[Compiled]] = {}
        self._workers = Workers(
            "server.structured.compiler:Compiler",
            self._setup,
            lanes=(LANE,),
            raises=(Malformed, Unsupported, NoValue, TooLarge),
        )

    async def start(self) -> None:
        """Starts the worker process, and returns when it has read the vocabulary."""
        if self._is_enabled and self._tokenizer.is_byte_level:
            await self._workers.ask(LANE, "ready", seconds=SETUP_SECONDS)

    def close(self) -> None:
        """Ends the worker process."""
        self._workers.close()

    async def compiled(self, spec: Spec) -> Compiled:
        """The constraint of the spec. Raises Refused, or EngineUnavailable if too many are being compiled."""
        try:
            self._check_enabled()
            made = self._found(spec) or await self._compiled_once(spec)
        except Refused as error:
            self._observer.on_refused(error.reason, _keyword(error))
            raise
        if made.is_cached:
            self._observer.on_cached()
        return made

    def _found(self, spec: Spec) -> Compiled | None:
        """What is kept. Raises Refused if that is a refusal."""
        kept = self._kept.get(spec)
        if kept is None:
            return None
        self._kept.move_to_end(spec)
        if isinstance(kept, Refused):
            raise type(kept)(kept.cause, kept.place)
        return replace(kept, is_cached=True)

    async def _compiled_once(self, spec: Spec) -> Compiled:
        """Waits for the compilation that runs for another request, if one does."""
        if (running := self._running.get(spec)) is not None:
            return replace(await asyncio.shield(running), is_cached=True)
        task = self._running[spec] = asyncio.create_task(self._compile(spec))
        task.add_done_callback(lambda done: self._forget(spec, done))
        return await asyncio.shield(task)  # others may wait for it when this request's client has hung up

    def _forget(self, spec: Spec, done: asyncio.Task[Compiled]) -> None:
        del self._running[spec]
        if not done.cancelled():
            done.exception()  # looked at here, in case that nobody waits any more

    async def _compile(self, spec: Spec) -> Compiled:
        started = time.monotonic()
        try:
            packed = await self._ask(spec)
        except Refused as error:
            self._keep(spec, error)
            raise
        except Failed as error:  # not kept: the machine may have been short of memory
            logger.warning("a constraint could not be compiled: the worker process %s", error)
            raise TooLarge("it runs out of memory while it is compiled") from None
        constraint = await asyncio.to_thread(_made, packed)
        made = Compiled(constraint, time.monotonic() - started)
        self._observer.on_compiled(made.seconds)
        self._keep(spec, made)
        return made

    async def _ask(self, spec: Spec) -> str:
        """The packed constraint. Raises Refused, Failed or EngineUnavailable."""
        given = {"kind": spec.kind, "source": spec.source, "whitespace": spec.whitespace}
        try:
            return str(await self._workers.ask(LANE, "compile", seconds=SECONDS, **given))
        except TookTooLong:
            raise TooLarge(f"it takes more than {SECONDS:g} s to compile") from None

    def _keep(self, spec: Spec, made: Compiled | Refused) -> None:
        self._kept[spec] = made
        self._kept_bytes += _size(spec, made)
        while self._kept_bytes > self._cache_bytes:
            self._kept_bytes -= _size(*self._kept.popitem(last=False))

    def _check_enabled(self) -> None:
        if not self._is_enabled:
            raise Unsupported("this server does not constrain answers: its setting `structured` is false")
        if not self._tokenizer.is_byte_level:
            raise Unsupported("this needs a byte-level tokenizer, and the model's is none")

    def _setup(self) -> Mapping[str, Any]:
        """Arguments of `server.structured.compiler.Compiler`. The mask stands in no answer."""
        spellings = self._tokenizer.spellings(self._spec.vocab_size)
        spellings[self._spec.mask_id] = b""
        return {
            "spellings": [spelling.decode(BYTES_AS) for spelling in spellings],
            "stop_ids": sorted(id_ for id_ in self._spec.eos_ids if id_ < self._spec.vocab_size),
        }


def _made(packed: str) -> Constraint:
    constraint = Constraint(**unpacked(packed))
    _ = constraint.groups  # made here, in a thread, and not in the engine's first step with it
    return constraint


def _size(spec: Spec, made: Compiled | Refused) -> int:
    """Bytes that are kept for this spec."""
    if isinstance(made, Refused):
        return len(spec.source) + REFUSAL_BYTES
    arrays = [value for value in vars(made.constraint).values() if hasattr(value, "nbytes")]
    return len(spec.source) + sum(int(array.nbytes) for array in [*arrays, *made.constraint.groups])


def _keyword(error: Refused) -> str:
    """The keyword of JSON Schema that the refusal names, or an empty text."""
    return next((name for name in re.findall(r"`([^`]+)`", error.cause) if name in KEYWORDS), "")
