"""Log-probabilities in the two forms of OpenAI's API: completions and chat."""

import math
from collections.abc import Sequence
from itertools import starmap

from server.replies.passage import Token
from server.schemas import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from server.text.tokenizer import Tokenizer

FLOOR = -9999.0
"""OpenAI's number for a token of almost no probability; JSON has no infinity."""


class LogprobWriter:
    """Writes tokens with their log-probabilities."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        """`as_ids`: tokens are written as `token_id:5`."""
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._alike: dict[int, tuple[str, list[int] | None]] = {}
        """Cached spelling and bytes of each token id: a few tokens make up most of an answer."""

    def for_completion(self, tokens: Sequence[Token]) -> CompletionLogprobs:
        return CompletionLogprobs.model_construct(  # validating all of them would take long
            tokens=[self._named(token.id)[0] for token in tokens],
            token_logprobs=[_finite(token.logprobs.logprob) if token.logprobs else None for token in tokens],
            top_logprobs=[self._alternatives(token) for token in tokens],
            text_offset=[token.offset for token in tokens],
        )

    def for_chat(self, tokens: Sequence[Token]) -> ChatLogprobs:
        return ChatLogprobs(content=[self._entry(token) for token in tokens])

    def _alternatives(self, token: Token) -> dict[str, float] | None:
        """Log-probabilities by spelling. Of tokens with the same spelling, the most probable one counts."""
        if token.logprobs is None:
            return None
        named: dict[str, float] = {}
        for id_, logprob in (*token.logprobs.top, (token.id, token.logprobs.logprob)):
            named.setdefault(self._named(id_)[0], _finite(logprob))
        return named

    def _entry(self, token: Token) -> ChatLogprob:
        known = token.logprobs
        own = self._alternative(token.id, known.logprob if known else FLOOR)
        top = starmap(self._alternative, known.top if known else ())
        return ChatLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)

    def _alternative(self, id_: int, logprob: float) -> TopLogprob:
        spelling, raw = self._named(id_)
        return TopLogprob(token=spelling, logprob=_finite(logprob), bytes=raw)

    def _named(self, id_: int) -> tuple[str, list[int] | None]:
        if (known := self._alike.get(id_)) is None:
            spelling = f"token_id:{id_}" if self._as_ids else self._tokenizer.spell(id_)
            known = self._alike[id_] = spelling, list(self._tokenizer.bytes_of(id_)) or None
        return known


def _finite(logprob: float) -> float:
    return max(logprob, FLOOR) if math.isfinite(logprob) else FLOOR
