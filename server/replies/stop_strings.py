"""Where stop strings cut an answer. Text that is handed out is final: what may be the start of one waits for more."""

from collections.abc import Sequence


class StopStrings:
    """Cuts an answer before the first stop string, wherever its blocks split it.

    Of several, the one that is complete first counts, as if the text had come letter by letter: so the cut does not
    depend on how the text was split.
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
        """(the text that is final now, the stop string that ended it)."""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start, stop = min(found)
            return text[: end if self._is_kept else start], stop
        kept = len(text) if last else len(text) - self._longest_start(text)
        self._held = text[kept:]
        return text[:kept], None

    def _longest_start(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string starts with, but for the whole of it."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """As many comparisons as the stop string has characters: with many of them, it is their sum that costs."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
