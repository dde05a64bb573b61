"""`python -m engine.execution.ranks DESCRIPTOR`: a follower's process, over the connection with this descriptor."""

import os
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection

from engine.core.errors import DeviceLost
from engine.execution.ranks.follower import follow


def end_with_rank_0(descriptor: int) -> None:
    """Ends the process once the other side of its connection is closed: also while it loads, which takes minutes."""
    connection = select.poll()
    connection.register(descriptor, 0)  # nothing but hang-ups
    connection.poll()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 drains first, and then lets go
    status = 0
    descriptor = int(sys.argv[1])
    threading.Thread(target=end_with_rank_0, args=[descriptor], daemon=True).start()
    try:
        follow(Connection(descriptor))
    except DeviceLost as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - rank 0 has no ears any more
        status = 1
    os._exit(status)  # nothing is left to be put away, and torch would take a second for it


if __name__ == "__main__":
    main()
