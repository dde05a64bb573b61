"""Compiles every JSON Schema of a folder and tells what became of them: `python -m tests.schemas FOLDER`.

A file holds a schema, or `{"schema": …, "tests": [{"data": …, "valid": …}]}`. Random texts of each are judged by
jsonschema, and instances are tried: a valid one may be refused, an invalid one may not be accepted.
"""

import argparse
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from time import thread_time
from typing import Any

import jsonschema

from server.structured import spec
from server.structured.budget import Budget
from server.structured.compiler import automaton
from server.structured.refusals import Refused
from server.structured.schema.keywords import ENFORCED, REFUSED
from tests.server.structured.walks import walks


@dataclass
class Tally:
    """What became of the schemas."""

    seconds: list[float] = field(default_factory=list)
    """CPU time of each, of those that are refused too."""
    num_compiled: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """By the keyword that is named, and the kind of cause."""
    instances: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    """(valid, accepted)"""
    faults: list[str] = field(default_factory=list)


def tested(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The schema of a file, and its instances."""
    held = json.loads(path.read_text())
    if isinstance(held, dict) and held.keys() >= {"schema", "tests"}:
        return held["schema"], held["tests"]
    return held, []


def check(path: Path, tally: Tally, num_walks: int, *, is_listed: bool) -> None:
    """Compiles one schema and adds to the tally."""
    schema, instances = tested(path)
    begun = thread_time()
    try:
        found = automaton(spec.of_schema(schema), Budget())
    except Refused as error:
        tally.refusals[f"{keyword(error)} ({error.reason})"] += 1
        if is_listed:
            print(f"{path}: {error}")
        return
    finally:
        tally.seconds.append(thread_time() - begun)
    tally.num_compiled += 1
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(
        schema, format_checker=jsonschema.FormatChecker()
    )
    for text in walks(found, 0, num_walks):
        for error in validator.iter_errors(json.loads(text)):
            tally.faults.append(f"{path}: {text!r:.300}: {error.message:.200}")
    for instance in instances:
        is_accepted = found.matches(json.dumps(instance["data"], ensure_ascii=False))
        tally.instances[instance["valid"], is_accepted] += 1
        if is_accepted and not instance["valid"]:
            tally.faults.append(f"{path}: accepts the invalid {json.dumps(instance['data']):.300}")


def keyword(error: Refused) -> str:
    """The keyword of JSON Schema that the refusal names."""
    named = re.findall(r"`([^`]+)`", error.cause) + error.place.split("/")[::-1]
    return next((name for name in named if name in ENFORCED | REFUSED), "no keyword")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--walks", type=int, default=5, help="random texts of each schema")
    parser.add_argument("--list", action="store_true", help="print each refusal")
    args = parser.parse_args()
    tally = Tally()
    paths = sorted(args.folder.rglob("*.json"))
    for path in paths:
        check(path, tally, args.walks, is_listed=args.list)
    centiles = quantiles(tally.seconds, n=100, method="inclusive")
    median, p90, p99 = (centiles[number - 1] for number in (50, 90, 99))
    print(f"{tally.num_compiled} of {len(paths)} compiled ({tally.num_compiled / len(paths):.1%})")
    print(f"CPU seconds: median {median:.3f}, p90 {p90:.3f}, p99 {p99:.3f}, at most {max(tally.seconds):.2f}")
    for (is_valid, is_accepted), count in sorted(tally.instances.items()):
        print(f"{count} {'valid' if is_valid else 'invalid'} instances {'accepted' if is_accepted else 'refused'}")
    for cause, count in tally.refusals.most_common():
        print(f"refused {count:4}: {cause}")
    for fault in tally.faults:
        print(f"FAULT {fault}")
    raise SystemExit(bool(tally.faults))


if __name__ == "__main__":
    main()
