"""Forty constraints with texts that must be accepted and texts that must not, and random texts of each."""

import json
import re

import pytest

from server.structured.budget import Budget
from server.structured.compiler import automaton
from server.structured.refusals import Refused
from tests.constrained.cases import REFUSED, VALID, spec_of, validate

from .walks import walks


def compiled(case):
    return automaton(spec_of(case), Budget())


def text_of(case, value):
    return json.dumps(value, ensure_ascii=False) if case["kind"] == "json_schema" else value


@pytest.mark.parametrize("case", VALID, ids=lambda case: case["name"])
def test_valid_is_accepted_invalid_is_not_and_what_comes_out_is_valid(case):
    found = compiled(case)
    assert [value for value in case["valid"] if not found.matches(text_of(case, value))] == []
    assert [value for value in case["invalid"] if found.matches(text_of(case, value))] == []
    for text in walks(found, 0, 20):
        validate(case, text.decode())


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_what_cannot_be_enforced_is_refused_by_name(case):
    keyword = "no value fits" if case["error"] == "schema" else case["error"]
    with pytest.raises(Refused, match=re.escape(keyword)):
        compiled(case)
