"""A follower: another rank than 0.

Loads its part of a model, then does what rank 0 says over the connection, until that is closed or rank 0 is gone. Knows
no requests, no policies and no clients.
"""

from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from engine.core.config import EngineConfig
from engine.core.errors import DeviceLost, UnmaskError
from engine.execution.build import get_ready, make_runner, pages_of
from engine.execution.choices import choose_device, choose_dtype, enter_device
from engine.execution.isolate import is_device_lost, is_memory_short
from engine.execution.ranks.group import Group
from engine.execution.ranks.runner import Call, RankedRunner
from engine.models import describe, load_model
from engine.models.ranks.cut import Rank


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: what to load. The answer is how many pages of KV fit beside it."""

    config: EngineConfig
    folder: Path
    """Of the checkpoint."""
    rank: Rank


@dataclass(frozen=True, slots=True)
class Begin:
    """The second one, once all ranks have loaded their part."""

    pages: int
    """Of the KV pool."""
    meeting: Path
    """A folder where the ranks find each other."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer of a rank where something has failed."""

    error: Exception
    """Without what caused it: memory that ran out, a device that is lost, what the user can mend, or anything else."""

    @classmethod
    def of(cls, error: Exception, rank: Rank) -> "Failed":
        if isinstance(error, UnmaskError):
            return cls(type(error)(f"rank {rank.number}: {error}"))
        text = f"rank {rank.number}: {type(error).__name__}: {error}"
        if is_device_lost():
            return cls(DeviceLost(text))
        return cls((MemoryError if is_memory_short(error) else RuntimeError)(text))


@torch.inference_mode()
def follow(connection: Connection) -> None:
    """A follower's whole life. Raises DeviceLost if another rank is gone in the middle of a call."""
    try:
        start: Start = connection.recv()
        config, rank = start.config, start.rank
        try:
            device = choose_device(config, rank.number)
            enter_device(device)
            description = describe(start.folder)
            part = load_model(start.folder, description, choose_dtype(config, device), device, rank=rank)
            get_ready(config, part, device)
            connection.send(pages_of(config, part, description.spec, device))
            begin: Begin = connection.recv()
            group = Group(rank, begin.meeting, device)
            make = partial(RankedRunner, whole=description.geometry, group=group)
            runner = make_runner(config, part, begin.pages, device, make)
        except Exception as error:  # noqa: BLE001 - rank 0 raises it
            connection.send(Failed.of(error, rank))
            return
        assert isinstance(runner, RankedRunner)
        connection.send(None)
        while True:
            connection.send(_answer(runner, connection.recv()))
    except (EOFError, ConnectionError):
        return  # rank 0 has ended


def _answer(runner: RankedRunner, call: Call) -> Failed | None:
    try:
        runner.follow(call)
    except DeviceLost:
        raise
    except Exception as error:  # noqa: BLE001 - rank 0 raises it
        return Failed.of(error, runner.group.rank)
    return None
