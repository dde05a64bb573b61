"""Parsing of command lines: a parser, types for numbers, and hints for misspelt words.

The types raise argparse's own error, to which argparse adds the flag.
"""

import argparse
import difflib
from collections.abc import Callable, Iterable
from math import isfinite
from typing import NoReturn, TypeVar

Number = TypeVar("Number", int, float)


class Parser(argparse.ArgumentParser):
    """argparse that raises ConfigError with one line, so that the caller decides the exit code."""

    def error(self, message: str) -> NoReturn:
        from engine import ConfigError  # here, so that `--version` does not import torch

        raise ConfigError(message)


def count(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def rate(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (number > 0 and isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def listed(kind: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    """A type for comma-separated numbers, each parsed by `kind`."""
    return lambda text: [kind(number.strip()) for number in text.split(",")]


def hint(word: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """`; did you mean …?` with the known word that is most similar, or an empty string."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {spell(close[0])}?" if close else ""
