"""What writers of objects and arrays share: the automaton, punctuation, alternatives, and who writes a value."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from server.structured.budget import Budget
from server.structured.nfa import Nfa
from server.structured.refusals import NoValue
from server.structured.schema.instances import Instances
from server.structured.schema.references import References
from server.structured.schema.strings import Strings

Whitespace = Literal["flexible", "compact", "spaced"]
"""Behind `,` and `:` one space or none, none, or one."""


class Writer(ABC):
    """Writes JSON texts of a schema, of which `references` are the references, into `nfa`."""

    def __init__(self, nfa: Nfa, references: References, whitespace: Whitespace) -> None:
        self.nfa = nfa
        self.references = references
        self.strings = Strings(nfa)
        self.instances = Instances(references, nfa.budget)
        self.savings: Counter[str] = Counter()
        """Nodes that would be saved if a place were short, by what it is: `maxLength` of a place."""
        self._whitespace = whitespace

    @property
    def budget(self) -> Budget:
        return self.nfa.budget

    @abstractmethod
    def value(self, start: int, schema: Any, depth: int, place: str) -> int:
        """Writes a value that fits the schema, with `depth` objects or arrays below each other at most.

        Raises NoValue if there is none, Malformed, Unsupported, or TooLarge.
        """

    def mark(self, start: int, sign: bytes) -> int:
        """A comma or colon, and the space behind it."""
        end = self.nfa.literal(start, sign)
        if self._whitespace == "compact":
            return end
        spaced = self.nfa.literal(end, b" ")
        if self._whitespace == "flexible":
            self.nfa.link(end, spaced)
        return spaced

    def either(self, start: int, branches: Sequence[Callable[[int], int]]) -> int:
        """Those of the branches that have a value. Raises NoValue if none has."""
        end = self.nfa.node()
        refusal: NoValue | None = None
        is_any = False
        for branch in branches:
            entry = self.nfa.node()
            try:
                exit_ = branch(entry)
            except NoValue as error:
                refusal = error
                continue
            self.nfa.link(start, entry)
            self.nfa.link(exit_, end)
            is_any = True
        if not is_any:
            raise refusal or NoValue("there is no alternative")
        return end

    @contextmanager
    def counted(self, what: str, repetitions: int = 0) -> Iterator[None]:
        """Notes the nodes that are written meanwhile, but for those of one repetition."""
        before = len(self.nfa.links)
        try:
            yield
        finally:
            nodes = len(self.nfa.links) - before
            self.savings[what] += nodes - (nodes // repetitions if repetitions else 0)
