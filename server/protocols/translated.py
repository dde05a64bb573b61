"""Bodies of other APIs as a chat, whose errors name fields as the client has sent them.

What a body of another API asks is said in the words of /v1/chat/completions, and is checked and converted there: types,
bounds, tools, constraints and prompts have one implementation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from engine import InvalidRequest
from server.protocols.names import Names
from server.schemas import ChatRequest, WireRequest

SHARED = frozenset(
    {
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "chat_template_kwargs",
        "frequency_penalty",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "min_p",
        "min_tokens",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "stop_token_ids",
        "structured_outputs",
        "top_k",
    }
)
"""Fields of a chat that other APIs have no word for: their bodies may have them as they are."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A body as a chat."""

    chat: ChatRequest
    names: Names


def translated(body: WireRequest, said: Mapping[str, Any], names: Mapping[str, str]) -> Translated:
    """The chat that the body asks for. `said`: its fields, but for the shared ones. `names`: as `Names` has them.

    Raises RequestValidationError, which names the body's field, for what is no valid chat, and InvalidRequest for what
    only the answer to a chat has a place for.
    """
    diffusion = said.get("diffusion")
    if diffusion and diffusion.step_map:
        raise InvalidRequest(
            "`diffusion.step_map` tells the step of each token, and answers of this route list no tokens; "
            "`diffusion.trace` tells the steps.",
            "diffusion.step_map",
        )
    shared = {name: value for name, value in (body.model_extra or {}).items() if name in SHARED}
    given = {name: value for name, value in said.items() if value is not None}
    found = Names(names)
    try:
        return Translated(ChatRequest.model_validate({**shared, **given}), found)
    except ValidationError as error:
        wrong = error.errors()[0]
        path = found.of(".".join(map(str, wrong["loc"])))
        raise RequestValidationError([{**wrong, "loc": tuple(path.split("."))}]) from None
