"""What a number may be, as annotations: `Annotated[int, Ge(1), Le(256)]`. Values only; who reads them enforces them.

Named as in `annotated_types`, which the engine does without (docs/adr/022). pydantic, where the server has it, reads
them by its own hook.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


class _Bound:
    __slots__ = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """pydantic calls it on what stands in `Annotated`: the number's own schema, with this bound."""
        return {**handler(source), **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Ge(_Bound):
    """At least."""

    ge: float


@dataclass(frozen=True, slots=True)
class Gt(_Bound):
    """More than."""

    gt: float


@dataclass(frozen=True, slots=True)
class Le(_Bound):
    """At most."""

    le: float


@dataclass(frozen=True, slots=True)
class Lt(_Bound):
    """Less than."""

    lt: float
