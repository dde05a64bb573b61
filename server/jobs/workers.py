"""The server's side of a worker process: sends jobs to it, and receives results or errors.

Each kind of job has a lane of its own, so that one that hangs delays only its kind. A lane does one job at a time,
first come, first served.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

from engine import EngineUnavailable

PATIENCE_SECONDS = 60.0
"""A request waits this long for its job, time in the queue included."""
ENDED = "A process that reads requests has ended; try again."
MAX_ANSWER_BYTES = 2**28
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""The process forks, so its libraries must not start threads."""


class TookTooLong(Exception):
    """The job was ended for exceeding its processor time."""


class Failed(Exception):
    """The job raised something unexpected. The message is a predicate."""


class Crashed(Failed):
    """The job's process ran out of memory, or crashed."""


class Workers:
    """A worker process, whose jobs call the methods of one object.

    The first job starts the process. If it has died, the next job starts another.
    """

    def __init__(
        self,
        of: str,
        setup: Callable[[], Mapping[str, Any]],
        *,
        lanes: Sequence[str],
        raises: Sequence[type[Exception]],
    ) -> None:
        """`of`: the object's class, as `module:class`. `setup` makes its arguments, for each new process.

        `raises`: exceptions of jobs that are raised here again, with the same arguments.
        """
        self._of = of
        self._setup = setup
        self._raises = {error.__name__: error for error in raises}
        self._threads = {lane: ThreadPoolExecutor(1, f"job {lane}") for lane in lanes}
        self._numbers = itertools.count()
        self._lock = Lock()
        self._process: _Process | None = None
        self._is_closed = False

    async def ask(self, lane: str, do: str, *, seconds: float, **given: Any) -> Any:
        """What the object's method `do` returns, which may take so many seconds of processor time.

        Raises what `raises` lists, TookTooLong, Failed, or EngineUnavailable.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                told = await loop.run_in_executor(self._threads[lane], self._ask, lane, do, seconds, given)
        except TimeoutError:
            raise EngineUnavailable("Too much is being read; try again later.") from None
        match told:
            case {"result": result}:
                return result
            case {"raised": name, "with": args} if name in self._raises:
                raise self._raises[name](*args)
            case {"raised": _, "text": text}:
                raise Failed(f"cannot read this: {text}")
            case {"ended": "time"}:
                raise TookTooLong
            case _:
                raise Crashed("ran out of memory, or crashed")

    def close(self) -> None:
        """Kills the process, whatever it is doing; none is started any more."""
        with self._lock:
            self._is_closed = True
            if self._process:
                self._process.end()
            self._process = None

    def _ask(self, lane: str, do: str, seconds: float, given: Mapping[str, Any]) -> Any:
        """Runs in the lane's thread. Raises EngineUnavailable if the process dies."""
        with self._lock:
            if self._is_closed:
                raise EngineUnavailable(ENDED)
            process = self._process = self._process or _Process(self._of, self._setup(), list(self._threads))
        number = next(self._numbers)
        job = json.dumps({"number": number, "do": do, "seconds": seconds, "given": given}).encode()
        try:
            process.set_up()
            return _exchange(process.connections[lane], job, number)
        except (OSError, EOFError, ValueError):  # the process died or was closed, or a child died while sending
            with self._lock:
                process.end()
                if self._process is process:
                    self._process = None
            raise EngineUnavailable(ENDED) from None


def _exchange(connection: Connection, job: bytes, number: int) -> Any:
    """The answer to this job. Answers to earlier jobs, whose child died, are skipped."""
    while connection.poll():
        connection.recv_bytes(MAX_ANSWER_BYTES)
    connection.send_bytes(job)
    while True:
        told = json.loads(connection.recv_bytes(MAX_ANSWER_BYTES))
        if told.get("number", number) == number:
            return told


class _Process:
    """One run of `server.jobs.worker`. The process is killed when this object is garbage-collected."""

    def __init__(self, of: str, setup: Mapping[str, Any], lanes: Sequence[str]) -> None:
        pairs = [Pipe() for _ in lanes]
        theirs = [pair[1] for pair in pairs]
        descriptors = [connection.fileno() for connection in theirs]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
        process = subprocess.Popen(  # noqa: S603 - no argument comes from a request
            [sys.executable, "-P", "-m", "server.jobs.worker", of, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**environ, "PYTHONPATH": os.pathsep.join(sys.path), **ONE_THREAD},
            start_new_session=True,  # Ctrl-C reaches only the server, which ends this process after draining
        )
        for connection in theirs:
            connection.close()
        self.pid = process.pid
        self.connections: Mapping[str, Connection] = dict(zip(lanes, (pair[0] for pair in pairs), strict=True))
        self.end = weakref.finalize(self, _end, process)
        self._setup_lane = lanes[0]
        self._setup: bytes | None = json.dumps(setup).encode()
        self._lock = Lock()

    def set_up(self) -> None:
        """Sends the object's arguments before the first job; later calls do nothing."""
        with self._lock:
            if self._setup:
                self.connections[self._setup_lane].send_bytes(self._setup)
            self._setup = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and its children, which share its process group. Pending reads from them raise EOFError."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
