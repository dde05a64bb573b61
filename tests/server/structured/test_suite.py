"""JSON-Schema-Test-Suite, draft 2020-12: nothing invalid is accepted or comes out; what is not enforced is refused."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from server.structured import refusals
from server.structured.budget import Budget
from server.structured.schema import schema

from .walks import walks

GROUPS = json.loads((Path(__file__).parents[2] / "data" / "structured" / "json-schema-test-suite.json").read_text())
FEW, OTHERS = GROUPS[::6], [group for number, group in enumerate(GROUPS) if number % 6]


def check(group):
    if "refused" in group:
        with pytest.raises(getattr(refusals, group["refused"])) as refused:
            schema.automaton(group["schema"], Budget())
        assert re.search(r"`[$\w]+`|no value fits", str(refused.value))
        return
    found = schema.automaton(group["schema"], Budget())
    assert [value for value in group["invalid"] if found.matches(json.dumps(value, ensure_ascii=False))] == []
    checker = None if "format/time" in group["name"] else jsonschema.FormatChecker()
    validator = jsonschema.Draft202012Validator(group["schema"], format_checker=checker)
    for text in walks(found, 0, 4):
        validator.validate(json.loads(text))


@pytest.mark.parametrize("group", FEW, ids=lambda group: group["name"])
def test_a_sixth_of_the_suite(group):
    check(group)


@pytest.mark.slow
@pytest.mark.parametrize("group", OTHERS, ids=lambda group: group["name"])
def test_the_rest_of_the_suite(group):
    check(group)
