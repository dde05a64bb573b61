"""What a body says of its answer's form, as a spec, and the constraint that is compiled of it.

Several fields may say it, of which one counts: two are an error.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from engine import InvalidRequest, check_constrained
from server.constraints import Compiled, Constraints
from server.schemas import ChatRequest, ConstrainedRequest, NamedTool, Tool
from server.structured import spec
from server.structured.refusals import Malformed, Refused
from server.structured.schema.writer import Whitespace
from server.structured.spec import Spec
from server.structured.tools import PLACE, CallableFunction

_Says = tuple[str, Callable[[], Spec]]
"""The field, and what makes a spec of it, which may raise Refused."""


def is_constrained(body: ConstrainedRequest) -> bool:
    """Whether some field says what the answer must be."""
    return any(_said(body, "flexible"))


async def compiled(
    body: ConstrainedRequest, constraints: Constraints, whitespace: Whitespace, tenant: str, unmask: str
) -> Compiled | None:
    """The constraint of the body's answer; None if it has none. `whitespace`: the server's default.

    Raises InvalidRequest, which names the field, or what `Constraints.compiled` raises besides refusals. Nothing is
    compiled that the policy `unmask` cannot be held to.
    """
    said = _one_of(_said(body, whitespace))
    if said is None:
        return None
    param, make = said
    check_constrained(unmask, param)
    with _naming(param):
        return await constraints.compiled(make(), tenant)


async def compiled_chat(
    body: ChatRequest,
    constraints: Constraints,
    whitespace: Whitespace,
    tenant: str,
    unmask: str,
    *,
    is_strict: bool = True,
) -> Compiled | None:
    """The same of a chat, whose answer may call tools. `is_strict`: all tools are, whatever they say of themselves.

    What else the body says of the answer, it then says of the text that stands in place of calls. Only a schema can be
    said of it. Where a call is required there is no such text: what is said of it is read, but neither compiled nor
    refused for what it asks.
    """
    if not body.shown_tools:
        return await compiled(body, constraints, whitespace, tenant, unmask)
    check_constrained(unmask, "tools")
    said = _one_of(_said(body, whitespace))
    content_param, content = None, None
    if said:
        content_param, make = said
        with _naming(content_param):
            content = make()
        if content.kind != "schema" and not body.must_call:
            raise InvalidRequest(
                f"`{content_param}` cannot stand beside `tools`; leave one of them out.", content_param
            )
    with _naming("tools", body.tools, content_param):
        return await constraints.compiled(_of_tools(body, content, whitespace, is_strict), tenant)


def _of_tools(body: ChatRequest, content: Spec | None, whitespace: Whitespace, is_strict: bool) -> Spec:
    """A named tool is required, as the only one, and not in parallel."""
    choice = body.tool_choice
    functions = [tool.function for tool in body.shown_tools]
    if isinstance(choice, NamedTool):
        functions = [function for function in functions if function.name == choice.function.name]
    return spec.of_tools(
        [
            CallableFunction(function.name, _of_object(function.parameters), is_strict or function.strict is True)
            for function in functions
        ],
        "required" if body.must_call else "auto",
        content.whitespace if content else whitespace,
        is_parallel=body.parallel_tool_calls and not isinstance(choice, NamedTool),
        content=json.loads(content.source) if content and not body.must_call else None,
    )


def _of_object(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The schema, which may leave out that arguments are an object."""
    return {"type": "object", **parameters} if parameters else None


def _one_of(said: Iterable[_Says]) -> _Says | None:
    """Raises InvalidRequest if there are several."""
    fields = list(said)
    if len(fields) > 1:
        (first, _), (second, _), *_ = fields
        raise InvalidRequest(
            f"`{first}` and `{second}` both say what the answer must be; leave one of them out.", second
        )
    return fields[0] if fields else None


@contextmanager
def _naming(param: str, tools: Sequence[Tool] = (), content: str | None = None) -> Iterator[None]:
    """Turns a refusal into InvalidRequest, which names the field that the refusal's place lies in, or else `param`.

    `tools`: a place in one of them names it. `content`: the field of the schema that other places lie in.
    """
    try:
        yield
    except Refused as error:
        cause = error
        if content and "#" in error.place:
            param = content
        for index, tool in enumerate(tools):
            where = f"{PLACE}{tool.function.name}/parameters"
            if where in error.place:
                param = f"tools.{index}.function.parameters"
                cause = type(error)(error.cause, error.place.replace(where, "#"))
        raise InvalidRequest(f"`{param}`: {cause}.", param) from None


def _said(body: ConstrainedRequest, whitespace: Whitespace) -> Iterator[_Says]:
    if body.structured_outputs and body.structured_outputs.disable_any_whitespace:
        whitespace = "compact"
    asked = body.response_format
    if asked and asked.json_schema:
        yield "response_format.json_schema.schema", partial(spec.of_schema, asked.json_schema.schema_, whitespace)
    elif asked and asked.schema_ is not None:
        yield "response_format.schema", partial(spec.of_schema, asked.schema_, whitespace)
    elif asked and asked.type == "json_object":
        yield "response_format", partial(spec.of_object, whitespace)
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
        spec.check_size("schema", len(schema))
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise Malformed("the text is no JSON") from None
    return spec.of_schema(schema, whitespace)
