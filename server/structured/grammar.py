"""Grammars to automata: the EBNF of llama.cpp and xgrammar (`::=`, start `root`), or Lark's (`:`, start `start`).

A rule that reaches itself is unrolled, so many times within each other; what would nest deeper is not generated.
"""

import re
from dataclasses import dataclass
from typing import NoReturn

from server.structured.automaton import Automaton, determinised
from server.structured.budget import Budget, shallower
from server.structured.nfa import Nfa
from server.structured.refusals import Malformed, NoValue, Unsupported, placed
from server.structured.regex import expressions, regex
from server.structured.regex.code_points import MAX_CODE_POINT
from server.structured.regex.expressions import MAX_REPEAT

MAX_DEPTH = 8
"""How often a rule may be within itself."""
_SIGN = re.compile(
    r"""\s*(?:(?P<comment>(?:\#|//)[^\n]*)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<regex>/(?:[^/\\\n]|\\.)+/)
    |(?P<set>\[(?:[^\]\\\n]|\\.)*\])|(?P<bounds>\{\d{1,5}(?:,\d{0,5})?\})|(?P<times>~\s*\d{1,5}(?:\.\.\d{1,5})?)
    |(?P<directive>%\w+)|(?P<name>[A-Za-z_][\w-]*)|(?P<op>::=|->|[()|*+?:.!])|(?P<end>\Z)|(?P<other>\S))""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v"} | {sign: sign for sign in "\"'\\/[]"}
_KNOWN_ESCAPES = " ".join([*(f"`\\{letter}`" for letter in _ESCAPES), "`\\xHH`", "`\\uHHHH`", "`\\UHHHHHHHH`"])


@dataclass(frozen=True, slots=True)
class Terminal:
    """A string, or a regex."""

    expression: expressions.Expression


@dataclass(frozen=True, slots=True)
class Rule:
    """Whatever the rule of this name is."""

    name: str


@dataclass(frozen=True, slots=True)
class Joined:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Either:
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    item: "Node"
    least: int
    most: int | None


Node = Terminal | Rule | Joined | Either | Repeated
Left = dict[str, int]
"""How often each rule that reaches itself may still be within what is written."""


def automaton(text: str, budget: Budget) -> Automaton:
    """The automaton of the texts of the grammar. Raises Malformed, Unsupported, NoValue or TooLarge."""
    try:
        reader = _Reader(text)
        writer = _Grammar(reader.rules, reader.ignored)
        return shallower(lambda depth: writer.compiled(reader.start, depth, budget), MAX_DEPTH, budget)
    except RecursionError:
        raise Unsupported("a grammar with so much within each other is not supported") from None


class _Reader:
    """Reads the rules; `start` is the first rule's name that is `root` or `start`, by the form."""

    def __init__(self, text: str) -> None:
        self._mark = "::=" if "::=" in text else ":"
        self.start = "root" if self._mark == "::=" else "start"
        found = ((str(sign.lastgroup), sign[str(sign.lastgroup)]) for sign in _SIGN.finditer(text))
        self._signs = [sign for sign in found if sign[0] not in ("comment", "end")]
        self._signs.append(("end", "the end"))
        self._at = 0
        self.rules: dict[str, Node] = {}
        self.ignored: list[Node] = []
        while self._signs[self._at][0] != "end":
            self._rule()
        if self.start not in self.rules:
            raise Malformed(f"the grammar has no rule `{self.start}`")

    def _rule(self) -> None:
        kind, value = self._next()
        if kind == "directive":
            if value != "%ignore":
                raise Unsupported(f"`{value}` in a grammar is not supported")
            self.ignored.append(self._either())
            return
        if value in ("?", "!"):
            kind, value = self._next()
        if kind != "name":
            self._fail(f"a rule begins with its name, not with {value!r:.100}")
        if self._signs[self._at][1] == ".":
            raise Unsupported("priorities in a grammar are not supported")
        if self._next()[1] != self._mark:
            self._fail(f"`{self._mark}` is missing behind `{value}`")
        if value in self.rules:
            self._fail(f"there are two rules `{value:.100}`")
        self.rules[value] = self._either()

    def _either(self) -> Node:
        branches = [self._joined()]
        while self._signs[self._at] == ("op", "|"):
            self._at += 1
            branches.append(self._joined())
        return branches[0] if len(branches) == 1 else Either(tuple(branches))

    def _joined(self) -> Node:
        items: list[Node] = []
        while not self._is_at_end():
            if self._signs[self._at] == ("op", "->"):  # Lark's name for a branch
                self._at += 2
                continue
            items.append(self._repeated(self._item()))
        return Joined(tuple(items))

    def _is_at_end(self) -> bool:
        """Whether the branch ends here: the next rule begins, or another branch."""
        here = self._signs[self._at]
        if here[0] in ("end", "directive") or here in (("op", "|"), ("op", ")")):
            return True
        name = self._at + (here in (("op", "?"), ("op", "!")))
        return self._signs[name][0] == "name" and self._signs[name + 1] in (("op", self._mark), ("op", "."))

    def _item(self) -> Node:
        kind, value = self._next()
        match kind:
            case "string":
                return Terminal(expressions.text(_ESCAPE.sub(self._escaped, value[1:-1])))
            case "set" if self._mark == ":":
                raise Unsupported("`[ ]` in a Lark grammar is not supported; write `( )?`")
            case "regex" | "set":
                with placed(f"the grammar's {value:.100}"):
                    return Terminal(regex.parsed(value[1:-1] if kind == "regex" else value))
            case "name":
                return Rule(value)
        if value != "(":
            self._fail(f"{value!r:.100} is not expected")
        node = self._either()
        if self._next()[1] != ")":
            self._fail("a `(` has no `)`")
        return node

    def _escaped(self, sign: re.Match[str]) -> str:
        """The character of an escape in a string."""
        letter, code = sign[0][1], next(filter(None, sign.groups()), None)
        if code is None and letter not in _ESCAPES:
            self._fail(f"the escape `\\{letter}` in a string is none of these: {_KNOWN_ESCAPES}")
        number = ord(_ESCAPES[letter]) if code is None else int(code, 16)
        if number > MAX_CODE_POINT or 0xD800 <= number <= 0xDFFF:
            self._fail(f"`{sign[0]}` in a string is no character")
        return chr(number)

    def _repeated(self, item: Node) -> Node:
        while True:
            kind, value = self._signs[self._at]
            if kind == "op" and value in "*+?" and not (value == "?" and self._is_at_end()):
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[value]
            elif kind in ("bounds", "times"):
                first, separator, last = value.strip("{}~ ").replace("..", ",").partition(",")
                least, most = int(first), int(last) if last else None if separator else int(first)
            else:
                return item
            if most is not None and most < least:
                self._fail("a repetition's bounds are the wrong way round")
            if max(least, most or 0) > MAX_REPEAT:
                raise Unsupported(f"a repetition of more than {MAX_REPEAT} in a grammar is not supported")
            self._at += 1
            item = Repeated(item, least, most)

    def _next(self) -> tuple[str, str]:
        sign = self._signs[self._at]
        if sign[0] == "end":
            self._fail("it ends too early")
        self._at += 1
        return sign

    def _fail(self, what: str) -> NoReturn:
        raise Malformed(f"the grammar cannot be read: {what}")


class _Grammar:
    def __init__(self, rules: dict[str, Node], ignored: list[Node]) -> None:
        self._rules = rules
        self._ignored = ignored
        uses = {name: set(_names(node)) for name, node in rules.items()}
        if unknown := set().union(*uses.values(), *map(_names, ignored)) - rules.keys():
            raise Malformed(f"the grammar has no rule `{min(unknown):.100}`")
        self._recursive = {name for name in rules if name in _reached(name, uses)}

    def compiled(self, start: str, depth: int, budget: Budget) -> Automaton:
        nfa = Nfa(budget)
        first = self._ignore(nfa, nfa.node())
        left = dict.fromkeys(self._recursive, depth)
        return determinised(nfa, 0, self._write(nfa, first, Rule(start), left, is_inside=False))

    def _write(self, nfa: Nfa, start: int, node: Node, left: Left, *, is_inside: bool) -> int:
        """`is_inside` a terminal, between whose parts nothing is ignored. Raises NoValue where too little is `left`."""
        match node:
            case Terminal(expression):
                end = expressions.write(nfa, start, expression)
                return end if is_inside else self._ignore(nfa, end)
            case Rule(name):
                return self._write_rule(nfa, start, name, left, is_inside=is_inside)
            case Joined(items):
                for item in items:
                    start = self._write(nfa, start, item, left, is_inside=is_inside)
                return start
            case Either(items):
                return self._write_either(nfa, start, items, left, is_inside=is_inside)
            case Repeated(item, least, most):
                return self._write_repeated(nfa, start, (item, least, most), left, is_inside=is_inside)

    def _write_rule(self, nfa: Nfa, start: int, name: str, left: Left, *, is_inside: bool) -> int:
        if name in left:
            if left[name] == 0:
                raise NoValue(f"the rule `{name:.100}` nests deeper than is allowed, whatever its text")
            left = {**left, name: left[name] - 1}
        is_terminal = name.isupper()
        end = self._write(nfa, start, self._rules[name], left, is_inside=is_inside or is_terminal)
        return self._ignore(nfa, end) if is_terminal and not is_inside else end

    def _write_either(self, nfa: Nfa, start: int, items: tuple[Node, ...], left: Left, *, is_inside: bool) -> int:
        end = nfa.node()
        refusal: NoValue | None = None
        is_any = False
        for item in items:
            entry = nfa.node()
            try:
                exit_ = self._write(nfa, entry, item, left, is_inside=is_inside)
            except NoValue as error:
                refusal = error
                continue
            nfa.link(start, entry)
            nfa.link(exit_, end)
            is_any = True
        if refusal and not is_any:
            raise refusal
        return end

    def _write_repeated(
        self, nfa: Nfa, start: int, repeated: tuple[Node, int, int | None], left: Left, *, is_inside: bool
    ) -> int:
        item, least, most = repeated
        for _ in range(least):
            start = self._write(nfa, start, item, left, is_inside=is_inside)
        end = nfa.node()
        nfa.link(start, end)
        try:
            if most is None:
                loop = nfa.node()
                nfa.link(self._write(nfa, loop, item, left, is_inside=is_inside), loop)
                nfa.link(start, loop)
                nfa.link(loop, end)
            for _ in range((most or least) - least):
                entry = nfa.node()
                exit_ = self._write(nfa, entry, item, left, is_inside=is_inside)
                nfa.link(start, entry)
                nfa.link(exit_, end)
                start = exit_
        except NoValue:
            pass  # no further one fits
        return end

    def _ignore(self, nfa: Nfa, start: int) -> int:
        """What is ignored, any number of times."""
        if not self._ignored:
            return start
        loop = nfa.node()
        nfa.link(start, loop)
        for node in self._ignored:
            nfa.link(self._write(nfa, loop, node, dict.fromkeys(self._recursive, 1), is_inside=True), loop)
        return loop


def _names(node: Node) -> set[str]:
    match node:
        case Rule(name):
            return {name}
        case Joined(items) | Either(items):
            return set().union(*map(_names, items))
        case Repeated(item, _, _):
            return _names(item)
    return set()


def _reached(name: str, uses: dict[str, set[str]]) -> set[str]:
    """The rules that the rule uses, and those that these use."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        fresh = uses[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return seen
