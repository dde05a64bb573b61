"""A body of /v1/messages as a chat, and what is made of this."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine import InvalidRequest
from server.errors import Stored
from server.protocols.generation_requests import conversation, conversed
from server.protocols.messages.content import (
    PASSED_BY,
    DocumentBlock,
    InputTurn,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from server.protocols.messages.schema import ConversationRequest, CustomTool, MessagesRequest, OutputFormat, TokenCount
from server.protocols.messages.writer import PREFIX, MessagesWriter
from server.protocols.service import Service
from server.protocols.translated import SHARED, Translated, translated
from server.protocols.unsupported import NEUTRAL_VALUES, REASONS, UnsupportedFields
from server.replies.generation import GenerationRequest

ANTHROPIC = frozenset(
    {
        "anthropic_beta",
        "anthropic_version",
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "inference_geo",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
"""Fields of Anthropic's API that have no bearing on an answer here."""
KNOWN = SHARED | ANTHROPIC | {"mcp_servers"}

REFUSED: Mapping[str, tuple[object, ...]] = {
    **NEUTRAL_VALUES,
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "include_reasoning": (True,),
    "input": ("", []),
    "instructions": ("",),
    "logprobs": (False, 0),
    "max_output_tokens": (),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "previous_response_id": (),
    "reasoning": ({},),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "stop": ("", []),
    "text": ({}, {"format": {"type": "text"}}),
}
"""Fields of other routes, and the values that mean nothing."""

REASONS_HERE: Mapping[str, str] = {
    **REASONS,
    "continue_final_message": "a last message of the assistant is gone on with",
    "input": "messages have `messages`",
    "instructions": "messages have `system`",
    "max_completion_tokens": "messages have `max_tokens`",
    "max_output_tokens": "messages have `max_tokens`",
    "n": "a message is one answer",
    "parallel_tool_calls": "`tool_choice.disable_parallel_tool_use` allows one call at most",
    "previous_response_id": "nothing is stored: `messages` are the whole conversation",
    "reasoning": "messages have `output_config.effort`",
    "reasoning_effort": "messages have `output_config.effort`",
    "response_format": "messages have `output_config.format`",
    "stop": "messages have `stop_sequences`",
    "text": "messages have `output_config.format`",
    "top_logprobs": "messages have no place for them",
}

_NAMES = {
    "prompt": "messages",
    "reasoning_effort": "output_config.effort",
    "tool_choice.function": "tool_choice",
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
}


async def from_messages(
    body: MessagesRequest, asked: Translated, service: Service, tenant: str
) -> tuple[MessagesWriter, GenerationRequest]:
    """The generation request, and the writer of the answer. `asked`: the body as a chat.

    `max_tokens` bounds the answer and need not fit the context. Raises what `conversed` raises, in the words of a chat.
    """
    answer, request = await conversed(asked.chat, service, tenant, prefix=PREFIX, is_strict=False)
    [prompt] = request.prompts
    is_bounded = body.max_tokens > service.engine.info.max_model_len - len(prompt.ids)
    return MessagesWriter(answer, is_bounded_by_context=is_bounded), replace(request, has_default_length=True)


async def count(asked: Translated, service: Service) -> TokenCount:
    """The tokens of the prompt. Raises InvalidRequest, in the words of a chat, or ModelNotFound."""
    service.models.resolve(asked.chat.model)
    return TokenCount(input_tokens=len((await conversation(asked.chat, service)).ids))


def as_chat(body: ConversationRequest, unsupported: UnsupportedFields) -> Translated:
    """The chat that the body asks for; what is passed by is logged.

    Raises InvalidRequest, or RequestValidationError.
    """
    unsupported.check(body, known=KNOWN, refused=REFUSED, reasons=REASONS_HERE)
    if body.thread is not None:
        raise Stored("`thread`: nothing is stored here: send the whole conversation as `messages`.", "thread")
    if (body.model_extra or {}).get("mcp_servers"):
        unsupported.log("mcp_servers")
    names = dict(_NAMES)
    choice = body.tool_choice
    turns = _turns(body, unsupported, names)
    goes_on = turns[-1]["role"] == "assistant"
    names["continue_final_message"] = f"messages.{len(body.messages) - 1}"
    said: dict[str, Any] = {
        "model": body.model,
        "messages": turns,
        "tools": _tools(body, unsupported, names),
        "tool_choice": _choice(body),
        "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
        "response_format": _format(body, names),
        "reasoning_effort": body.output_config.effort if body.output_config else None,
        "continue_final_message": goes_on,
    }
    if isinstance(body, MessagesRequest):
        said |= {
            "max_completion_tokens": body.max_tokens,
            "stop": list(body.stop_sequences),
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stream": body.stream,
            "diffusion": body.diffusion,
        }
    return translated(body, said, names)


