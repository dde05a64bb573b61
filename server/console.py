"""Standard output for tables."""

import sys

from rich.console import Console


def output(width: int) -> Console:
    """The terminal. Output that goes elsewhere is `width` characters wide: at rich's 80 wide tables would be cut."""
    return Console() if sys.stdout.isatty() else Console(width=width)
