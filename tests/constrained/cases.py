"""The constraints of `tests/data/structured/cases.json`: compiled, and what their texts must be, by other means."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema

from server.structured import spec
from server.structured.spec import Spec

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "structured" / "cases.json").read_text(encoding="utf-8")
)
VALID = [case for case in CASES if "error" not in case]
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
        case "choice":
            assert text in case["constraint"]
