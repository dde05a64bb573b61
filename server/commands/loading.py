"""Progress of a start: a bar where standard error is a terminal, else a line of the log now and then."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from server.units import size

Told = Callable[[Literal["loading", "compiling"], int, int], None]
"""As `engine.assemble.Progress`."""
EVERY = 10.0
"""Seconds between two lines of the log."""

logger = logging.getLogger(__name__)


@contextmanager
def progress_of(model: str) -> Iterator[Told]:
    """What to tell of the progress while the body runs."""
    if not sys.stderr.isatty():
        logger.info("loading %s", model)
        yield _logged(model)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"loading {model}", total=None, done="")
        yield lambda stage, done, total: bar.update(
            task, description=f"{stage} {model}", completed=done, total=total, done=_amount(stage, done, total)
        )


def _logged(model: str) -> Told:
    """A line where compiling begins, which takes a minute or so, and at most every `EVERY` seconds: else a short start
    has none.
    """
    last, before = time.monotonic(), "loading"

    def told(stage: Literal["loading", "compiling"], done: int, total: int) -> None:
        nonlocal last, before
        if (now := time.monotonic()) - last >= EVERY or stage != before:
            last, before = now, stage
            logger.info("%s %s: %s", stage, model, _amount(stage, done, total))

    return told


def _amount(stage: Literal["loading", "compiling"], done: int, total: int) -> str:
    return f"{size(done)} of {size(total)}" if stage == "loading" else f"{done} of {total} forwards"
