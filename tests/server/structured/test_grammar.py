"""Grammars of both forms accept their texts, nested as deeply as is promised; what is not supported is named."""

import pytest

from server.structured import grammar
from server.structured.budget import Budget
from server.structured.refusals import Malformed, NoValue, Unsupported

LIST = 'root ::= "[" (item ("," item)*)? "]"  # a list\nitem ::= [0-9]{1,2} | root\n'
SUM = r"""
?start: term (("+" | "-") term)* -> total
term: NUMBER | "(" start ")"
NUMBER: DIGIT+
DIGIT: /[0-9]/
%ignore " "
"""
SQL = 'root ::= "SELECT " column (", " column)* " FROM t"\ncolumn ::= "a" | "b\\n" | "é"'


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        (LIST, ["[]", "[1]", "[1,22]", "[[1],[]]", "[" * 8 + "]" * 8], ["", "[1,]", "[111]", "[" * 9 + "]" * 9]),
        (SUM, ["1", "1 + 22", " (1+2) - 3 ", "((1))"], ["1 +", "1 2", "(1", "+1"]),
        (SQL, ["SELECT a FROM t", "SELECT b\n, é FROM t"], ["SELECT  FROM t", "SELECT a, FROM t"]),
        ('start: "a"~2..3 "b"~2', ["aabb", "aaabb"], ["abb", "aab"]),
        ('root ::= "x"{2,} "y"?', ["xx", "xxxxy"], ["x", "xxyy"]),
        (r'root ::= "\x41\u00e9\U0001F600\"\\\t"', ['Aé😀"\\\t'], ["A"]),
    ],
)
def test_which_texts_are_accepted(text, yes, no):
    found = grammar.automaton(text, Budget())
    assert [one for one in yes if not found.matches(one)] == []
    assert [one for one in no if found.matches(one)] == []


@pytest.mark.slow
def test_what_grows_with_its_depth_is_nested_as_deeply_as_there_is_room():
    sums = 'start: e\ne: e "+" e | e "*" e | "(" e ")" | NUMBER\nNUMBER: /[0-9]+/\n%ignore " "'
    found = grammar.automaton(sums, Budget(nodes=20_000, states=2_000))
    assert all(found.matches(text) for text in ("12", "1 + 2*3", "(1+2)*3"))
    assert not any(found.matches(text) for text in ("1+", "(1", "1 2"))


@pytest.mark.parametrize(
    ("text", "error", "cause"),
    [
        ("start: x", Malformed, "no rule `x`"),
        ('x: "a"', Malformed, "no rule `start`"),
        ('start: ("a"', Malformed, "cannot be read"),
        ('start "a"', Malformed, "`:` is missing"),
        ("", Malformed, "no rule"),
        ('root ::= "x"{3,1}', Malformed, "the wrong way round"),
        ('start: ["a"]', Unsupported, "Lark"),
        ("%import common.NUMBER\nstart: NUMBER", Unsupported, "%import"),
        ('start.2: "a"', Unsupported, "priorities"),
        ("start: /(?=a)/", Unsupported, "look-ahead"),
        ('start: "a" start', NoValue, "start"),
        ('start: "a"~5000', Unsupported, "4096"),
        ('start: "a"\nstart: "b"', Malformed, "two rules `start`"),
        (r'start: "\d"', Malformed, r"the escape `\\d`"),
        (r'start: "\ud800"', Malformed, "no character"),
        (r'start: "\U00110000"', Malformed, "no character"),
        ('start: "a"\n%ignore NOTE\nNOTE: "(" NOTE ")"', NoValue, "`NOTE` nests deeper"),
    ],
)
def test_what_is_refused(text, error, cause):
    with pytest.raises(error, match=cause):
        grammar.automaton(text, Budget())
