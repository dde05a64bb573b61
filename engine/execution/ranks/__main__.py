"""`python -m engine.execution.ranks DESCRIPTOR`: a follower's process, over the connection with this descriptor."""

import signal
import sys
from multiprocessing.connection import Connection

from engine.core.errors import DeviceLost
from engine.execution.ranks.follower import follow


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 drains first, and then lets go
    try:
        follow(Connection(int(sys.argv[1])))
    except DeviceLost as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
