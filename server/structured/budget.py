"""How large a constraint may become while it is compiled, and how long that may take."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import thread_time
from typing import TypeVar

from server.structured.refusals import NoValue, TooLarge, TooSlow

_Made = TypeVar("_Made")


@dataclass(slots=True)
class Budget:
    """Bounds of one compilation. Its time begins when it is made."""

    nodes: int = 200_000
    """Nodes of a nondeterministic automaton."""
    states: int = 32_000
    """States of an automaton; twice as many before equal ones are merged."""
    entries: int = 32_000_000
    """States times classes of tokens, before equal ones are merged."""
    seconds: float = 5.0
    """CPU time of this thread."""
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = thread_time() + self.seconds

    def check_time(self) -> None:
        if thread_time() > self._deadline:
            raise TooSlow(f"it takes more than {self.seconds:g} s to compile")

    @property
    def is_half_gone(self) -> bool:
        """Whether half of the time is used."""
        return thread_time() > self._deadline - self.seconds / 2

    def check_nodes(self, count: int) -> None:
        if count > self.nodes:
            raise TooLarge(f"more than {self.nodes:,} nodes")

    def check_states(self, count: int, *, is_minimal: bool) -> None:
        if count > self.states * (1 if is_minimal else 2):
            raise TooLarge(f"more than {self.states:,} states")

    def check_entries(self, count: int) -> None:
        if count > self.entries:
            raise TooLarge(f"more than {self.entries:,} pairs of a state and a class of tokens")


def shallower(compiled: Callable[[int], _Made], depth: int, budget: Budget) -> _Made:
    """What `compiled` makes of nesting `depth` deep, or, if that is too large, of a nesting that is not.

    The deepest is sought by halves, while less than half of the time is gone: each level may cost several times the
    one above.
    """
    made: _Made | None = None
    too_large: TooLarge | None = None
    no_value: NoValue | None = None
    least, level, most = 1, depth, depth
    while least <= most and (made is None or not budget.is_half_gone):
        try:
            made = compiled(level)
            least = level + 1
        except TooLarge as error:
            too_large = too_large or error
            most = level - 1
        except NoValue as error:
            no_value = error
            least = level + 1
        level = (least + most + 1) // 2
    if made is None:
        refusal = too_large or no_value
        assert refusal
        raise refusal
    return made
