"""The worker process: `python -m server.jobs.worker MODULE:CLASS FD...`, started by `server.jobs.workers`.

It imports the class and makes its object, which may take long, then forks a child for each connection. The child does
the jobs of its connection one after another: each calls a method of the object. The kernel kills a child that exceeds
its processor time, whatever code it hangs in. This process then reports that and forks another child, which takes
milliseconds. Forking is safe here: there are no threads, no locks and no torch.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEMORY_BYTES = 512 * 2**20
"""Address space that a child may take beyond what it has at the start."""


def main(name: str, descriptors: Sequence[str]) -> None:
    """Runs until the server has closed all connections."""
    connections = [Connection(int(descriptor)) for descriptor in descriptors]
    module, _, kind = name.partition(":")
    doer = getattr(import_module(module), kind)(**json.loads(connections[0].recv_bytes()))
    children = {_fork(doer, connection): connection for connection in connections}
    while children:
        pid, status = os.wait()
        connection = children.pop(pid)
        if status == 0:
            continue
        cause = "time" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "death"
        with suppress(OSError):
            connection.send_bytes(json.dumps({"ended": cause}).encode())
            children[_fork(doer, connection)] = connection


def _fork(doer: object, connection: Connection) -> int:
    """The process id of a child that serves this connection. The child exits with 0 when it is closed."""
    if pid := os.fork():
        return pid
    try:
        _bound_memory()
        while True:
            connection.send_bytes(_answer(doer, json.loads(connection.recv_bytes())))
    except (EOFError, ConnectionError):
        os._exit(0)
    finally:
        os._exit(1)


def _bound_memory() -> None:
    """Bounds the address space. Also disables core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(FileNotFoundError):  # not Linux, where this limit would bound nothing
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))


def _answer(doer: object, job: dict[str, Any]) -> bytes:
    """The answer to one job, in JSON: its result, or the name and arguments of what it raised.

    Bounds its processor time with SIGPROF, whose default action ends the process: no Python code has to run.
    """
    signal.setitimer(signal.ITIMER_PROF, job["seconds"])
    told: dict[str, Any]
    try:
        told = {"result": getattr(doer, job["do"])(**job["given"])}
    except Exception as error:  # noqa: BLE001 - the server's side knows which it expects
        told = {"raised": type(error).__name__, "with": error.args, "text": f"{error!s:.200}"}
    answer = json.dumps({**told, "number": job["number"]}, default=str).encode()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return answer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
