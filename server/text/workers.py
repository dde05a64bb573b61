"""The server's side of the worker process: sends jobs to it, and receives results or errors.

Each kind of job has a lane of its own, so that a conversation that hangs delays only conversations. A lane does one job
at a time, first come, first served.
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
from typing import Any, Literal

from engine import EngineUnavailable
from server.text.encoder import TooLong, Unreadable
from server.text.worker import Job

Lane = Literal["texts", "chats"]
LANES: Sequence[Lane] = ("texts", "chats")
SECONDS = 2.0
"""Processor time of a job, to which `SECONDS_PER_CHARACTER` adds."""
SECONDS_PER_CHARACTER = 1e-5
"""Processor time for each character of a job's texts: ten times what tokenizers usually need."""
PATIENCE_SECONDS = 60.0
"""A request waits this long for its job, time in the queue included."""
MAX_ANSWER_BYTES = 2**28


class TookTooLong(Exception):
    """The job was ended for exceeding its processor time."""


class Workers:
    """The worker process of one checkpoint. `setup` makes the arguments of `Encoder`, for each new process.

    The first job or `start` starts the process. If it has died, the next job starts another.
    """

    def __init__(self, setup: Callable[[], Mapping[str, Any]]) -> None:
        self._setup = setup
        self._threads = {lane: ThreadPoolExecutor(1, f"reads {lane}") for lane in LANES}
        self._numbers = itertools.count()
        self._lock = Lock()
        self._process: _Process | None = None

    async def start(self) -> None:
        """Returns when both lanes answer."""
        for lane in LANES:
            await self.ask(lane, "encode", characters=0, texts=[], add_special_tokens=False)

    async def ask(self, lane: Lane, do: Job, *, characters: int, **given: Any) -> Any:
        """What the method `do` of `Encoder` returns. `characters`: of its texts, for the bound on processor time.

        Raises Unreadable, TooLong, TookTooLong, or EngineUnavailable.
        """
        seconds = SECONDS + SECONDS_PER_CHARACTER * characters
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                told = await loop.run_in_executor(self._threads[lane], self._ask, lane, do, seconds, given)
        except TimeoutError:
            raise EngineUnavailable("Too many long texts are being read; try again later.") from None
        match told:
            case {"result": result}:
                return result
            case {"unreadable": why}:
                raise Unreadable(why)
            case {"too_long": length}:
                raise TooLong(length)
            case {"ended": "time"}:
                raise TookTooLong
            case _:
                raise Unreadable("ran out of memory, or crashed")

    def close(self) -> None:
        """Kills the process, whatever it is doing. Does nothing if there is none."""
        with self._lock:
            if self._process:
                self._process.end()
            self._process = None

    def _ask(self, lane: Lane, do: Job, seconds: float, given: Mapping[str, Any]) -> Any:
        """Runs in the lane's thread. Raises EngineUnavailable if the process dies."""
        with self._lock:
            process = self._process = self._process or _Process(self._setup())
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
            raise EngineUnavailable("The process that reads texts has ended; try again.") from None


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
    """One run of `server.text.worker`. The process is killed when this object is garbage-collected."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        pairs = [Pipe() for _ in LANES]
        theirs = [pair[1] for pair in pairs]
        descriptors = [connection.fileno() for connection in theirs]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
        process = subprocess.Popen(  # noqa: S603 - no argument comes from a request
            [sys.executable, "-P", "-m", "server.text.worker", *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C reaches only the server, which ends this process after draining
        )
        for connection in theirs:
            connection.close()
        self.pid = process.pid
        self.connections: Mapping[Lane, Connection] = dict(zip(LANES, (pair[0] for pair in pairs), strict=True))
        self.end = weakref.finalize(self, _end, process)
        self._setup: bytes | None = json.dumps(setup).encode()
        self._lock = Lock()

    def set_up(self) -> None:
        """Sends the arguments of `Encoder` before the first job; later calls do nothing."""
        with self._lock:
            if self._setup:
                self.connections[LANES[0]].send_bytes(self._setup)
            self._setup = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and its children, which share its process group. Pending reads from them raise EOFError."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
