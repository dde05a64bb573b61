"""What SIGTERM does while the model is loaded. Knows nothing of servers or models."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """While the body runs, SIGTERM ends the process at once.

    Nothing has to be saved yet, and an exception would be lost in the callbacks that torch's compiler runs.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
