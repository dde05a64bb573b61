"""What goes wrong while one request is served, kept to that request.

Knows exceptions and requests; who ends a request that is at fault, and how, is not its business.
"""

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.request import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request cannot go on. Text alone: an exception would keep its step's tensors in memory."""

    request: Request
    cause: str
    """The exception, in a line."""
    trace: str
    """Where it came from, in many."""


class Faults:
    """Those of the step that is under way, one a request."""

    def __init__(self) -> None:
        self._by_id: dict[str, Fault] = {}

    def __contains__(self, request: Request) -> bool:
        return request.id in self._by_id

    def add(self, request: Request, error: Exception) -> None:
        """Lays an exception to a request's account; its first one counts."""
        cause = traceback.format_exception_only(error)[-1].strip()
        self._by_id.setdefault(request.id, Fault(request, cause, "".join(traceback.format_exception(error))))

    def of(self, request: Request) -> "_Guard":
        """Whatever is raised inside is this request's fault, and goes no further."""
        return _Guard(self, request)

    def take(self) -> list[Fault]:
        """All of them; the next step begins without any."""
        faults = list(self._by_id.values())
        self._by_id.clear()
        return faults


@dataclass(frozen=True, slots=True)
class _Guard:
    """A class, since each request of a step enters three of them: a generator would take four times as long."""

    faults: Faults
    request: Request

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """Policies may raise anything, and `report` tells all of it."""
        if not isinstance(error, Exception):
            return False
        self.faults.add(self.request, error)
        return True


def report(faults: Sequence[Fault]) -> None:
    """One log entry for each cause, with the ids of all requests that failed for it."""
    for cause in dict.fromkeys(fault.cause for fault in faults):
        same = [fault for fault in faults if fault.cause == cause]
        ids = ", ".join(fault.request.id for fault in same)
        logger.error("failed: request %s: %s\n%s", ids, cause, same[0].trace)
