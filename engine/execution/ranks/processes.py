"""Starts the followers of a replica, and is what rank 0 sees of them: calls go out, answers come back.

A follower that is gone is found out at the next call, or by `check`. Knows no tensors.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from engine.core.config import EngineConfig
from engine.core.errors import DeviceLost
from engine.execution.ranks.follower import Begin, Failed, Start
from engine.execution.ranks.group import PATIENCE_SECONDS
from engine.execution.ranks.runner import Call
from engine.models.ranks.cut import Rank

END_SECONDS = 5.0
"""Seconds that all followers have to end by themselves once their connections are closed."""


class Followers:
    """All ranks but 0, over a connection to each. They end when this object does."""

    def __init__(self, connections: Sequence[Connection], processes: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        """`processes` may be left out where followers are no processes of their own."""
        self._connections, self.processes = connections, processes
        self._meeting = Path(tempfile.mkdtemp(prefix="unmask-ranks-"))
        self.close = weakref.finalize(self, _end, connections, processes, self._meeting)
        """Ends them; further calls do nothing."""

    def start(self, config: EngineConfig, folder: Path) -> None:
        """Lets each load its part of the checkpoint in `folder`; does not wait for it."""
        size = len(self._connections) + 1
        for number, connection in enumerate(self._connections, 1):
            self._send(connection, pickle.dumps(Start(config, folder, Rank(number, size))))

    def pages(self) -> int:
        """How many pages of KV fit on all of them, once their weights are loaded. Raises what their loading raises."""
        return min(self._received(connection, None) for connection in self._connections)

    def begin(self, pages: int) -> Path:
        """Lets each make its pool and join the others, in the folder that it returns; does not wait for it."""
        for connection in self._connections:
            self._send(connection, pickle.dumps(Begin(pages, self._meeting)))
        return self._meeting

    def tell(self, call: Call) -> None:
        """Sends a call to all. Raises DeviceLost if one is gone, or does not get it."""
        message = pickle.dumps(call)
        for connection in self._connections:
            self._send(connection, message)

    def answers(self) -> Exception | None:
        """Waits until all have done what they were told. Returns what one has raised.

        Raises DeviceLost if one is gone.
        """
        errors = []
        for connection in self._connections:
            try:
                self._received(connection, PATIENCE_SECONDS)
            except DeviceLost:
                raise
            except Exception as error:  # noqa: BLE001 - the caller raises it, once all have answered
                errors.append(error)
        return errors[0] if errors else None

    def check(self) -> None:
        """Raises DeviceLost if one is gone. Only between calls, when none has anything to say."""
        for connection in self._connections:
            if connection.poll():
                self._received(connection, 0.0)

    def _send(self, connection: Connection, message: bytes) -> None:
        try:
            connection.send_bytes(message)
        except OSError as error:
            raise self._lost(connection) from error
        except MemoryError as error:  # others may have got it
            raise self._lost(connection, "cannot be told what to do") from error

    def _received(self, connection: Connection, seconds: float | None) -> int:
        """A follower's answer. Raises its error, or DeviceLost if there is none in time."""
        try:
            if not connection.poll(seconds):
                raise self._lost(connection, f"has said nothing for {seconds:.0f} s")
            answer: Failed | int | None = connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost(connection) from error
        if isinstance(answer, Failed):
            raise answer.error
        return answer or 0

    def _lost(self, connection: Connection, how: str = "has ended") -> DeviceLost:
        return DeviceLost(f"rank {self._connections.index(connection) + 1} {how}")


def start_processes(size: int) -> Followers:
    """Followers for a replica of so many ranks, in processes of their own that have nothing to do yet."""
    connections, processes = [], []
    for _ in range(size - 1):
        ours, theirs = Pipe()
        processes.append(
            subprocess.Popen(  # noqa: S603 - no argument comes from a user
                [sys.executable, "-P", "-m", __package__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C reaches only rank 0, which ends these after draining
            )
        )
        theirs.close()
        connections.append(ours)
    return Followers(connections, processes)


def _end(connections: Sequence[Connection], processes: Sequence[subprocess.Popen[bytes]], meeting: Path) -> None:
    for connection in connections:
        with suppress(OSError):
            connection.close()
    end = time.monotonic() + END_SECONDS
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    shutil.rmtree(meeting, ignore_errors=True)
