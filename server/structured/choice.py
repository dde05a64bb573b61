"""One of several texts as an automaton. Knows bytes only."""

from collections.abc import Sequence

from server.structured.automaton import Automaton, determinised
from server.structured.budget import Budget
from server.structured.nfa import Nfa
from server.structured.refusals import Malformed, TooLarge

MAX_CHOICES = 1000
MAX_BYTES = 65_536
"""Bytes of all choices together."""


def automaton(texts: Sequence[str], budget: Budget) -> Automaton:
    """The automaton of these texts. Raises Malformed or TooLarge."""
    if not texts:
        raise Malformed("there is no choice")
    if len(texts) > MAX_CHOICES:
        raise TooLarge(f"more than {MAX_CHOICES:,} choices")
    try:
        spellings = [text.encode() for text in texts]
    except UnicodeEncodeError:
        raise Malformed("a choice holds half a character (a lone surrogate)") from None
    if sum(map(len, spellings)) > MAX_BYTES:
        raise TooLarge(f"more than {MAX_BYTES:,} bytes of choices")
    nfa = Nfa(budget)
    start = nfa.node()
    return determinised(nfa, start, nfa.words(start, spellings))
