"""Writes the tables of fields in `docs/api.md` from the wire types: `python -m server.commands.api_table docs/api.md`.

A table is between two comments, `<!-- table: name -->` and `<!-- end -->`. Text around them is not changed.
"""

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from server.protocols.decisions.schema import DecisionQuestion, DecisionRequest
from server.protocols.messages.schema import MessagesRequest, OutputConfig, ToolChoice
from server.protocols.responses.schema import ResponsesRequest
from server.protocols.translated import SHARED
from server.protocols.unsupported import HARMLESS, MAX_LABEL_LENGTH, NEUTRAL_VALUES, REASONS
from server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    DiffusionRequest,
    Function,
    JsonSchemaFormat,
    ResponseFormat,
    SamplingRequest,
    StreamOptions,
    StructuredOutputs,
    TokenizeRequest,
)
from server.settings.tree import options

_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HUGE = 2**60
"""Bounds of at least this size only bound the wire's integers, and are left out of the tables."""


def updated(text: str) -> str:
    """The page with its tables rewritten. Raises KeyError for an unknown table name."""
    return _TABLE.sub(lambda found: found[1] + _TABLES[found[2]]() + found[3], text)


def _fields(model: type[BaseModel], without: Collection[str] = (), defaults: Mapping[str, object] | None = None) -> str:
    schema = model.model_json_schema()
    rows = []
    for name, field in schema["properties"].items():
        if name not in without:
            default = (defaults or {}).get(name, field.get("default"))
            shown = "required" if name in schema.get("required", ()) else "" if default is None else _code(default)
            rows.append((f"`{name}`", _type(field, schema.get("$defs", {})), shown, field.get("description", "")))
    return _rows(("field", "type", "default", "meaning"), rows)


def _type(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """The type in words. null is left out of it, because null is the same as leaving the field out."""
    if "$ref" in schema:
        return _type(defs[schema["$ref"].rpartition("/")[2]], defs)
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(map(_code, choices))
    if "anyOf" in schema:
        kinds = [_type(kind, defs) for kind in schema["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    match schema.get("type"):
        case "integer" | "number":
            return f"{schema['type']}{_range(schema)}"
        case "array":
            return f"list of {_type(schema['items'], defs)}{_at_most(schema, 'maxItems', '')}"
        case "string":
            return f"string{_at_most(schema, 'maxLength', ' characters')}"
        case "object" if pattern := schema.get("patternProperties"):
            return f"map to {_type(next(iter(pattern.values())), defs)}{_at_most(schema, 'maxProperties', '')}"
        case kind:
            return kind or ""


def _at_most(schema: Mapping[str, Any], key: str, unit: str) -> str:
    return f" (at most {schema[key]}{unit})" if key in schema else ""


def _range(schema: Mapping[str, Any]) -> str:
    if schema.get("minimum", -_HUGE) > -_HUGE and schema.get("maximum", _HUGE) < _HUGE:
        return f" {schema['minimum']:g} to {schema['maximum']:g}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {schema[key]:g}" for key, word in words.items() if abs(schema.get(key, _HUGE)) < _HUGE]
    return f" {' and '.join(bounds)}" if bounds else ""


def _refused() -> str:
    rows = [
        (f"`{name}`", ", ".join(map(_code, values)) or "null", REASONS.get(name, ""))
        for name, values in sorted(NEUTRAL_VALUES.items())
    ]
    return _rows(("field", "accepted only as", ""), rows)


def _ignored() -> str:
    names = ", ".join(f"`{name}`" for name in sorted(HARMLESS))
    return f"{names}. A text in one of them may hold {MAX_LABEL_LENGTH} characters; so may each in `metadata`.\n"


def _shared() -> str:
    return ", ".join(f"`{name}`" for name in sorted(SHARED)) + ".\n"


def _code(value: object) -> str:
    return f"`{json.dumps(value)}`"


def _rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in cells)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


_TABLES: Mapping[str, Callable[[], str]] = {
    "completions": lambda: _fields(CompletionRequest, without=SamplingRequest.model_fields),
    "chat": lambda: _fields(ChatRequest, without=SamplingRequest.model_fields),
    "sampling": lambda: _fields(SamplingRequest),
    "stream_options": lambda: _fields(StreamOptions),
    "response_format": lambda: _fields(ResponseFormat),
    "json_schema": lambda: _fields(JsonSchemaFormat),
    "structured_outputs": lambda: _fields(StructuredOutputs),
    "diffusion": lambda: _fields(
        DiffusionRequest, defaults={o.name: o.default for o in options().values() if o.section == "diffusion"}
    ),
    "function": lambda: _fields(Function),
    "decisions": lambda: _fields(DecisionRequest),
    "decision_question": lambda: _fields(DecisionQuestion),
    "tokenize": lambda: _fields(TokenizeRequest),
    "detokenize": lambda: _fields(DetokenizeRequest),
    "responses": lambda: _fields(ResponsesRequest),
    "messages": lambda: _fields(MessagesRequest),
    "output_config": lambda: _fields(OutputConfig),
    "messages_tool_choice": lambda: _fields(ToolChoice),
    "shared": _shared,
    "refused": _refused,
    "ignored": _ignored,
}


def main(argv: Sequence[str]) -> int:
    [path] = map(Path, argv)
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
