"""`unmask bench constraints`: what structured outputs cost a step beside the forward, and what compiling takes."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from time import thread_time
from typing import Any

from rich.table import Table

from engine import CONSTRAINT_PARTS, ConfigError, Constraint, ConstraintFigures, bench_constraints
from server.arguments import Parser, listed, positive
from server.bench.spellings import spellings
from server.console import output, progress_bar
from server.structured.budget import Budget
from server.structured.lift import lift
from server.structured.schema import schema
from server.structured.vocabulary import Vocabulary
from server.text.tokenizer import Tokenizer

VOCABULARY = 151_936
"""Tokens of Qwen2.5, and of the models made from it."""


def _fields(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
SCHEMAS: Mapping[str, Any] = {
    "person": _fields(
        name=TEXT,
        age={"type": "integer", "minimum": 0, "maximum": 130},
        email={"type": "string", "format": "email"},
    ),
    "optional": _fields(a=TEXT, b=WHOLE, c={"type": "boolean"}, d={"type": "number"}) | {"required": ["a"]},
    "nested": _fields(
        id=WHOLE,
        tags={"type": "array", "items": TEXT, "maxItems": 5},
        address=_fields(street=TEXT, city=TEXT, zip={"type": "string", "pattern": "^[0-9]{5}$"}),
    ),
    "formats": _fields(
        day={"type": "string", "format": "date"},
        at={"type": "string", "format": "date-time"},
        id={"type": "string", "format": "uuid"},
    ),
    "steps": _fields(steps={"type": "array", "items": _fields(explanation=TEXT, output=TEXT)}, final=TEXT),
    "enum": _fields(kind={"enum": ["red", "green", "blue", 1, None]}, n={"type": "number"}),
    "weather": _fields(location=TEXT, unit={"enum": ["celsius", "fahrenheit"]}, days=WHOLE),
    "any object": schema.ANY_OBJECT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaFigures:
    """One schema's automaton, and CPU seconds that it took."""

    schema: str
    seconds: float
    """Of the automaton over bytes."""
    lifting_seconds: float
    """Of lifting it to the vocabulary."""
    states: int
    classes: int
    edges: int


def main(argv: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    given = _parse(argv[1:])
    if given.vocabulary < 512:
        raise ConfigError(f"vocabulary is {given.vocabulary}; it must be 512 or more")
    if not all(0 <= temperature < inf for temperature in given.temperature):
        raise ConfigError("a temperature must be a number, 0 or more")
    spelt = _spelt(given.tokenizer, given.vocabulary)
    compiled, constraints = _compile(spelt)
    with progress_bar() as bar:
        task = bar.add_task(f"{given.requests} requests", total=None)
        figures = bench_constraints(
            constraints,
            given.requests,
            given.temperature,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    if given.json:
        printed = {
            "vocabulary": len(spelt),
            "schemas": [asdict(one) for one in compiled],
            "steps": [asdict(one) for one in figures],
        }
        sys.stdout.write(json.dumps(printed, indent=2) + "\n")
    else:
        console = output(100)
        console.print(_schemas_table(compiled, len(spelt)))
        console.print(_steps_table(figures))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="unmask bench constraints",
        description="What structured outputs cost a step of many requests beside the model's forward, in CPU time of "
        "one thread, and what compiling a schema takes. Needs no model: logits are made up.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--requests", type=positive, default=32, metavar="N", help="constrained requests in each step")
    parser.add_argument(
        "--vocabulary", type=positive, default=VOCABULARY, metavar="N", help="size of the vocabulary, which is made up"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="take the spellings of this checkpoint's tokenizer instead"
    )
    parser.add_argument(
        "--temperature", type=listed(float), default=[0.0, 0.7], metavar="T,T", help="temperatures, each for itself"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of the tables")
    return parser.parse_args(argv)


def _spelt(folder: Path | None, size: int) -> list[bytes]:
    """The spelling of each token. The last two, which end answers and mask positions, have none."""
    if folder is None:
        return [*spellings(size - 2), b"", b""]
    tokenizer = Tokenizer.load(folder)
    try:
        if not tokenizer.is_byte_level:
            raise ConfigError(f"structured outputs need a byte-level tokenizer; that of {folder} is none")
        return [*tokenizer.spellings(size)[:-2], b"", b""]
    finally:
        tokenizer.close()


def _compile(spelt: Sequence[bytes]) -> tuple[list[SchemaFigures], list[Constraint]]:
    vocabulary, compiled, constraints = Vocabulary(spelt), [], []
    for name, content in SCHEMAS.items():
        begun = thread_time()
        automaton = schema.automaton(content, Budget())
        between = thread_time()
        lifted = lift(automaton, vocabulary, [len(spelt) - 2], Budget())
        lifting = thread_time() - between
        constraints.append(one := Constraint(**lifted))
        compiled.append(
            SchemaFigures(
                schema=name,
                seconds=between - begun,
                lifting_seconds=lifting,
                states=one.num_states,
                classes=one.num_classes,
                edges=len(one.edge_src),
            )
        )
    return compiled, constraints


def _schemas_table(compiled: Sequence[SchemaFigures], vocabulary: int) -> Table:
    table = Table(title="schemas, in CPU seconds", caption=f"a vocabulary of {vocabulary:,} tokens")
    for title in ("", "automaton", "lifting", "states", "classes", "edges"):
        table.add_column(title, justify="right")
    for one in compiled:
        times = (f"{one.seconds:.2f}", f"{one.lifting_seconds:.2f}")
        table.add_row(one.schema, *times, f"{one.states:,}", f"{one.classes:,}", f"{one.edges:,}")
    return table


def _steps_table(figures: Sequence[ConstraintFigures]) -> Table:
    table = Table(
        title=f"a step of {figures[0].requests} requests, in CPU milliseconds of one thread",
        caption="means over the steps of a block of 32, four tokens a step (the slowest step); the reduction is the "
        "device's work, here this CPU's",
    )
    for title in ("temperature", *CONSTRAINT_PARTS):
        table.add_column(title, justify="right")
    for one in figures:
        parts = [f"{one.milliseconds[part]:.1f} ({one.worst[part]:.1f})" for part in CONSTRAINT_PARTS]
        table.add_row(f"{one.temperature:g}", *parts)
    return table
