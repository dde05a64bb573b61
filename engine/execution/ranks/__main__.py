"""`python -m engine.execution.ranks DESCRIPTOR`: a follower's process, over the connection with this descriptor."""

import os
import signal
import sys
from multiprocessing.connection import Connection

from engine.core.errors import DeviceLost
from engine.execution.ranks.follower import follow


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 drains first, and then lets go
    status = 0
    try:
        follow(Connection(int(sys.argv[1])))
    except DeviceLost as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - rank 0 has no ears any more
        status = 1
    os._exit(status)  # nothing is left to be put away, and torch would take a second for it


if __name__ == "__main__":
    main()
