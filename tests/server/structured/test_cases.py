"""Forty constraints with texts that must be accepted and texts that must not, and random texts of each."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from server.structured import choice
from server.structured.budget import Budget
from server.structured.refusals import Refused
from server.structured.regex import expressions, regex
from server.structured.schema import schema

from .walks import walks

CASES = json.loads((Path(__file__).parents[2] / "data" / "structured" / "cases.json").read_text())


def compiled(case):
    constraint = case["constraint"]
    match case["kind"]:
        case "json_schema":
            return schema.automaton(constraint, Budget())
        case "json_object":
            return schema.automaton(schema.ANY_OBJECT, Budget())
        case "regex":
            return expressions.automaton(regex.parsed(constraint), Budget(), is_search=False)
    return choice.automaton(constraint, Budget())


def text_of(case, value):
    return json.dumps(value, ensure_ascii=False) if case["kind"] == "json_schema" else value


def validate(case, text):
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


@pytest.mark.parametrize("case", [case for case in CASES if "error" not in case], ids=lambda case: case["name"])
def test_valid_is_accepted_invalid_is_not_and_what_comes_out_is_valid(case):
    found = compiled(case)
    assert [value for value in case["valid"] if not found.matches(text_of(case, value))] == []
    assert [value for value in case["invalid"] if found.matches(text_of(case, value))] == []
    for text in walks(found, 0, 20):
        validate(case, text.decode())


@pytest.mark.parametrize("case", [case for case in CASES if "error" in case], ids=lambda case: case["name"])
def test_what_cannot_be_enforced_is_refused_by_name(case):
    keyword = "no value fits" if case["error"] == "schema" else case["error"]
    with pytest.raises(Refused, match=re.escape(keyword)):
        compiled(case)
