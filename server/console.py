"""What commands share of the terminal: standard output for tables, and a progress bar on standard error."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def output(width: int) -> Console:
    """Standard output. Where it is no terminal it is `width` characters wide: tables would be cut at rich's 80."""
    return Console() if sys.stdout.isatty() else Console(width=width)


def progress_bar() -> Progress:
    """A bar that is gone when the work is done. It is drawn only where standard error is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
