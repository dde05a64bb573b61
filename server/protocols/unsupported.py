"""Request fields that are known but not honoured, and their neutral values, which are the same as leaving them out.

A field that would change the answer is refused, never ignored. An unknown field is accepted, as OpenAI's many clients
expect, and logged once. To support a field, move it from here to `server/schemas/`.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from engine import InvalidRequest
from server.schemas import DiffusionRequest, WireRequest

logger = logging.getLogger(__name__)

NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "best_of": (0, 1),
    "echo": (False,),
    "suffix": ("",),
    "max_completion_tokens": (),
    "top_logprobs": (0,),
    "prompt_logprobs": (0,),
    "logprob_token_ids": ([],),
    "repetition_detection": ({},),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "logits_processors": ([],),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (-1,),
    "prompt_embeds": ("", []),
    "guided_whitespace_pattern": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "documents": ([],),
    "chat_template": ("",),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "return_prompt_text": (False,),
    "thinking_token_budget": (-1,),
    "stream_interval": (1,),
    "vllm_xargs": ({},),
}
"""The neutral values of each field, besides null. Some are fields of one route and refused on the other."""

REASONS: Mapping[str, str] = {
    "best_of": "completions have it",
    "echo": "completions have it",
    "suffix": "completions have it",
    "chat_template": "a conversation is rendered with the model's own template",
    "max_completion_tokens": "completions have `max_tokens`",
    "prompt_logprobs": "`echo` with `logprobs` scores a prompt",
    "tools": "chat completions have them",
    "tool_choice": "chat completions have it",
    "functions": "their newer name is `tools`",
    "function_call": "its newer name is `tool_choice`",
    "top_logprobs": "in completions `logprobs` is the number of alternatives",
}
"""Reasons and alternatives, which the error message quotes."""

CHOICES_OF = {"tools": "tool_choice", "functions": "function_call"}
"""Fields that list what the model may call, and the field that rules calls out if it is "none"."""

HARMLESS = frozenset(
    {
        "guided_decoding_backend",
        "include_reasoning",
        "metadata",
        "moderation",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "truncation_side",
        "user",
        "verbosity",
    }
)
"""Fields that do not affect the answer, or are only hints. They are ignored."""

MAX_LABEL_LENGTH = 512
"""Characters of a text in a harmless field: OpenAI's bound for a value of `metadata`, and plenty for an identifier."""

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}", re.ASCII)

MAX_REMEMBERED = 256
"""Unknown field names that are logged; the bound keeps clients that invent names from filling the memory."""


class UnsupportedFields:
    """Checks the fields of a request that its schema does not declare."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def check(
        self,
        body: WireRequest,
        *,
        known: Collection[str] = (),
        refused: Mapping[str, tuple[object, ...]] = NEUTRAL_VALUES,
        reasons: Mapping[str, str] = REASONS,
    ) -> None:
        """Raises InvalidRequest for a field that should change the answer, and for a harmless field that is too long.

        Logs unknown fields at any depth, except those in `diffusion`, which `diffusion_params` checks. `known`: fields
        that are honoured, though the body's own schema does not declare them. `refused`, `reasons`: the body's API's.
        """
        extra = body.model_extra or {}
        for name, value in extra.items():
            if name in known:
                continue
            if name in refused:
                if not _is_neutral(value, refused[name], extra.get(CHOICES_OF.get(name, ""))):
                    reason = f" ({reasons[name]})" if name in reasons else ""
                    raise InvalidRequest(f"`{name}` is not supported here{reason}; leave it out.", param=name)
            elif name in HARMLESS:
                if any(len(text) > MAX_LABEL_LENGTH for text in _labels(name, value)):
                    raise InvalidRequest(f"`{name}` may hold texts of {MAX_LABEL_LENGTH} characters.", param=name)
            else:
                self.log(name)
        for path in _unknown_within(body):
            self.log(path)

    def log(self, path: str, what: str = "the unknown request field") -> None:
        """Logs once that something is ignored. `what`: in words."""
        told = f"{what} {path!a:.80}"
        if told not in self._logged and len(self._logged) < MAX_REMEMBERED:
            self._logged.add(told)
            logger.warning("ignoring %s", told)


def _is_neutral(value: object, neutral_values: Sequence[object], choice: object) -> bool:
    """`choice`: the value of the field that may rule out what this one lists."""
    if choice == "none":
        return isinstance(value, list)
    value = _without_nulls(value)
    return value is None or any(_same(value, neutral) for neutral in neutral_values)


def _without_nulls(value: object) -> object:
    """The value without its null members: inside an object such as `response_format`, null also means left out."""
    if not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if inner is not None}


def _unknown_within(part: WireRequest, path: str = "") -> Iterator[str]:
    """Paths of the undeclared fields below this part of a body, such as `messages[].content[].x`."""
    for name, value in vars(part).items():
        if isinstance(value, WireRequest):
            inner: Sequence[WireRequest] = [value]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], WireRequest):
            inner = value
        else:
            continue
        below = f"{path}{type(part).model_fields[name].alias or name}" + ("[]" if inner is value else "")
        for item in inner:
            if not isinstance(item, DiffusionRequest):
                yield from (f"{below}.{unknown}" for unknown in item.model_extra or ())
                yield from _unknown_within(item, f"{below}.")


def _labels(name: str, value: object) -> Iterator[str]:
    """The field's own text, or the keys and values of `metadata`.

    A `prediction` is an object, so its text, which is an answer and may be long, is not included.
    """
    texts = (*value, *value.values()) if name == "metadata" and isinstance(value, dict) else (value,)
    return (text for text in texts if isinstance(text, str))


def _same(value: object, neutral: object) -> bool:
    """Equality in JSON's sense, where true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def told_as_left_out(kind: str, media_type: object) -> str:
    """What the model reads in the place of something in a tool's result that is no text. `media_type`: a client's."""
    of = f" ({media_type})" if isinstance(media_type, str) and _MEDIA_TYPE.fullmatch(media_type) else ""
    return f"[This {kind}{of} was left out: only text can be read here.]"
