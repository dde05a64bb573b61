"""The constraints of one model: compiled in a worker process, each once, and kept while there is room.

Several requests for one spec wait for one compilation; one that nobody waits for any more is not begun. A refusal is
kept too. A job has a bound on its processor time, whatever the spec is, and the event loop is never held up.
"""

import asyncio
import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, cast

from engine import Constraint, ModelSpec, QueueFull
from server.jobs.workers import Crashed, TookTooLong, Workers
from server.structured.compiler import BYTES_AS, Compilation, unpacked
from server.structured.refusals import Malformed, NoValue, Refused, TooLarge, TooSlow, Unsupported
from server.structured.schema.keywords import ENFORCED, REFUSED
from server.structured.spec import Spec
from server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SECONDS = 5.5
"""Processor time of a compilation, after which its process is ended: more than its own budget, which is told better."""
MAX_RUNNING = 16
"""Constraints that are being compiled, or wait to be."""
REFUSAL_BYTES = 1024
"""What a kept refusal is said to take, beside its spec."""

LANE = "constraints"
KEYWORDS = ENFORCED | REFUSED


@dataclass(frozen=True, slots=True)
class Compiled:
    """A constraint, and what it took to make it."""

    constraint: Constraint
    seconds: float
    """From the request to the result, other jobs of the worker included."""
    is_cached: bool = False
    """Whether it was made for an earlier request."""


@dataclass(slots=True)
class _Compilation:
    """One that runs, or waits for its turn."""

    task: "asyncio.Task[Compiled | Refused]"
    num_waiting: int = 0
    """Requests that want it. Without any, it is cancelled before its turn comes."""
    has_begun: bool = False


_Key = tuple[str, Spec]
"""A tenant and what it asks for."""


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
        self._kept: OrderedDict[_Key, Compiled | Refused] = OrderedDict()
        """The last used one is the last. A refusal has never been raised: a traceback would keep its request."""
        self._kept_bytes = 0
        self._running: dict[_Key, _Compilation] = {}
        self._turn = asyncio.Lock()
        self._workers = Workers(
            "server.structured.compiler:Compiler",
            self._setup,
            lanes=(LANE,),
            raises=(Malformed, Unsupported, NoValue, TooLarge, TooSlow, MemoryError),
        )

    def close(self) -> None:
        """Ends the worker process."""
        self._workers.close()

    async def compiled(self, spec: Spec, tenant: str = "") -> Compiled:
        """The constraint of the spec. Two tenants share none: how long it takes would tell one of the other's.

        Raises Refused, QueueFull if too many are being compiled, or EngineUnavailable.
        """
        key = tenant, spec
        try:
            self._check_enabled()
            found = self._found(key) or await self._compiled_once(key)
            if isinstance(found, Refused):
                raise type(found)(found.cause, found.place)
        except Refused as error:
            self._observer.on_refused(error.reason, _keyword(error))
            raise
        if found.is_cached:
            self._observer.on_cached()
        return found

    def _found(self, key: _Key) -> Compiled | Refused | None:
        """What is kept."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return replace(kept, is_cached=True) if isinstance(kept, Compiled) else kept

    async def _compiled_once(self, key: _Key) -> Compiled | Refused:
        """Waits for the compilation that runs for another request, if one does."""
        is_first = key not in self._running
        running = self._begun(key) if is_first else self._running[key]
        running.num_waiting += 1
        try:
            made = await asyncio.shield(running.task)  # others may wait when this request's client has hung up
        finally:
            running.num_waiting -= 1
            if not (running.num_waiting or running.has_begun):
                running.task.cancel()
                self._forget(key, running)
        return made if is_first or isinstance(made, Refused) else replace(made, is_cached=True)

    def _begun(self, key: _Key) -> _Compilation:
        """A new one. Raises QueueFull."""
        if len(self._running) >= MAX_RUNNING:
            raise QueueFull("Too many constraints are being compiled; try again later.")
        begun = self._running[key] = _Compilation(asyncio.create_task(self._compile(key)))
        begun.task.add_done_callback(lambda _: self._forget(key, begun))
        return begun

    def _forget(self, key: _Key, running: _Compilation) -> None:
        """Unless another has its place already: one that is cancelled ends only later."""
        if self._running.get(key) is running:
            del self._running[key]

    async def _compile(self, key: _Key) -> Compiled | Refused:
        started = time.monotonic()
        async with self._turn:
            self._running[key].has_begun = True
            answer = await self._ask(key[1])
        if isinstance(answer, Refused):
            if not isinstance(answer, TooSlow):  # another time it may be fast enough
                self._keep(key, answer)
            return answer
        for told in answer["told"]:
            logger.info("%s", told)
        constraint = await asyncio.to_thread(_made, answer["packed"])
        made = Compiled(constraint, time.monotonic() - started)
        self._observer.on_compiled(made.seconds)
        self._keep(key, made)
        return made

    async def _ask(self, spec: Spec) -> Compilation | Refused:
        """What the compiler makes of it. Raises EngineUnavailable, or Failed for a defect of the compiler."""
        given = {"kind": spec.kind, "source": spec.source, "whitespace": spec.whitespace}
        try:
            return cast(Compilation, await self._workers.ask(LANE, "compile", seconds=SECONDS, **given))
        except TookTooLong:
            return TooSlow(f"it takes more than {SECONDS:g} s to compile")
        except (Crashed, MemoryError):
            return TooLarge("it runs out of memory while it is compiled")
        except Refused as error:
            return type(error)(error.cause, error.place)

    def _keep(self, key: _Key, made: Compiled | Refused) -> None:
        self._kept[key] = made
        self._kept_bytes += _size(key, made)
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
        for mask_id in self._spec.never_drawn:
            spellings[mask_id] = b""
        return {
            "spellings": [spelling.decode(BYTES_AS) for spelling in spellings],
            "stop_ids": sorted(id_ for id_ in self._spec.eos_ids if id_ < self._spec.vocab_size),
        }


def _made(packed: str) -> Constraint:
    constraint = Constraint(**unpacked(packed))
    _ = constraint.groups, constraint.edge_start  # made here, in a thread, not in the engine's first step with it
    return constraint


def _size(key: _Key, made: Compiled | Refused) -> int:
    """Bytes that are kept for this key, the same whenever it is asked."""
    source = sys.getsizeof(key[1].source)
    if isinstance(made, Refused):
        return source + REFUSAL_BYTES
    constraint = made.constraint
    arrays = [getattr(constraint, field.name) for field in fields(constraint)]
    return source + sum(int(array.nbytes) for array in [*arrays, constraint.edge_start, *constraint.groups])


def _keyword(error: Refused) -> str:
    """The keyword of JSON Schema that the refusal names, or an empty text."""
    return next((name for name in re.findall(r"`([^`]+)`", error.cause) if name in KEYWORDS), "")
