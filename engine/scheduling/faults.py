"""Errors while one request is served, confined to that request.

Knows exceptions and requests. The caller ends a request that is at fault.
"""

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from engine.core.requests.request import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request cannot go on. Holds text only: an exception would keep its step's tensors in memory."""

    request: Request
    cause: str
    """The exception, in one line."""
    trace: str
    """Its traceback, in several lines."""


class Faults:
    """The faults of the step under way, at most one for each request."""

    def __init__(self) -> None:
        self._by_id: dict[str, Fault] = {}

    def __contains__(self, request: Request) -> bool:
        return request.id in self._by_id

    def add(self, request: Request, error: Exception) -> None:
        """Records an exception as a request's fault. Only the first one of a request is kept."""
        cause = traceback.format_exception_only(error)[-1].strip()
        self._by_id.setdefault(request.id, Fault(request, cause, "".join(traceback.format_exception(error))))

    def of(self, request: Request) -> "_Guard":
        """A context that records any Exception raised inside as this request's fault and suppresses it."""
        return _Guard(self, request)

    def take(self) -> list[Fault]:
        """Returns all faults and forgets them: the next step begins without any."""
        faults = list(self._by_id.values())
        self._by_id.clear()
        return faults


@dataclass(frozen=True, slots=True)
class _Guard:
    """The context of `Faults.of`. Each request enters three a step: a generator would take four times as long."""

    faults: Faults
    request: Request

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """Suppresses any Exception: policies may raise anything, and `report` logs all of it."""
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
