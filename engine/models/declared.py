"""Reads parsed JSON by declarations: classes whose annotated fields say what a checkpoint's file may hold.

Knows the types that these files need, and no others: numbers with ranges, truths, texts, lists, objects, a choice of
values, each perhaps null. Refuses in one line with the key's name. Knows no file and no family.
"""

import operator
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, astuple, dataclass, fields
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from engine.core.errors import LoadError
from engine.core.ranges import Ge, Gt, Le, Lt

Declared = TypeVar("Declared", bound="Declaration")

LISTED = "listed"
"""Of a list: a single value stands for a list of it."""
FILLED = "filled"
"""Of a list or an object: it has at least one item."""

_RANGES = {
    Ge: (operator.ge, "greater than or equal to"),
    Gt: (operator.gt, "greater than"),
    Le: (operator.le, "less than or equal to"),
    Lt: (operator.lt, "less than"),
}
_KINDS = {int: "integer", float: "number", bool: "boolean", str: "string", list: "list", dict: "dictionary"}


class Contradiction(Exception):
    """Values of which each is valid, but not all together."""


class _Refused(Exception):
    """`path` leads to a value that is invalid; without `words` it is missing."""

    def __init__(self, path: tuple[object, ...], value: object = None, words: str = "") -> None:
        self.key, self.value, self.words = ".".join(map(str, path)), value, words


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Declaration:
    """Part of a checkpoint's JSON, as a frozen dataclass. Keys that are not declared are ignored: there are dozens."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)

    @classmethod
    def read(cls: type[Declared], values: Mapping[str, Any], source: Path | str = "config.json") -> Declared:
        """Validates values. Raises LoadError, in one line with the key's name, on a missing or invalid one."""
        try:
            return cls.under(values, ())
        except Contradiction as error:
            raise LoadError(f"{source}: {error}") from None
        except _Refused as error:
            said = f": {error.key} is {reprlib.repr(error.value)}; {error.words}" if error.words else ""
            raise LoadError(f"{source}{said or f' lacks {error.key!r}'}") from None

    @classmethod
    def under(cls: type[Declared], values: Mapping[str, Any], path: tuple[object, ...]) -> Declared:
        """What stands at `path`, with this declaration's keys below it."""
        hints, read = get_type_hints(cls, include_extras=True), {}
        for field in fields(cls):  # type: ignore[arg-type]  # of a subclass, which is a dataclass
            if field.name in values:
                read[field.name] = _read(hints[field.name], values[field.name], (*path, field.name))
            elif field.default is MISSING and field.default_factory is MISSING:
                raise _Refused((*path, field.name))
        return cls(**read)


def _read(hint: Any, value: Any, path: tuple[object, ...]) -> Any:
    """The value, if it is what the hint declares. Raises _Refused."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        plain, *rules = parts
        given = [value] if LISTED in rules and not isinstance(value, list) else value
        value = _read(plain, given, path)
        _check(rules, given, path)
    elif kind in (Union, UnionType):
        [inner] = (part for part in parts if part is not NoneType)
        value = None if value is None else _read(inner, value, path)
    elif kind in (Literal, NoneType):
        options = parts or (None,)
        if not any(type(option) is type(value) and option == value for option in options):
            raise _Refused(path, value, f"it should be {' or '.join(', '.join(map(repr, options)).rsplit(', ', 1))}")
    elif kind is list:
        value = [_read(parts[0], each, (*path, number)) for number, each in enumerate(_of_kind(list, value, path))]
    elif kind is dict:
        each_path = {key: (*path, key) for key in _of_kind(dict, value, path)}
        value = {_read_key(parts[0], key, each_path[key]): _read(parts[1], value[key], each_path[key]) for key in value}
    elif issubclass(kind, Declaration):
        value = kind.under(_of_kind(dict, value, path), path)
    else:
        value = _of_kind(kind, value, path)
    return value


def _read_key(hint: Any, key: str, path: tuple[object, ...]) -> Any:
    """A key of an object is text; a number is declared where it must spell one."""
    if hint is str:
        return key
    return _read(hint, int(key) if re.fullmatch(r"\d{1,99}", key) else key, (*path, "[key]"))


def _of_kind(kind: type[Any], value: Any, path: tuple[object, ...]) -> Any:
    """The value, if it is of exactly this type; a whole number is also a float, but a truth is no number."""
    if kind is float and type(value) is int and abs(value) < 2**1023:
        value = float(value)
    if type(value) is not kind:
        raise _Refused(path, value, f"it should be a valid {_KINDS[kind]}")
    if kind is float and not isfinite(value):
        raise _Refused(path, value, "it should be a finite number")
    return value


def _check(rules: Iterable[Any], value: Any, path: tuple[object, ...]) -> None:
    for rule in rules:
        if isinstance(rule, re.Pattern) and not rule.fullmatch(value):
            raise _Refused(path, value, f"String should match pattern '{rule.pattern}'")
        if rule == FILLED and not value:
            kind = _KINDS[type(value)].capitalize()
            raise _Refused(path, value, f"{kind} should have at least 1 item after validation, not 0")
        if type(rule) in _RANGES:
            (bound,), (keeps, words) = astuple(rule), _RANGES[type(rule)]
            if not keeps(value, bound):
                raise _Refused(path, value, f"it should be {words} {bound}")
