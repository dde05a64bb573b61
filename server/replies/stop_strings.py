"""Cuts answers at stop strings. Text that is returned is final: a possible start of a stop string is held back."""

from collections.abc import Sequence


class StopStrings:
    """Cuts an answer before the first stop string, however the text is split into blocks.

    Of several stop strings, the one that is complete first counts, as if the text had come character by character. So
    the cut does not depend on how the text was split.
    """

    def __init__(self, stops: Sequence[str] = (), *, is_kept: bool = False) -> None:
        """`is_kept`: the stop string itself stays in the text."""
        self._stops = tuple(stops)
        self._is_kept = is_kept
        self._held = ""

    @property
    def are_any(self) -> bool:
        return bool(self._stops)

    def push(self, text: str, *, last: bool) -> tuple[str, str | None]:
        """(the text that has become final, the stop string that ended it or None)."""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start, stop = min(found)
            return text[: end if self._is_kept else start], stop
        kept = len(text) if last else len(text) - self._longest_start(text)
        self._held = text[kept:]
        return text[:kept], None

    def _longest_start(self, text: str) -> int:
        """Characters of the longest end of `text` with which a stop string begins, a whole stop string excluded."""
        return max((overlap(text, stop) for stop in self._stops), default=0)


def overlap(text: str, stop: str) -> int:
    """Characters of the longest end of `text` with which `stop` begins, `stop` itself excluded.

    Makes as many comparisons as `stop` has characters. With many stop strings, the sum of their lengths is the cost.
    """
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
