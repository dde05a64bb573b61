"""The worker process: `python -m server.text.worker FD...`, started by `server.text.workers`.

It imports the slow modules once, then forks a child for each connection. The child does the jobs of its connection one
after another. The kernel kills a child that exceeds its processor time, whatever code it hangs in. This process then
reports that and forks another child, which takes milliseconds. Forking is safe here: there are no threads, no locks and
no torch.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from server.text.encoder import Encoder, TooLong, Unreadable

Job = Literal["encode", "encode_parts", "locate", "converse"]
"""The methods of `Encoder` that a job may call."""
MEMORY_BYTES = 512 * 2**20
"""Address space that a child may take beyond what it has at the start."""


def main(descriptors: Sequence[str]) -> None:
    """Runs until the server has closed all connections."""
    connections = [Connection(int(descriptor)) for descriptor in descriptors]
    encoder = Encoder(**json.loads(connections[0].recv_bytes()))
    children = {_fork(encoder, connection): connection for connection in connections}
    while children:
        pid, status = os.wait()
        connection = children.pop(pid)
        if status == 0:
            continue
        cause = "time" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "death"
        with suppress(OSError):
            connection.send_bytes(json.dumps({"ended": cause}).encode())
            children[_fork(encoder, connection)] = connection


def _fork(encoder: Encoder, connection: Connection) -> int:
    """The process id of a child that serves this connection. The child exits with 0 when it is closed."""
    if pid := os.fork():
        return pid
    try:
        _bound_memory()
        while True:
            connection.send_bytes(_answer(encoder, json.loads(connection.recv_bytes())))
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


def _answer(encoder: Encoder, job: dict[str, Any]) -> bytes:
    """The answer to one job, in JSON. Bounds its processor time with SIGPROF.

    The default action of the signal ends the process, for which no Python code has to run.
    """
    signal.setitimer(signal.ITIMER_PROF, job["seconds"])
    told: dict[str, Any]
    try:
        told = {"result": getattr(encoder, job["do"])(**job["given"])}
    except Unreadable as error:
        told = {"unreadable": str(error)}
    except TooLong as error:
        told = {"too_long": error.characters}
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exception
        told = {"unreadable": f"cannot read this: {error!s:.200}"}
    answer = json.dumps({**told, "number": job["number"]}).encode()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return answer


if __name__ == "__main__":
    main(sys.argv[1:])
