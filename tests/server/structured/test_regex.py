"""Regexes mean what Python's mean, as far as both have them; what is not supported is named."""

import re
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.structured.budget import Budget
from server.structured.refusals import Malformed, NoValue, Refused, TooLarge, Unsupported
from server.structured.regex.expressions import automaton
from server.structured.regex.regex import parsed

from .calls import clock_of_calls
from .walks import walks


def compiled(pattern, budget=None, *, is_search=False):
    return automaton(parsed(pattern), budget or Budget(), is_search=is_search)


ATOMS = ["a", "b", "é", r"\d", r"\w", r"[^a]", "[a-c]", ".", r"\.", "[é-ü]", r"\x61", r"\u00e9", r"[\d\-x]"]
TEXTS = st.text(alphabet="abcé1. -ü€\n", max_size=6)
patterns = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda items: f"(?:{'|'.join(items)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)
anchored = st.tuples(st.sampled_from(["", "^"]), patterns, st.sampled_from(["", r"$"])).map("".join)


@given(anchored, st.lists(TEXTS, min_size=1, max_size=8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_same_texts_match_as_in_python(pattern, texts, is_search):
    found = compiled(pattern, is_search=is_search)
    expected = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    for text in texts:
        matched = expected.search(text) if is_search else expected.fullmatch(text)
        assert found.matches(text) == bool(matched), text


ahead = st.tuples(st.sampled_from("=!"), patterns, st.sampled_from(["", "$"])).map("".join).map("(?{})".format)
looking = st.lists(
    st.one_of(
        patterns,
        ahead,
        st.tuples(ahead, patterns, patterns, st.sampled_from(["", "?", "{1,2}"])).map(
            lambda parts: "(?:{}{}|{}){}".format(*parts)
        ),
        st.tuples(st.sampled_from("=!"), ahead, patterns).map(lambda parts: "(?{}{}{})".format(*parts)),
    ),
    min_size=1,
    max_size=4,
).map("".join)
looking = st.tuples(st.sampled_from(["", "^"]), looking, st.sampled_from(["", "$"])).map("".join)


@pytest.mark.slow
@given(looking, st.lists(TEXTS, min_size=1, max_size=12), st.booleans())
@settings(max_examples=30, deadline=None)
def test_look_aheads_mean_what_they_mean_in_python(pattern, texts, is_search):
    try:
        found = compiled(pattern, is_search=is_search)
    except NoValue:
        found = None
    expected = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    for text in [*texts, "", "a", "b", "ab", "ba", "aa"]:
        matched = expected.search(text) if is_search else expected.fullmatch(text)
        assert (found is not None and found.matches(text)) == bool(matched), text
    if found and not is_search:
        for raw in walks(found, 0, 5):
            # `.` reads fewer line ends in Python's words
            assert expected.fullmatch(raw.decode()) or re.search("[\r\u2028\u2029]", raw.decode())


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"^(?!\.)(?!.*\.\.)[a-z.]+$", ["a", "a.b", "a."], [".a", "a..b", ""]),
        (r"^(?=.*\d)(?=.*[a-z]).{3,5}$", ["a1b", "12a", "abcd1"], ["abc", "123", "a1", "abcde1"]),
        (r"^(?=.{1,4}$)[ab]+$", ["a", "abab"], ["", "ababa"]),
        (r"^(?!(?:no|off)$)[a-z]+$", ["yes", "non", "o"], ["no", "off"]),
        (r"(?!a)b", ["b", "ab"], ["a"]),
        (r"(?=a$)", ["a", "ba"], ["ab", ""]),
        (r"(?=a)^a$(?!b)", ["a"], ["b", "aa"]),
        (r"$(?!$)|x", ["x"], ["", "a"]),
        (r"^(?!$)", ["a"], [""]),
        (r"^P(?:\dW|(?!.*W)(?=\d|T)(\dD)?(T(?=\d)(\dH)?)?)$", ["P1W", "P1D", "PT1H", "P1DT1H"], ["P", "PT", "P1DT"]),
        (r"^(?:a(?!b)|b){0,3}$", ["", "aa", "ba", "bba"], ["ab", "bab", "aaaa"]),
        (r"^(?!é)(?!€).$", ["ü"], ["é", "€"]),
    ],
)
def test_look_aheads(pattern, yes, no):
    found = compiled(pattern, is_search=True)
    assert [text for text in yes if not found.matches(text)] == []
    assert [text for text in no if found.matches(text)] == []


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        ("(?:(?!ab).)*", "repetition without bound"),
        ("a(?!^b)", "`\\^` in a look-ahead"),
        ("(?=a)" * 200, "128"),
        ("((?=a)|b){0,4000}", "128"),
    ],
)
def test_look_aheads_that_are_refused(pattern, cause):
    with pytest.raises(Unsupported, match=cause):
        compiled(pattern)


