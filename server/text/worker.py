"""The process that reads texts: `python -m server.text.worker FD...`, started by `server.text.workers`.

It imports what is slow to import, then becomes one child for each connection, which does that connection's jobs one
after another. A child that exceeds its processor time is ended by the kernel, whatever code it hangs in; that is told,
and another one forked, which takes milliseconds. Forking is safe here: there are no threads, no locks and no torch.
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
"""The methods of `Encoder` that may be asked for."""
MEMORY_BYTES = 512 * 2**20
"""That a child may take beyond what it begins with."""


def main(descriptors: Sequence[str]) -> None:
    """Until the other side has closed all connections."""
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
    """The process id of a child that serves this connection, and ends with 0 when it is closed."""
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
    """And writes no core of what it did when it dies."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(FileNotFoundError):  # no Linux: none of what follows would bound anything there
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))


def _answer(encoder: Encoder, job: dict[str, Any]) -> bytes:
    """The signal's default is to end the process, which needs no Python to run."""
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
