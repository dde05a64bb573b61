"""Why a constraint is refused, in the user's words: the cause, and the place in the constraint where it lies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class Refused(Exception):
    """A constraint that cannot be served. `place` is a JSON pointer (`#/properties/a`), or empty."""

    reason: ClassVar[str]
    """The kind of cause, in a word."""

    def __init__(self, cause: str, place: str = "") -> None:
        super().__init__(cause, place)
        self.cause = cause
        self.place = place

    def __str__(self) -> str:
        return f"{self.place}: {self.cause}" if self.place else self.cause


class Malformed(Refused):
    """It is no schema, regex or grammar at all."""

    reason = "malformed"


class Unsupported(Refused):
    """It asks for what is not enforced here."""

    reason = "unsupported"


class NoValue(Refused):
    """Nothing finite fits, within the nesting that is allowed."""

    reason = "no_value"

    def __str__(self) -> str:
        return f"no value fits: {super().__str__()}"


class TooLarge(Refused):
    """It needs more nodes, states or time than the budget has. `place` is what takes the most, if that is known."""

    reason = "too_large"

    def __str__(self) -> str:
        return f"too large: {self.cause}" + (f"; shorten {self.place}" if self.place else "")


class TooSlow(TooLarge):
    """It needs more time than the budget has, on a machine as busy as this one is now."""


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Gives `place` to refusals that have none yet."""
    try:
        yield
    except Refused as error:
        raise type(error)(error.cause, error.place or place) from None
