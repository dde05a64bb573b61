"""Places for connections: bounds how many are open, and chooses which are closed if there are too many.

Knows whether a connection is idle, and can close it. Knows nothing of HTTP.
"""

import resource
from typing import Protocol

from engine import ConfigError

SPARE = 64
"""Places beyond the limit, for connections on which only probes are served and other requests are refused."""
CROWDED_SECONDS = 5.0
"""Lifetime of a connection beyond the limit; and how long an idle connection keeps its place in a full server."""
ACCEPTED_AT_ONCE = 64
"""Connections that the event loop accepts in one go, before any of them takes a place."""
OTHER_FILES = 256
"""File descriptors for everything but connections: the model's files, the device's, libraries, the event loop."""


class HeldConnection(Protocol):
    """A connection, as seen by `Places`."""

    def close(self) -> None:
        """Closes the connection."""


class Places:
    """The places of one server. Times are in seconds on the event loop's clock."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: set[HeldConnection] = set()
        self._idle: dict[HeldConnection, float] = {}
        """Idle connections, and since when they are idle; the first has been idle longest."""
        self._spare: dict[HeldConnection, None] = {}
        """Connections beyond the limit, the oldest first."""

    def take(self, connection: HeldConnection, now: float) -> bool:
        """Takes a place, and returns whether there was one.

        If the server is full, closes the connection that has been idle longest, if for `CROWDED_SECONDS`. If that
        frees no place, the new connection is beyond the limit: it takes a spare place, and the oldest of too many such
        connections is closed.
        """
        if len(self._taken) >= self._count:
            longest = next(iter(self._idle), None)
            if longest and now - self._idle[longest] >= CROWDED_SECONDS:
                self._close(longest)
        if len(self._taken) < self._count:
            self._taken.add(connection)
            return True
        if len(self._spare) >= SPARE:
            self._close(next(iter(self._spare)))
        self._spare[connection] = None
        return False

    def give_back(self, connection: HeldConnection) -> None:
        self._taken.discard(connection)
        self._idle.pop(connection, None)
        self._spare.pop(connection, None)

    def record(self, connection: HeldConnection, *, is_idle: bool, now: float) -> None:
        """Records whether the connection is idle now. Connections beyond the limit are not recorded."""
        if not is_idle or connection not in self._taken:
            self._idle.pop(connection, None)
        else:
            self._idle.setdefault(connection, now)

    def _close(self, connection: HeldConnection) -> None:
        self.give_back(connection)
        connection.close()


def affordable_connections(wanted: int) -> int:
    """How many of the `wanted` connections the process may hold. Raises its soft limit of open files as needed.

    Raises ConfigError if the hard limit leaves room for none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    beside = SPARE + ACCEPTED_AT_ONCE + OTHER_FILES
    needed = wanted + beside
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed <= beside:
        raise ConfigError(
            f"this process may open {allowed} files and needs {beside} beside those of connections: raise the limit "
            "(ulimit -n, LimitNOFILE, ulimits)"
        )
    return min(wanted, allowed - beside)
