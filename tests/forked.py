"""Processes of `unmask` that are there in a moment: forked from one that has imported torch and all else already.

What a command line starts is for the tests that start one: tests/server/commands/test_serve.py.
"""

import atexit
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import httpx

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["server.commands.serve", "server.eval.command", "tests.faulty_server"])


class Running(Protocol):
    """What is asked of a process, a forked one or subprocess.Popen."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...


class Forked:
    """A process that runs `main(arguments)` of the module `program`, and writes to the file `log`.

    It has this process' environment but for settings of `unmask`, and subprocess.Popen's methods. What libraries read
    from the environment when they are imported is as it was for the first such process. It is killed when Python ends.
    """

    def __init__(self, program: str, *arguments: str, log: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
        log.touch()
        self._process = _CONTEXT.Process(target=_run, args=(program, arguments, environ, str(log)))
        self._process.start()
        atexit.register(self.kill)  # runs before multiprocessing's own, which waits for it without limit

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process.name), timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, if it has not ended."""
        self.kill()
        self._process.join()


def _run(program: str, arguments: tuple[str, ...], environ: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(log).open("a") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    sys.exit(import_module(program).main(list(arguments)))


def wait_until_ready(process: Running, url: str, log: Path, seconds: float) -> None:
    """Until the URL answers 200. Raises AssertionError with the log if the process ends or is not ready in time."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        assert process.poll() is None, log.read_text()
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError(f"{url} is not ready: {log.read_text()}")
