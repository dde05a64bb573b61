"""Turns an answer's tokens into text as they arrive, and records the offset of each token in the text.

Text that is returned is final (`server.text.detokenizer`, `server.replies.stop_strings`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from engine import TokenLogprobs
from server.replies.stop_strings import StopStrings
from server.text.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class Token:
    """A token that the text of a choice shows."""

    id: int
    offset: int
    """Characters of the choice's text before the token."""
    logprobs: TokenLogprobs | None
    """None if the engine gave none."""
    step: int | None = None
    """The step that decoded it, as `engine.Output` counts; None if the engine told none."""


_offset = attrgetter("offset")


class Passage:
    """A run of generated tokens as text: the whole of an ordinary answer, or one fill of several.

    Without a `length`, in tokens, it runs to the engine's last token. `stop_ids` end the passage where the engine does
    not stop at them. `shows_stop` keeps the stop token among the tokens, but not in the text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings | None = None,
        *,
        length: int | None = None,
        stop_ids: frozenset[int] = frozenset(),
        shows_stop: bool = False,
        min_tokens: int = 0,
        is_tracked: bool = False,
    ) -> None:
        """`min_tokens`: the number of first tokens in which stop strings are ignored.

        `is_tracked`: `push` returns tokens with the text.
        """
        self.length = length
        self.stop: str | int | None = None
        """The stop string or stop token that ended the passage."""
        self._detokenizer = detokenizer
        self._stops = stops or StopStrings()
        self._stop_ids = stop_ids
        self._shows_stop = shows_stop
        self._min_tokens = min_tokens
        self._is_tracked = is_tracked
        self.num_tokens = 0
        """Tokens read so far. Reading ends with the token that completes a stop string."""
        self._num_read = 0
        """Characters decoded from the tokens so far."""
        self._num_shown = 0
        """Characters of these that `push` has returned."""
        self._pending: list[Token] = []

    def push(
        self,
        ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
        steps: Sequence[int] | None = None,
        *,
        last: bool,
    ) -> tuple[str, list[Token]]:
        """The text that has become final, and the tokens that begin in it. Both are empty after a stop.

        `logprobs` and `steps`: one for each of `ids`.
        """
        if self.stop is not None:
            return "", []
        end = next((place for place, id_ in enumerate(ids) if id_ in self._stop_ids), None)
        text = self._read(ids[:end], logprobs, steps, last=last or end is not None)
        if self.stop is None and end is not None:
            self.stop = ids[end]
            if self._shows_stop and self._is_tracked:
                self._pending.append(_token(ids, logprobs, steps, end, self._num_read))
            last = True
        self._num_shown += len(text)
        is_whole = last and not isinstance(self.stop, str)
        count = len(self._pending) if is_whole else bisect_left(self._pending, self._num_shown, key=_offset)
        shown, self._pending[:count] = self._pending[:count], []
        return text, shown

    def _read(
        self,
        ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
        steps: Sequence[int] | None,
        *,
        last: bool,
    ) -> str:
        """Text of the tokens up to a stop string.

        Tokens are decoded one by one if their offsets or stop strings matter; all at once is cheaper.
        """
        one_by_one = ids and (self._is_tracked or self._stops.are_any or self.num_tokens < self._min_tokens)
        groups = [ids[place : place + 1] for place in range(len(ids))] if one_by_one else [ids]
        text = ""
        for place, group in enumerate(groups):
            is_last = last and place == len(groups) - 1
            fresh = self._detokenizer.push(group, last=is_last)
            if group and self._is_tracked:
                self._pending.append(_token(ids, logprobs, steps, place, self._num_read + self._detokenizer.lead))
            self._num_read += len(fresh)
            self.num_tokens += len(group)
            if one_by_one and self.num_tokens <= self._min_tokens:
                text += fresh
                continue
            fresh, self.stop = self._stops.push(fresh, last=is_last)
            text += fresh
            if self.stop is not None:
                break
        return text


def _token(
    ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs] | None,
    steps: Sequence[int] | None,
    place: int,
    offset: int,
) -> Token:
    return Token(ids[place], offset, logprobs[place] if logprobs else None, steps[place] if steps else None)


def shifted(tokens: Sequence[Token], by: int) -> list[Token]:
    """The tokens, with `by` characters added to each offset."""
    return [replace(token, offset=token.offset + by) for token in tokens]
