"""Bodies of /v1/decisions as conversations and questions."""

import json
from collections.abc import Sequence
from typing import Any

from engine import InvalidRequest
from server.decisions.questions import Option, Question, predicate
from server.protocols.decisions.items import DecisionItem
from server.protocols.decisions.schema import DecisionDiffusion, DecisionQuestion, DecisionRequest
from server.schemas.template import KNOWN_ROLES


def turns_of(asked: DecisionRequest) -> list[dict[str, Any]]:
    """The input as the turns of a conversation. Calls that follow each other are one turn."""
    turns: list[dict[str, Any]] = []
    for item in asked.input:
        if call := _call(item):
            if not (turns and turns[-1]["role"] == "assistant"):
                turns.append({"role": "assistant", "content": ""})
            turns[-1].setdefault("tool_calls", []).append(call)
        elif item.role:
            turns.append({"role": KNOWN_ROLES.get(item.role, item.role), "content": item.content or ""})
        else:
            turns.append({"role": "tool", "content": item.output or "", "tool_call_id": item.call_id})
    return turns


def _call(item: DecisionItem) -> dict[str, Any] | None:
    """A custom tool's input is the one argument of a function of its name."""
    if item.type == "function_call":
        arguments = item.arguments or ""
    elif item.type == "custom_tool_call":
        arguments = json.dumps({"input": item.input}, ensure_ascii=False)
    else:
        return None
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": arguments}}


def questions_of(asked: DecisionRequest) -> list[Question]:
    """The questions, in order."""
    return list(map(_question, asked.questions))


def _question(asked: DecisionQuestion) -> Question:
    match asked.type:
        case "predicate":
            return predicate(asked.instructions)
        case "choice":
            options = [(_text(option.value), option.description) for option in asked.choices or ()]
        case "score":
            options = [(level.label, level.description) for level in asked.levels or ()]
    return Question(
        kind=asked.type,
        instructions=asked.instructions,
        options=tuple(Option(text=text, description=description or None) for text, description in options),
    )


def _text(value: str | bool) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def is_joint(asked: DecisionRequest) -> bool:
    """Whether all questions go on one canvas. Raises InvalidRequest for other fields of `diffusion`."""
    if asked.diffusion is None:
        return False
    names: Sequence[str] = list(asked.diffusion.model_extra or ())
    if names:
        raise InvalidRequest(
            f"`diffusion.{names[0]:.100}` is not a known field of decisions, which are not decoded; known is "
            f"{', '.join(DecisionDiffusion.model_fields)}.",
            f"diffusion.{names[0]:.100}",
        )
    return asked.diffusion.joint