@given(anchored)
@settings(max_examples=20, deadline=None)
def test_what_is_generated_matches_in_python(pattern):
    for text in walks(compiled(pattern), 0, 5):
        assert re.fullmatch(pattern, text.decode())


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"(^a|b)c$", ["ac", "xbc"], ["xac", "bcx"]),
        (r"x(a|$)", ["xa", "bx", "xab"], ["xb"]),
        (r"^$", [""], ["a"]),
        (r"^(^a|b)$", ["a", "b"], ["ab", "xa", ""]),
        (r"(^|x)(^a|b)(c$|$)$", ["a", "b", "bc", "zxb", "xbc"], ["xa", "ca"]),
        (r"^(^(^a|b)|^^c)", ["a", "bx", "c"], ["xa"]),
        (r"^(?:yes|no)$", ["yes", "no"], ["yesno", "ayes"]),
        (r"(?<year>\d{4})(?P<rest>x)?", ["2026", "2026x"], ["202"]),
        (r"a{,2}", ["a{,2}"], ["aa"]),
        (r"[]a]", [], ["]", "a"]),
        (r"\cJ|a", None, None),
    ],
)
def test_searches(pattern, yes, no):
    if yes is None or not yes:
        with pytest.raises(Refused):
            compiled(pattern, is_search=True)
        return
    found = compiled(pattern, is_search=True)
    assert [text for text in yes if not found.matches(text)] == []
    assert [text for text in no if found.matches(text)] == []


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(?=a)*b", "repeated anchor or look-ahead"),
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "look-behind"),
        ("(?i)a", "flag"),
        ("(?>a)b", "atomic group"),
        (r"(a)\1", "back-reference"),
        (r"(?P<x>a)\k<x>", "back-reference"),
        (r"\bcat\b", "word boundary"),
        (r"\p{L}", "Unicode property"),
        (r"\Aa", r"\\A"),
        ("a++", "possessive"),
        ("a{5000}", "4096"),
        ("[[:alpha:]]", "POSIX"),
        ("^*a", "anchor"),
    ],
)
def test_what_is_not_supported_is_named(pattern, name):
    with pytest.raises(Unsupported, match=name):
        parsed(pattern)


@pytest.mark.parametrize("pattern", ["(", ")", "[a", "*", "a{2,1}", "[z-a]", "\\", r"\u{110000}", "a|*"])
def test_what_is_no_regex_is_said(pattern):
    with pytest.raises(Malformed, match="at character"):
        parsed(pattern)


@pytest.mark.parametrize(
    ("pattern", "refusal"),
    [
        ("(" * 5000 + ")" * 5000, Unsupported),
        ("[" * 65536, Malformed),
        ("a" * 5000, None),
        ("|" * 5000, None),
        ("(a*)*" * 300, None),
        ("((a?){9}){40}", None),
        ("(((a{1,99}){1,99}){1,99}){1,99}", TooLarge),
        ("(a|b)*a(a|b){30}", TooLarge),
        ("((((a|b)*c)*d)*e)*" * 150, None),
        ("(.{0,4096}){0,4096}", TooLarge),
        ("(^|a)*$" * 200, TooLarge),
        ("(?=.*a.{50})(?=.*b.{50})(?=.*c.{50}).*", TooLarge),
        ("((?=a)a|(?=b)b){1,31}" * 2, Unsupported),
        ("(?=" * 5000 + ")" * 5000, Unsupported),
        ("(?!" * 60 + ")" * 60, None),
    ],
)
def test_hostile_regexes_end_soon(pattern, refusal):
    with clock_of_calls() as clock, pytest.raises(refusal) if refusal else nullcontext():
        compiled(pattern, budget := Budget(seconds=0.2) if refusal else Budget())
    assert clock.seconds() < budget.seconds + 1


@pytest.mark.parametrize("pattern", ["a{1,10000000000}", "a{10000000000}", "(?P<x>a)(?P=x)"])
def test_what_would_be_read_otherwise_than_it_is_meant_is_refused(pattern):
    with pytest.raises(Unsupported):
        compiled(pattern)


def test_a_regex_that_nothing_matches_is_refused():
    with pytest.raises(NoValue):
        compiled("a^b")
