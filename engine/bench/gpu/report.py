"""Cases and their verdicts: run one by one until the time is up, printed as they end, kept as JSON.

A case that raises has failed, and the next one is run. Knows no GPU but for the question whether it still answers.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from engine.core.errors import CapacityError, ConfigError
from engine.execution.isolate import is_device_lost


class Verdict(StrEnum):
    """What is said of a case."""

    OK = "ok"
    FAILED = "FAILED"
    SLOWER = "slower than predicted"
    UNPREDICTED = "nothing was predicted"
    LEFT_OUT = "left out"


class Outcome(NamedTuple):
    """What a case has found."""

    verdict: Verdict
    said: str
    """For people, in one line."""
    figures: Mapping[str, Any]
    """For the JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A case that was asked for."""

    part: str
    name: str
    verdict: Verdict
    said: str
    figures: Mapping[str, Any]
    seconds: float

    @property
    def line(self) -> str:
        return f"{self.part}: {self.name}: {self.said}: {self.verdict}"


@dataclass
class Report:
    """All cases so far. Prints each on standard output, and what runs on standard error."""

    machine: Mapping[str, Any]
    minutes: float
    json: Path | None = None
    """Written anew after each case, so that an interrupted run leaves what it has found."""
    cases: list[Case] = field(default_factory=list)
    _begun: float = field(init=False)
    _lost: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._begun = time.monotonic()

    def run(self, part: str, name: str, work: Callable[[], Outcome]) -> None:
        """Runs a case, unless the time is up or the device has failed."""
        begun = time.monotonic()
        if self._lost or begun - self._begun > 60 * self.minutes:
            why = self._lost or f"the {self.minutes:g} minutes are over"
            outcome = Outcome(Verdict.LEFT_OUT, why, {})
        else:
            sys.stderr.write(f"[{begun - self._begun:4.0f} s] {part}: {name} ...\n")
            outcome = self._outcome(work)
        seconds = time.monotonic() - begun
        case = Case(
            part=part, name=name, verdict=outcome.verdict, said=outcome.said, figures=outcome.figures, seconds=seconds
        )
        self.cases.append(case)
        sys.stdout.write(f"{case.line}\n")
        sys.stdout.flush()
        self.write()

    @property
    def has_failed(self) -> bool:
        """Whether something is wrong, rather than slow."""
        return any(case.verdict == Verdict.FAILED for case in self.cases)

    @property
    def summary(self) -> str:
        """How many cases have each verdict, in one line."""
        counts = Counter(case.verdict for case in self.cases)
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])

    def write(self) -> None:
        """Writes the JSON, if one is asked for. Raises ConfigError if that cannot be done."""
        if self.json is None:
            return
        told = {"machine": self.machine, "verdict": self.summary, "cases": [asdict(case) for case in self.cases]}
        try:
            self.json.write_text(json.dumps(told, indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--json {self.json}: {error.strerror}") from None

    def _outcome(self, work: Callable[[], Outcome]) -> Outcome:
        try:
            return work()
        except CapacityError as error:
            return Outcome(Verdict.LEFT_OUT, str(error), {})
        except Exception as error:  # noqa: BLE001 - the next case may say more; this one has failed
            cause = next(iter(str(error).splitlines()), "")
            outcome = Outcome(Verdict.FAILED, f"{type(error).__name__}: {cause}", {})
        if is_device_lost():
            self._lost = "the device has failed before"
        return outcome
