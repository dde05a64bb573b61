"""Log-probabilities in the two forms in which OpenAI's API answers with them."""

import math
from collections.abc import Sequence

from server.passage import Token
from server.schemas import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from server.text import Tokenizer

FLOOR = -9999.0
"""OpenAI's number for a token that is all but impossible; JSON knows no infinity."""


class LogprobWriter:
    """Writes tokens with what was said of them."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        """`as_ids`: tokens are spelled `token_id:5`."""
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def for_completion(self, tokens: Sequence[Token]) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[self._spell(token.id) for token in tokens],
            token_logprobs=[_finite(token.logprobs.logprob) if token.logprobs else None for token in tokens],
            top_logprobs=[self._alternatives(token) for token in tokens],
            text_offset=[token.offset for token in tokens],
        )

    def for_chat(self, tokens: Sequence[Token]) -> ChatLogprobs:
        return ChatLogprobs(content=[self._entry(token) for token in tokens])

    def _alternatives(self, token: Token) -> dict[str, float] | None:
        """Of tokens that are spelled alike, the most probable one counts."""
        if token.logprobs is None:
            return None
        named: dict[str, float] = {}
        for id_, logprob in (*token.logprobs.top, (token.id, token.logprobs.logprob)):
            named.setdefault(self._spell(id_), _finite(logprob))
        return named

    def _entry(self, token: Token) -> ChatLogprob:
        known = token.logprobs
        own = self._alternative(token.id, known.logprob if known else FLOOR)
        top = [self._alternative(id_, logprob) for id_, logprob in known.top] if known else []
        return ChatLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)

    def _alternative(self, id_: int, logprob: float) -> TopLogprob:
        raw = self._tokenizer.bytes_of(id_)
        return TopLogprob(token=self._spell(id_), logprob=_finite(logprob), bytes=list(raw) if raw else None)

    def _spell(self, id_: int) -> str:
        return f"token_id:{id_}" if self._as_ids else self._tokenizer.spell(id_)


def _finite(logprob: float) -> float:
    return max(logprob, FLOOR) if math.isfinite(logprob) else FLOOR
