"""The other process, as this one sees it: jobs go there, results or the reason for none come back.

Kinds of jobs have lanes of their own, so that conversations that hang hold up conversations alone. A lane does one job
at a time, in the order in which they came.
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
"""Of processor time that a job gets, and ..."""
SECONDS_PER_CHARACTER = 1e-5
"""... for each character of its texts: ten times what tokenizers usually need."""
PATIENCE_SECONDS = 60.0
"""That a request waits for its job at most, from when it asked."""
MAX_ANSWER_BYTES = 2**28


class TookTooLong(Exception):
    """The job was ended for exceeding its processor time."""


class Workers:
    """One checkpoint's. `setup` makes the arguments of `Encoder`; it is called for each new process.

    The process is started with the first job, or by `start`; one that died is replaced with the next job.
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
        """What that method of `Encoder` returns, for texts of so many characters.

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
        """Ends the process, whatever it is doing. Harmless if there is none."""
        with self._lock:
            if self._process:
                self._process.end()
            self._process = None

    def _ask(self, lane: Lane, do: Job, seconds: float, given: Mapping[str, Any]) -> Any:
        """In the lane's thread."""
        with self._lock:
            process = self._process = self._process or _Process(self._setup())
        number = next(self._numbers)
        job = json.dumps({"number": number, "do": do, "seconds": seconds, "given": given}).encode()
        try:
            process.set_up()
            return _exchange(process.connections[lane], job, number)
        except (OSError, EOFError, ValueError):  # the whole of it died or was closed, or a child in mid-sentence
            with self._lock:
                process.end()
                if self._process is process:
                    self._process = None
            raise EngineUnavailable("The process that reads texts has ended; try again.") from None


def _exchange(connection: Connection, job: bytes, number: int) -> Any:
    """What is told of this job, and not of one before it whose child died."""
    while connection.poll():
        connection.recv_bytes(MAX_ANSWER_BYTES)
    connection.send_bytes(job)
    while True:
        told = json.loads(connection.recv_bytes(MAX_ANSWER_BYTES))
        if told.get("number", number) == number:
            return told


class _Process:
    """One run of `server.text.worker`, which does not outlive the object that it is."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        pairs = [Pipe() for _ in LANES]
        theirs = [pair[1] for pair in pairs]
        descriptors = [connection.fileno() for connection in theirs]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
        process = subprocess.Popen(  # noqa: S603 - nothing in it is a request's
            [sys.executable, "-P", "-m", "server.text.worker", *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C is for the server, which ends this when it has drained
        )
        for connection in theirs:
            connection.close()
        self.pid = process.pid
        self.connections: Mapping[Lane, Connection] = dict(zip(LANES, (pair[0] for pair in pairs), strict=True))
        self.end = weakref.finalize(self, _end, process)
        self._setup: bytes | None = json.dumps(setup).encode()
        self._lock = Lock()

    def set_up(self) -> None:
        """Before the first job."""
        with self._lock:
            if self._setup:
                self.connections[LANES[0]].send_bytes(self._setup)
            self._setup = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its children too, which are of its group. Whoever reads from them sees that they are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
