"""A body of /v1/responses as a chat, and what is made of this."""

from collections.abc import Mapping
from typing import Any

from server.protocols.generation_requests import conversed
from server.protocols.responses.items import PASSED_BY, CallItem, CallOutputItem, InputMessage, LeftOutPart
from server.protocols.responses.schema import LOGPROBS, AllowedTools, FunctionTool, NamedFunctionTool, ResponsesRequest
from server.protocols.responses.writer import PREFIX, ResponsesWriter
from server.protocols.service import Service
from server.protocols.translated import SHARED, Translated, translated
from server.protocols.unsupported import NEUTRAL_VALUES, REASONS, UnsupportedFields
from server.replies.generation import GenerationRequest

REFUSED: Mapping[str, tuple[object, ...]] = {
    **NEUTRAL_VALUES,
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "include_reasoning": (True,),
    "logprobs": (False, 0),
    "max_tokens": (),
    "messages": ([],),
    "n": (1,),
    "output_config": ({},),
    "output_format": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "stop_sequences": ([],),
    "system": ("", []),
}
"""Fields of other routes, and the values that mean nothing."""

REASONS_HERE: Mapping[str, str] = {
    **REASONS,
    "logprobs": f"`include` with `{LOGPROBS}` asks for them",
    "max_tokens": "responses have `max_output_tokens`",
    "max_completion_tokens": "responses have `max_output_tokens`",
    "messages": "responses have `input`",
    "n": "a response is one answer",
    "output_config": "responses have `text.format` and `reasoning.effort`",
    "output_format": "responses have `text.format`",
    "reasoning_effort": "responses have `reasoning.effort`",
    "response_format": "responses have `text.format`",
    "stop_sequences": "responses have `stop`",
    "system": "responses have `instructions`",
}

_NAMES = {
    "messages": "input",
    "prompt": "input",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "reasoning_effort": "reasoning.effort",
    "tool_choice.function": "tool_choice",
    "tool_choice.allowed_tools": "tool_choice",
}


async def from_responses(
    body: ResponsesRequest, asked: Translated, service: Service, tenant: str
) -> tuple[ResponsesWriter, GenerationRequest]:
    """The generation request, and the writer of the answer. `asked`: the body as a chat.

    Raises what `conversed` raises, in the words of a chat.
    """
    answer, request = await conversed(asked.chat, service, tenant, prefix=PREFIX, is_strict=False)
    return ResponsesWriter(answer, body, asked.chat.tools, request.sampling.temperature), request


def as_chat(body: ResponsesRequest, unsupported: UnsupportedFields) -> Translated:
    """The chat that the body asks for; what is passed by is logged.

    Raises InvalidRequest, or RequestValidationError.
    """
    unsupported.check(body, known=SHARED, refused=REFUSED, reasons=REASONS_HERE)
    names = dict(_NAMES)
    length = "input" if body.max_output_tokens is None else "max_output_tokens"
    names |= {"max_completion_tokens": length, "max_tokens": length}
    effort = body.reasoning.effort if body.reasoning else None
    said = {
        "model": body.model,
        "messages": _messages(body, unsupported, names),
        "tools": _tools(body, unsupported, names),
        "tool_choice": _choice(body),
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _format(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stop": list(body.stop),
        "logprobs": LOGPROBS in body.include or bool(body.top_logprobs),
        "top_logprobs": body.top_logprobs,
        "reasoning_effort": effort,
        "stream": body.stream,
        "diffusion": body.diffusion,
    }
    return translated(body, said, names)


def _messages(body: ResponsesRequest, unsupported: UnsupportedFields, names: dict[str, str]) -> list[dict[str, Any]]:
    """The turns. Calls that follow a message of the assistant are part of it; so are texts of the system of the first.

    A message of the assistant behind calls is part of their turn too: results follow calls at once. A template knows
    one turn of the system, and one turn of the assistant with all of its calls.
    """
    turns: list[dict[str, Any]] = []
    if body.instructions:
        names["messages.0"] = "instructions"
        turns.append({"role": "system", "content": body.instructions})
    for index, item in enumerate(body.input):
        place = f"messages.{len(turns)}"
        match item:
            case InputMessage(role="system" | "developer") if len(turns) == 1 and turns[0]["role"] == "system":
                turns[0]["content"] += f"\n\n{item.content}"
            case InputMessage(role="assistant") if turns and turns[-1].get("tool_calls"):
                before = turns[-1].get("content")
                turns[-1]["content"] = f"{before}\n{item.content}" if before else item.content
            case InputMessage():
                names[place] = f"input.{index}"
                role = "system" if item.role == "developer" else item.role
                turns.append({"role": role, "content": item.content})
            case CallItem():
                if not (turns and turns[-1]["role"] == "assistant"):
                    names[place] = f"input.{index}"
                    turns.append({"role": "assistant"})
                calls = turns[-1].setdefault("tool_calls", [])
                names[f"messages.{len(turns) - 1}.tool_calls.{len(calls)}"] = f"input.{index}"
                names[f"messages.{len(turns) - 1}.tool_calls.{len(calls)}.function"] = f"input.{index}"
                called = {"name": item.name, "arguments": item.arguments}
                calls.append({"id": item.call_id, "type": "function", "function": called})
            case CallOutputItem():
                names[place] = f"input.{index}"
                for part in item.output:
                    if isinstance(part, LeftOutPart):
                        unsupported.log(part.type, "in outputs of calls, parts of the type")
                text = "\n".join(part.said for part in item.output)
                turns.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
            case _ if item.type not in PASSED_BY:
                unsupported.log(item.type, "items of `input` of the type")
    return turns or [{"role": "user", "content": ""}]


def _tools(body: ResponsesRequest, unsupported: UnsupportedFields, names: dict[str, str]) -> list[dict[str, Any]]:
    """The functions."""
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(body.tools):
        if not isinstance(tool, FunctionTool):
            unsupported.log(tool.type, "tools of the type")
        else:
            names[f"tools.{len(tools)}"] = f"tools.{index}"
            names[f"tools.{len(tools)}.function"] = f"tools.{index}"
            said = {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            }
            tools.append({"type": "function", "function": said})
    return tools


def _choice(body: ResponsesRequest) -> str | dict[str, Any] | None:
    match body.tool_choice:
        case NamedFunctionTool(name=name):
            return {"type": "function", "function": {"name": name}}
        case AllowedTools(mode=mode, tools=tools):
            functions = [
                {"type": "function", "function": {"name": tool.name}} for tool in tools if tool.type == "function"
            ]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": functions}}
        case choice:
            return choice


def _format(body: ResponsesRequest) -> dict[str, Any] | None:
    asked = body.text.format if body.text else None
    if asked is None:
        return None
    if asked.type != "json_schema":
        return {"type": asked.type}
    return {"type": asked.type, "json_schema": {"name": asked.name, "schema": asked.schema_, "strict": asked.strict}}
