"""Arrivals from files, and lengths from flags. Errors name the line, the column or the flag."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from math import isfinite
from pathlib import Path

from engine import Arrival, ConfigError, Lengths

COLUMNS = {
    "seconds": ("seconds", "TIMESTAMP"),
    "prompt": ("prompt_tokens", "ContextTokens"),
    "output": ("output_tokens", "GeneratedTokens"),
}
"""What each column is called: by us, and in Azure's published traces of LLM inference."""


def read_trace(path: Path, speed: float = 1.0) -> list[Arrival]:
    """The requests of a CSV or JSONL file, in order of time, which begins with the first and passes `speed` times as
    fast. `conversation` is a column that may be missing. Raises ConfigError with the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _json_lines(file, path) if path.suffix in (".jsonl", ".json") else csv.DictReader(file)
            arrivals = [_arrival(row, number, path) for number, row in enumerate(rows, 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--trace {path}: {error}") from None
    if not arrivals:
        raise ConfigError(f"--trace {path} has no request")
    arrivals.sort(key=lambda arrival: arrival.seconds)
    first = arrivals[0].seconds
    return [Arrival((each.seconds - first) / speed, each.prompt, each.output, each.conversation) for each in arrivals]


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--trace {path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"--trace {path}, line {number} is no JSON object")
        yield row


def _arrival(row: Mapping[str, object], number: int, path: Path) -> Arrival:
    def column(name: str) -> object:
        for known in COLUMNS[name]:
            if (value := row.get(known)) is not None:
                return value
        raise ConfigError(f"--trace {path}, request {number} lacks {' or '.join(COLUMNS[name])}")

    try:
        seconds = _seconds(column("seconds"))
        prompt, output = int(str(column("prompt"))), int(str(column("output")))
        conversation = int(str(row.get("conversation") or number))
    except ValueError as error:
        raise ConfigError(f"--trace {path}, request {number}: {error}") from None
    if prompt < 1 or output < 1:
        raise ConfigError(f"--trace {path}, request {number}: a prompt and an answer have at least one token")
    return Arrival(seconds, prompt, output, conversation)


def _seconds(value: object) -> float:
    """A number, or a time of day as ISO 8601 has it. Raises ValueError."""
    try:
        seconds = float(str(value))
    except ValueError:
        return datetime.fromisoformat(str(value)).timestamp()
    if not isfinite(seconds):
        raise ValueError(f"{value} is no time")
    return seconds


def lengths(text: str) -> Lengths:
    """`896`, `64-256`, `exponential:300` or `lognormal:600:1.2`. Raises ValueError, from which argparse makes an error.

    The numbers of the last are the median and the standard deviation of the logarithm.
    """
    kind, *numbers = text.split(":")
    if kind == "exponential" and len(numbers) == 1:
        return Lengths("exponential", _above_0(numbers[0]))
    if kind == "lognormal" and len(numbers) == 2:
        return Lengths("lognormal", _above_0(numbers[0]), _above_0(numbers[1]))
    low, dash, high = kind.partition("-")
    if numbers or not low.isdecimal() or (dash and not high.isdecimal()) or not 0 < int(low) <= int(high or low):
        raise ValueError(text)
    return Lengths("uniform", int(low), int(high)) if dash else Lengths("constant", int(low))


def _above_0(text: str) -> float:
    number = float(text)
    if not (number > 0 and isfinite(number)):
        raise ValueError(text)
    return number
