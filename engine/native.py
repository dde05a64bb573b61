"""Attention on a CPU by this project's own kernel, `native.cpp`, compiled for the machine that runs it.

Knows compilers, where their work is kept, and the kernel's arguments; why it is there: docs/adr/012. Where there is no
compiler nothing is lost but speed: `engine.kernels` then takes torch's kernels.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)


class Reach(NamedTuple):
    """Rows [start, stop) and what they see; the struct `Segment` of `native.cpp`."""

    start: int
    stop: int
    visible: int
    """Keys."""
    first: int = 0
    """Slot of the first of them; the others follow it,"""
    slots: int = 0
    """unless an array of int64 at this address has theirs."""


SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("c++", "g++", "clang++")
# OpenMP's functions are left open: torch, in whose threads the kernel has to run, has brought them into the process.
FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fopenmp",
    "-fno-exceptions",
    "-fPIC",
    "-shared",
    "-nodefaultlibs",
)
LIBRARIES = ("-lm", "-lc")
MAX_HEAD_DIM = 256
TILE, MOST_QUERIES = 64, 32
"""Of `native.cpp`: keys between two looks at the largest score, and queries that are computed at once at most."""

_Pointer, _Integer = ctypes.c_void_p, ctypes.c_int64


class Kernel:
    """The functions of a shared library. Raises OSError if that cannot be loaded."""

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
        self._attention, self._watched_attention = functions.attention, functions.watched_attention
        tensors = (*(_Pointer, _Integer) * 2, _Pointer, _Pointer, _Integer, _Integer, _Integer, _Integer)
        self._attention.argtypes = (*tensors, _Pointer, _Integer, ctypes.c_int)
        self._watched_attention.argtypes = (*tensors, _Integer, _Integer, _Pointer, _Pointer, ctypes.c_int)
        self._attention.restype = self._watched_attention.restype = None

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, reaches: Sequence[Reach]) -> Tensor:
        """q [rows, heads, head_dim], keys and values [kv_heads, slots, head_dim] -> as q.

        Rows that none reaches for are undefined.
        """
        out, table = q.new_empty(q.shape), np.array(reaches, dtype=np.int64)
        tensors = _tensors(out, q, keys, values)
        self._attention(*tensors, table.ctypes.data, len(table), torch.get_num_threads())
        return out

    def watch(self, q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All rows see all keys -> as q, and the weights' mean over heads [rows, slots]."""
        rows, visible, threads = len(q), keys.shape[1], torch.get_num_threads()
        out, mean = q.new_empty(q.shape), q.new_empty(rows, visible)
        room = q.new_empty(threads, 2 * visible + visible // TILE + 1, MOST_QUERIES)
        tensors = _tensors(out, q, keys, values)
        self._watched_attention(*tensors, rows, visible, mean.data_ptr(), room.data_ptr(), threads)
        return out, mean


def _tensors(out: Tensor, q: Tensor, keys: Tensor, values: Tensor) -> tuple[int, ...]:
    """As both functions take them first."""
    heads, head_dim = q.shape[1:]
    pointers = (out.data_ptr(), out.stride(0), q.data_ptr(), q.stride(0), keys.data_ptr(), values.data_ptr())
    return *pointers, keys.stride(0), len(keys), heads // len(keys), head_dim


@cache
def kernel() -> Kernel | None:
    """None where it cannot be had, for a reason that the log has."""
    try:
        own = Kernel(_library())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        stderr = getattr(error, "stderr", None)
        logger.info("no attention kernel for this CPU, torch's are used: %s", stderr or error)
        return None
    if not _agrees(own):
        logger.warning("the attention kernel for this CPU computes something else than torch: not used")
        return None
    return own


def takes(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the kernel is made for them: float32 on a CPU, each head's numbers in one piece, and no gradient."""
    head_dim = q.shape[-1]
    return (
        q.device.type == "cpu"
        and q.dtype == torch.float32
        and not torch.is_grad_enabled()
        and head_dim % 8 == 0
        and head_dim <= MAX_HEAD_DIM
        and q.stride()[1:] == (head_dim, 1)
        and keys.stride()[1:] == (head_dim, 1)
        and values.stride() == keys.stride()
    )


def compile_to(path: Path, flags: Sequence[str] = ()) -> None:
    """Raises OSError where there is no compiler, SubprocessError if it fails."""
    command = [*_compiler().split(), *FLAGS, *flags, "-o", str(path), str(SOURCE), *LIBRARIES]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603 - the user's compiler


def _compiler() -> str:
    """With its own flags, if the user has named it so. Raises FileNotFoundError if there is none."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise FileNotFoundError(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    return compiler


def _library() -> Path:
    """Compiled now, unless an earlier process with this compiler on such a CPU has done it."""
    kept = _cache_folder() / f"attention-{_key()}.so"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as folder:
            compile_to(built := Path(folder) / kept.name)
            built.replace(kept)  # whole or not at all, whoever else does the same
    return kept


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "unmask"


def _key() -> str:
    """Of the source, the compiler and the processor: a home folder may be shared by machines that are not alike."""
    processor = platform.processor() + platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return hashlib.sha256(SOURCE.read_bytes() + repr((_compiler(), FLAGS, processor)).encode()).hexdigest()[:16]


@torch.no_grad()
def _agrees(own: Kernel) -> bool:
    """With SDPA, and weights sum to 1, on numbers that leave every loop of the kernel with a remainder."""
    rows, heads, kv_heads, visible, head_dim = 37, 4, 2, 139, 16
    q, keys, values = (
        torch.arange(count * head_dim, dtype=torch.float32).mul_(step).sin_().mul_(3.0)
        for count, step in ((rows * heads, 0.7), (kv_heads * visible, 1.1), (kv_heads * visible, 1.3))
    )
    q, keys, values = q.view(rows, heads, -1), keys.view(kv_heads, visible, -1), values.view(kv_heads, visible, -1)
    expected = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), enable_gqa=True
    )
    expected = expected.squeeze(0).transpose(0, 1)
    out, (watched, mean) = own.attend(q, keys, values, [Reach(0, rows, visible)]), own.watch(q, keys, values)
    pairs = (out, expected), (watched, expected), (mean.sum(dim=-1), mean.new_ones(rows))
    return all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in pairs)