def _turns(body: ConversationRequest, unsupported: UnsupportedFields, names: dict[str, str]) -> list[dict[str, Any]]:
    """The turns. Results are turns of their own, and so is each run of text between them."""
    turns: list[dict[str, Any]] = []
    if body.system:
        names["messages.0"] = "system"
        turns.append({"role": "system", "content": body.system})
    for index, message in enumerate(body.messages):
        _add(message, f"messages.{index}", turns, unsupported, names)
    return turns


def _add(
    message: InputTurn,
    path: str,
    turns: list[dict[str, Any]],
    unsupported: UnsupportedFields,
    names: dict[str, str],
) -> None:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []

    def end_text() -> None:
        names[f"messages.{len(turns)}"] = path
        turn = {"role": message.role, "content": "\n".join(texts), "tool_calls": list(calls)}
        turns.append({name: value for name, value in turn.items() if value or name != "tool_calls"})
        texts.clear()

    has_results = False
    for number, block in enumerate(message.content):
        place = f"{path}.content.{number}"
        match block:
            case TextBlock() | DocumentBlock():
                texts.append(block.text)
            case ToolUseBlock():
                _check_role(message, "assistant", place, block.type)
                called = f"messages.{len(turns)}.tool_calls.{len(calls)}.function"
                names |= {called: place, f"{called}.arguments": f"{place}.input"}
                arguments = json.dumps(block.input, ensure_ascii=False)
                calls.append(
                    {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}
                )
            case ToolResultBlock():
                _check_role(message, "user", place, block.type)
                if texts:
                    end_text()
                names[f"messages.{len(turns)}"] = place
                for part in block.left_out:
                    unsupported.log(part.type, "in results of tools, blocks of the type")
                text = "\n".join(part.text for part in block.content)
                turns.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
                has_results = True
            case _ if block.type not in PASSED_BY:
                unsupported.log(block.type, "blocks of the type")
    if texts or not has_results:
        end_text()


def _check_role(message: InputTurn, role: str, place: str, kind: str) -> None:
    if message.role != role:
        raise InvalidRequest(f"`{place}`: a block of type `{kind}` is only for messages of the {role}.", place)


def _tools(body: ConversationRequest, unsupported: UnsupportedFields, names: dict[str, str]) -> list[dict[str, Any]]:
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(body.tools):
        if not isinstance(tool, CustomTool):
            unsupported.log(tool.type, "tools of the type")
            continue
        place = f"tools.{len(tools)}"
        names |= {
            place: f"tools.{index}",
            f"{place}.function": f"tools.{index}",
            f"{place}.function.parameters": f"tools.{index}.input_schema",
        }
        said = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
        tools.append({"type": "function", "function": {**said, "strict": tool.strict}})
    return tools


def _choice(body: ConversationRequest) -> str | dict[str, Any] | None:
    match body.tool_choice:
        case None:
            return None
        case choice if choice.type == "tool":
            return {"type": "function", "function": {"name": choice.name}}
        case choice:
            return {"any": "required"}.get(choice.type, choice.type)


def _format(body: ConversationRequest, names: dict[str, str]) -> dict[str, Any] | None:
    """Raises InvalidRequest if two fields say what the answer must be."""
    said: dict[str, OutputFormat] = {}
    if body.output_config and body.output_config.format:
        said["output_config.format"] = body.output_config.format
    if body.output_format:
        said["output_format"] = body.output_format
    if len(said) > 1:
        first, second = said
        raise InvalidRequest(f"`{first}` and `{second}` both say what the answer must be; leave one out.", second)
    for name, asked in said.items():
        names |= {"response_format": name, "response_format.json_schema": name}
        return {"type": "json_schema", "json_schema": {"schema": asked.schema_}}
    return None
