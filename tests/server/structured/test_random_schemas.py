"""Random schemas, bounds and regexes: what comes out is valid, and what is valid is accepted where that is promised."""

import json
import re
from decimal import Decimal

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from server.structured.budget import Budget
from server.structured.refusals import Malformed, NoValue, Refused, Unsupported
from server.structured.regex.expressions import automaton
from server.structured.regex.regex import parsed
from server.structured.schema import schema

from .walks import walks

pytestmark = pytest.mark.slow

SLOW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
NAMES = ["a", "b", "é c"]
SCALARS = [None, True, False, 0, 1, -3, 2.5, "", "a", "bb", "é c"]
integers = st.integers(-1200, 1200)
tenths = st.integers(-400, 400).map(lambda tenth: tenth / 10)


def is_valid(constraint, value):
    return jsonschema.Draft202012Validator(constraint, format_checker=jsonschema.FormatChecker()).is_valid(value)


def compiled(constraint):
    """The automaton, or None if nothing fits."""
    try:
        return schema.automaton(constraint, Budget())
    except NoValue:
        return None


@st.composite
def bounded(draw, kind, numbers):
    bounds = draw(
        st.dictionaries(
            st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), numbers, max_size=3
        )
    )
    return {"type": kind, **bounds}


@given(bounded("integer", st.one_of(integers, tenths)), st.lists(integers, min_size=20), st.integers(1, 15))
@SLOW
def test_integers_between_bounds(constraint, values, divisor):
    constraint["multipleOf"] = divisor
    found = compiled(constraint)
    near = {int(bound) + step for key, bound in constraint.items() if key != "type" for step in range(-16, 17)}
    for value in [*values, *near]:
        assert (found is not None and found.matches(str(value))) == is_valid(constraint, value), value
    if found:
        for text in walks(found, 0, 5):
            assert is_valid(constraint, json.loads(text))


@given(bounded("number", st.one_of(integers, tenths)), st.lists(tenths, min_size=20))
@SLOW
def test_decimals_between_bounds(constraint, values):
    found = compiled(constraint)
    exact = {key: bound if key == "type" else Decimal(str(bound)) for key, bound in constraint.items()}
    near = [bound + Decimal(step) / 100 for bound in list(exact.values())[1:] for step in range(-11, 12)]
    for value in [*(Decimal(str(value)) for value in values), *near]:
        spelled = format(value, "f")
        assert (found is not None and found.matches(spelled)) == is_valid(exact, value), spelled
    if found:
        for text in walks(found, 0, 3):
            assert is_valid(exact, json.loads(text, parse_float=Decimal))


scalars = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {}, True, {"type": ["string", "null"]}]),
    bounded("integer", integers),
    bounded("number", tenths),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 2),
            "maxLength": st.integers(2, 4),
            "pattern": st.sampled_from(["^[ab]*$", "b", "^.{1,2}$", "é"]),
        },
    ),
    st.lists(st.sampled_from(SCALARS), min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.sampled_from(SCALARS).map(lambda value: {"const": value}),
)


def objects(inner):
    return st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)},
        optional={
            "required": st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "not": st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(
                lambda names: {"required": names}
            ),
            "dependentRequired": st.dictionaries(
                st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=2, unique=True), max_size=2
            ),
        },
    )


def maps(inner):
    return st.fixed_dictionaries(
        {"type": st.just("object"), "additionalProperties": inner},
        optional={
            "propertyNames": st.sampled_from([{"pattern": "^[ab]+$"}, {"maxLength": 2}]),
            "maxProperties": st.integers(0, 3),
        },
    )


def arrays(inner):
    return st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(1, 3),
            "uniqueItems": st.booleans(),
        },
    )


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        objects(inner),
        maps(inner),
        arrays(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"oneOf": options}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"allOf": parts}),
    ),
    max_leaves=6,
)
values = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
    max_leaves=5,
)


@given(schemas, st.lists(values, min_size=5, max_size=30))
@settings(SLOW, max_examples=60)
def test_nothing_invalid_is_accepted_or_comes_out(constraint, instances):
    try:
        found = schema.automaton(constraint, Budget())
    except Refused:
        return
    for text in walks(found, 0, 6):
        assert is_valid(constraint, json.loads(text)), text
    for value in instances:
        if found.matches(json.dumps(value, ensure_ascii=False)):
            assert is_valid(constraint, value), value


@st.composite
def plain(draw, depth=2):
    """Schemas of which every instance may come out, and one instance, its properties in order."""
    kind = draw(st.sampled_from(["scalar", "enum", "object", "array", "any"] if depth else ["scalar", "enum"]))
    if kind == "scalar":
        constraint = draw(
            st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "integer"}, {"type": "string"}])
        )
        value = {
            "null": None,
            "boolean": draw(st.booleans()),
            "integer": draw(integers),
            "string": draw(st.text(max_size=5)),
        }
        return constraint, value[constraint["type"]]
    if kind == "enum":
        listed = draw(st.lists(st.sampled_from(SCALARS), min_size=1, max_size=4))
        return {"enum": listed}, draw(st.sampled_from(listed))
    parts = draw(st.lists(plain(depth=depth - 1), min_size=1, max_size=3))
    if kind == "any":
        return {"anyOf": [part for part, _ in parts]}, draw(st.sampled_from([value for _, value in parts]))
    if kind == "array":
        constraint, _ = parts[0]
        length = draw(st.integers(0, 3))
        prefix = {"prefixItems": [part for part, _ in parts], "items": False}
        if draw(st.booleans()):
            return {"type": "array", **prefix, "minItems": 0}, [value for _, value in parts][:length]
        return {"type": "array", "items": constraint, "maxItems": 3}, [parts[0][1]] * length
    names = draw(st.lists(st.text(max_size=4), min_size=len(parts), max_size=len(parts), unique=True))
    required = draw(st.lists(st.sampled_from(names), unique=True))
    properties = {name: part for name, (part, _) in zip(names, parts, strict=True)}
    value = {
        name: value for name, (_, value) in zip(names, parts, strict=True) if name in required or draw(st.booleans())
    }
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}, value


@given(plain())
@settings(SLOW, max_examples=60)
def test_what_is_valid_and_in_order_is_accepted(drawn):
    constraint, value = drawn
    assume(is_valid(constraint, value))
    found = schema.automaton(constraint, Budget())
    assert found.matches(json.dumps(value, ensure_ascii=False))
    assert found.matches(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


@pytest.mark.parametrize("is_search", [True, False])
@given(st.text(alphabet=r"ab1é.^$()[]|*+?{},-\dws", max_size=9), st.lists(st.text(alphabet="ab1é-{,", max_size=5)))
@settings(SLOW, max_examples=150)
def test_any_text_is_a_regex_of_pythons_meaning_or_is_refused(is_search, pattern, texts):
    assume("^" not in pattern.partition("$")[2])  # nothing is said to match there
    try:
        found = automaton(parsed(pattern), Budget(), is_search=is_search)
    except NoValue:
        found = None
    except (Malformed, Unsupported):
        return
    try:
        expected = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    except re.error:
        return
    for text in texts:
        matched = expected.search(text) if is_search else expected.fullmatch(text)
        assert (found is not None and found.matches(text)) == bool(matched), (pattern, text)
