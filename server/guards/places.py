"""Places for connections: how many there are at once, and who leaves when there are too many.

Knows that a connection asks something or nothing and can be told to go; nothing of HTTP.
"""

import resource
from typing import Protocol

from engine import ConfigError

SPARE = 64
"""Places beyond the limit: in them probes are answered, and others told to come again."""
CROWDED_SECONDS = 5.0
"""In a full server: how long a connection beyond the limit lasts, and one that asks nothing is sure of its place."""
ACCEPTED_AT_ONCE = 64
"""Connections that the event loop accepts before the first of them is looked at."""
OTHER_FILES = 256
"""File descriptors for everything but connections: the model's files, the device's, libraries, the event loop."""


class Guest(Protocol):
    """A connection, as far as places are concerned."""

    def leave(self) -> None:
        """Closes the connection."""


class Places:
    """Of one server. Times are the event loop's, in seconds."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: set[Guest] = set()
        self._idle: dict[Guest, float] = {}
        """Those that ask nothing, and since when; the first has been idle for longest."""
        self._spare: dict[Guest, None] = {}
        """Those beyond the limit, the oldest first."""

    def take(self, guest: Guest, now: float) -> bool:
        """Whether there is a place; else the guest is one too many, and the oldest of too many such has to go."""
        if len(self._taken) >= self._count:
            longest = next(iter(self._idle), None)
            if longest and now - self._idle[longest] >= CROWDED_SECONDS:
                self._dismiss(longest)
        if len(self._taken) < self._count:
            self._taken.add(guest)
            return True
        if len(self._spare) >= SPARE:
            self._dismiss(next(iter(self._spare)))
        self._spare[guest] = None
        return False

    def give_back(self, guest: Guest) -> None:
        self._taken.discard(guest)
        self._idle.pop(guest, None)
        self._spare.pop(guest, None)

    def mark(self, guest: Guest, *, is_idle: bool, now: float) -> None:
        """Whether the guest asks nothing now."""
        if not is_idle or guest not in self._taken:
            self._idle.pop(guest, None)
        else:
            self._idle.setdefault(guest, now)

    def _dismiss(self, guest: Guest) -> None:
        self.give_back(guest)
        guest.leave()


def affordable_connections(wanted: int) -> int:
    """How many of `wanted` the process may hold: raises its soft limit of open files as far as they need it.

    Raises ConfigError where the hard limit leaves room for none.
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
