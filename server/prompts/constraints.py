"""What a body says of its answer's form, as a spec, and the constraint that is compiled of it.

Several fields may say it, of which one counts: two are an error.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from engine import InvalidRequest
from server.constraints import Compiled, Constraints
from server.schemas import ConstrainedRequest
from server.structured import spec
from server.structured.refusals import Malformed, Refused
from server.structured.schema.writer import Whitespace
from server.structured.spec import Spec

_Says = tuple[str, Callable[[], Spec]]
"""The field, and what makes a spec of it, which may raise Refused."""


async def compiled(body: ConstrainedRequest, constraints: Constraints, whitespace: Whitespace) -> Compiled | None:
    """The constraint of the body's answer; None if it has none. `whitespace`: the server's default.

    Raises InvalidRequest, which names the field, or EngineUnavailable.
    """
    said = list(_said(body, whitespace))
    if not said:
        return None
    (param, make), *others = said
    if others:
        raise InvalidRequest(
            f"`{param}` and `{others[0][0]}` both say what the answer must be; leave one of them out.", others[0][0]
        )
    try:
        return await constraints.compiled(make())
    except Refused as error:
        raise InvalidRequest(f"`{param}`: {error}.", param) from None


def _said(body: ConstrainedRequest, whitespace: Whitespace) -> Iterator[_Says]:
    asked = body.response_format
    if asked and asked.type == "json_object":
        yield "response_format", lambda: spec.of_object(whitespace)
    elif asked and asked.json_schema and asked.type == "json_schema":
        schema = asked.json_schema.schema_
        yield "response_format.json_schema.schema", lambda: spec.of_schema(schema, whitespace)
    yield from _in_vllms_words(body, whitespace)
    if body.guided_json not in (None, {}, ""):
        yield "guided_json", partial(_of_json, body.guided_json, whitespace)
    if body.guided_regex:
        yield "guided_regex", partial(spec.of_regex, body.guided_regex)
    if body.guided_choice:
        yield "guided_choice", partial(spec.of_choice, body.guided_choice)
    if body.guided_grammar:
        yield "guided_grammar", partial(spec.of_grammar, body.guided_grammar)


def _in_vllms_words(body: ConstrainedRequest, whitespace: Whitespace) -> Iterator[_Says]:
    asked = body.structured_outputs
    if asked is None:
        return
    if asked.disable_any_whitespace:
        whitespace = "compact"
    if asked.json_ is not None:
        yield "structured_outputs.json", partial(_of_json, asked.json_, whitespace)
    if asked.json_object:
        yield "structured_outputs.json_object", partial(spec.of_object, whitespace)
    if asked.regex is not None:
        yield "structured_outputs.regex", partial(spec.of_regex, asked.regex)
    if asked.choice is not None:
        yield "structured_outputs.choice", partial(spec.of_choice, asked.choice)
    if asked.grammar is not None:
        yield "structured_outputs.grammar", partial(spec.of_grammar, asked.grammar)


def _of_json(schema: Any, whitespace: Whitespace) -> Spec:
    """Of a schema that may be written as a text."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise Malformed("the text is no JSON") from None
    return spec.of_schema(schema, whitespace)
