"""Bodies of other APIs as a chat, and the way back for errors: these name fields as the client has sent them.

What a body of another API asks is said in the words of /v1/chat/completions, and is checked and converted there: types,
bounds, tools, constraints and prompts have one implementation.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from engine import InvalidRequest
from server.prompts.convert import ENGINE_NAMES
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

_QUOTED = re.compile(r"`([a-z_][\w.]*)`")


class Names:
    """The client's names of what a chat's fields were made of."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names`: dotted paths of the chat to those of the body; what lies within a path lies within its name."""
        self._names = names

    def of(self, path: str) -> str:
        """The name of the longest beginning of the path that has one, with the rest of the path."""
        known, rest = path, ""
        while known and known not in self._names:
            known, dot, last = known.rpartition(".")
            rest = f"{dot}{last}{rest}"
        return self._names[known] + rest if known else path

    @contextmanager
    def used(self) -> Iterator[None]:
        """Renames the fields that an InvalidRequest names: as `param`, and in its message."""
        try:
            yield
        except InvalidRequest as error:
            message = _QUOTED.sub(lambda found: f"`{self.of(found[1])}`", str(error))
            if error.param:
                begins = f"{error.param} "
                error.param = self.of(error.param)
                if message.startswith(begins):
                    message = f"{error.param} {message.removeprefix(begins)}"
            error.args = (message,)
            raise


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
    found = Names({**ENGINE_NAMES, **names})
    try:
        return Translated(ChatRequest.model_validate({**shared, **given}), found)
    except ValidationError as error:
        wrong = error.errors()[0]
        path = found.of(".".join(map(str, wrong["loc"])))
        raise RequestValidationError([{**wrong, "loc": tuple(path.split("."))}]) from None
