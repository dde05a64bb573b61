"""The constraints of `tests/data/structured/cases.json`, some of tools; and what is in their texts, by other means."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema

from server.replies.tool_calls import Content, ToolCallReader, whole_calls
from server.structured import spec
from server.structured.spec import Spec
from server.structured.tools import CallableFunction

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "structured" / "cases.json").read_text(encoding="utf-8")
)
LOOK = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 7]}},
    "required": ["place"],
    "additionalProperties": False,
}
PARAMETERS = {"look": LOOK, "now": {"type": "object", "maxProperties": 0}}
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
ROME = '<tool_call>\n{"name": "look", "arguments": {"place": "Rome", "days": 7}}\n</tool_call>'
NOWHERE = '<tool_call>\n{"name": "look", "arguments": {"days": 7}}\n</tool_call>'
TOOLS = [
    {
        "name": f"tools, {policy}, {'parallel' if is_parallel else 'one'}{', content' if content else ''}",
        "kind": "tools",
        "constraint": {"policy": policy, "is_parallel": is_parallel, "content": content},
        "valid": [NOW, ROME, *valid],
        "invalid": [NOWHERE, f"{NOW}{ROME}", f"{ROME} ", *invalid],
    }
    for policy, is_parallel, content, valid, invalid in (
        ("auto", True, None, ["", "Hello <tool_cal", f"Well: {NOW}\n{ROME}"], ["<tool_call>"]),
        ("auto", False, {"type": "integer"}, ["7"], ["", "Hello", f"7{NOW}"]),
        ("required", True, None, [f"{NOW}\n{ROME}"], ["", f" {NOW}", "Hello"]),
        ("required", False, None, [], [f"{NOW}\n{ROME}", ""]),
    )
]
VALID = [*(case for case in CASES if "error" not in case), *TOOLS]
REFUSED = [case for case in CASES if "error" in case]


def spec_of(case: dict[str, Any]) -> Spec:
    constraint = case["constraint"]
    match case["kind"]:
        case "json_schema":
            return spec.of_schema(constraint)
        case "json_object":
            return spec.of_object()
        case "regex":
            return spec.of_regex(constraint)
        case "tools":
            return spec.of_tools([CallableFunction("look", LOOK), CallableFunction("now")], **constraint)
    return spec.of_choice(constraint)


def validate(case: dict[str, Any], text: str) -> None:
    """Fails for a text that is not of the case, as `jsonschema` and `re` read it."""
    match case["kind"]:
        case "json_schema":
            checker = jsonschema.FormatChecker()
            jsonschema.Draft202012Validator(case["constraint"], format_checker=checker).validate(json.loads(text))
        case "json_object":
            assert isinstance(json.loads(text), dict)
        case "regex":
            assert re.fullmatch(case["constraint"], text)
        case "tools":
            validate_calls(text, **case["constraint"])
        case "choice":
            assert text in case["constraint"]


def validate_calls(text: str, policy: str, is_parallel: bool, content: Any) -> None:
    reader = ToolCallReader()
    parts = reader.push(text, last=True)
    said = "".join(part.text for part in parts if isinstance(part, Content))
    calls = whole_calls(part for part in parts if not isinstance(part, Content))
    assert not reader.is_amid_call
    assert "<tool_call>" not in said
    assert calls or policy == "auto"
    assert is_parallel or len(calls) <= 1
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name or ""])
    if content is not None and not calls:
        jsonschema.validate(json.loads(said), content)
    assert not said or policy == "auto"
