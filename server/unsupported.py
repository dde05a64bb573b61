"""Request fields that are known but not honoured, and the values with which leaving them out makes no difference.

A field that would change the answer is refused, never dropped; one that nobody knows is accepted, as OpenAI's many
clients expect, and named in the log once. Supporting a field means moving it from here to `server/schemas.py`.
"""

import logging
from collections.abc import Mapping

from engine import InvalidRequest

logger = logging.getLogger(__name__)

NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (),
    "prompt_logprobs": (),
    "logprob_token_ids": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "repetition_detection": (),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "min_tokens": (0,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_embeds": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "thinking_token_budget": (),
    "stream_interval": (1,),
    "vllm_xargs": ({},),
}
"""The neutral values beside null."""

HARMLESS = frozenset({"user", "metadata", "store", "request_id", "session_id", "priority", "cache_salt"})
"""Fields that say nothing about the answer."""

MAX_REMEMBERED = 256
"""Unknown names that are logged; a client that makes up more of them must not fill the memory."""


class UnsupportedFields:
    """Judges the fields of a request that its schema does not declare."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def check(self, extra: Mapping[str, object]) -> None:
        """Raises InvalidRequest for a field that would have to change the answer."""
        for name, value in extra.items():
            if name in NEUTRAL_VALUES:
                if value is not None and not any(_same(value, neutral) for neutral in NEUTRAL_VALUES[name]):
                    raise InvalidRequest(f"`{name}` is not supported yet; leave it out.", param=name)
            elif name not in HARMLESS and name not in self._logged and len(self._logged) < MAX_REMEMBERED:
                self._logged.add(name)
                logger.warning("ignoring the unknown request field %.80s", ascii(name))


def _same(value: object, neutral: object) -> bool:
    """Equality in JSON's sense, where true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
