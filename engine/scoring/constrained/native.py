"""The chain by this project's own kernels, `engine/kernels/chain.cpp`: numpy's small calls would take most of a step.

`engine.scoring.constrained.chain` says what is computed, and computes it where there are no kernels.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.core.arrays import Floats, Ids
from engine.core.constraint import Constraint
from engine.core.requests.request import Request
from engine.kernels.library import checked
from engine.scoring.constrained.chain import Chain, Draw
from engine.scoring.constrained.spans import OPEN, UNSCORED, OpenSpan

_Pointer, _Integer = ctypes.c_void_p, ctypes.c_int64
_NONE = np.empty(0, np.int64)


class Span(ctypes.Structure):
    """The struct of the same name of `chain.cpp`."""

    _fields_ = [
        *(
            (name, _Pointer)
            for name in ("step", "edge_start", "edge_src", "edge_dst", "edge_label", "label_start", "label_classes")
        ),
        *((name, _Pointer) for name in ("fixed", "rows", "viable", "used", "scratch")),
        *((name, _Integer) for name in ("states", "classes", "labels", "places", "num_rows", "room", "start")),
    ]


class Kept(ctypes.Structure):
    """The struct of the same name of `chain.cpp`."""

    _fields_ = [*((name, _Pointer) for name in ("probabilities", "edges", "counts")), ("total", _Integer)]


class Kernel:
    """The functions of a shared library. Raises OSError if that cannot be loaded."""

    def __init__(self, path: Path) -> None:
        functions = ctypes.CDLL(str(path))
        span, kept, flag = ctypes.POINTER(Span), ctypes.POINTER(Kept), ctypes.c_int
        self.reach, self.log_sums, self.walk = functions.reach, functions.log_sums, functions.walk
        self.weigh_labels, self.weigh_behind = functions.weigh_labels, functions.weigh_behind
        self.weigh_classes = functions.weigh_classes
        self.reach.argtypes = span, _Pointer
        self.weigh_labels.argtypes = span, _Pointer, _Pointer, flag
        self.weigh_behind.argtypes = span, _Pointer, _Pointer, flag, kept
        self.weigh_classes.argtypes = span, _Pointer, _Pointer, kept
        self.walk.argtypes = span, _Pointer, _Pointer, _Pointer, ctypes.c_double, _Pointer
        self.log_sums.argtypes = _Pointer, _Pointer, _Integer, _Integer
        self.reach.restype = _Integer
        for function in (self.weigh_labels, self.weigh_behind, self.weigh_classes, self.walk, self.log_sums):
            function.restype = None


class NativeChain(Chain):
    """A `Chain` by the kernels."""

    def __init__(self, span: OpenSpan, kernel: Kernel) -> None:
        self._kernel = kernel
        super().__init__(span)

    def behind(self, columns: Floats, *, is_best: bool) -> Floats:
        values, behind = self._values(columns, is_best), np.empty(self.viable.shape)
        _call(self._kernel.weigh_behind, self._span, behind, values, is_best, None)
        return behind

    def gains(self, columns: Floats) -> tuple[Floats, Floats]:
        values, behind = self._values(columns, False), np.empty(self.viable.shape)
        gains = np.empty((len(values), self.span.constraint.num_classes))
        probabilities, edges = np.empty(self._num_live), np.empty(self._num_live, np.int32)
        counts = np.zeros(self.num_places, np.int64)
        kept = Kept(_at(probabilities), _at(edges), _at(counts), self._num_live)
        _call(self._kernel.weigh_behind, self._span, behind, values, False, kept)
        _call(self._kernel.weigh_classes, self._span, gains, values, kept)
        return gains, behind

    def _values(self, columns: Floats, is_best: bool) -> Floats:
        """columns [rows, classes] -> [rows, labels]."""
        values = np.empty(self.used.shape)
        _call(self._kernel.weigh_labels, self._span, values, np.ascontiguousarray(columns), is_best)
        return values

    def walk(self, columns: Floats, behind: Floats, draw: Draw) -> Ids:
        classes, hashes = np.empty(len(self.used), np.int64), draw.hashes(self.span) if draw.temperature else _NONE
        columns = np.ascontiguousarray(columns)
        _call(self._kernel.walk, self._span, classes, columns, behind, draw.temperature, hashes)
        return classes

    def _reach(self) -> bool:
        constraint, span = self.span.constraint, self.span
        states, classes, labels = constraint.num_states + 1, constraint.num_classes, constraint.num_labels
        room = max(len(constraint.edge_dst), 2 * (states + labels + classes))
        tables = (
            *(constraint.step, constraint.edge_start, constraint.edge_src, constraint.edge_dst),
            *(constraint.edge_label, constraint.label_start, constraint.label_classes),
        )
        # Held for as long as the struct has their addresses.
        self._arrays: tuple[NDArray[Any], ...] = (
            *(np.ascontiguousarray(table, np.int32) for table in tables),
            *(np.ascontiguousarray(places, np.int64) for places in (span.fixed, span.rows)),
            *(self.viable, self.used, np.empty(2 * room)),
        )
        sizes = states, classes, labels, self.num_places, len(self.used), room, span.state
        self._span = Span(*map(_at, self._arrays), *sizes)
        self._num_live = _call(self._kernel.reach, self._span, span.ends)
        return bool(self._num_live >= 0)


@cache
def kernel() -> Kernel | None:
    """The kernels, or None if they are not available; the log has the reason."""
    return checked("constraints", Kernel, _agrees)


def chain_of(span: OpenSpan) -> Chain:
    """By the kernels if they are available."""
    own = kernel()
    return NativeChain(span, own) if own else Chain(span)


def log_sum_exp(values: Floats) -> Floats:
    """[rows] of values [rows, columns], which may be overwritten; -inf where all are."""
    if own := kernel():
        values, sums = np.ascontiguousarray(values), np.empty(len(values))
        _call(own.log_sums, sums, values, *values.shape)
        return sums
    most = np.maximum(values.max(axis=1), -1e300)
    with np.errstate(divide="ignore"):
        return np.asarray(most + np.log(np.exp(values - most[:, None]).sum(axis=1)))


def is_completable(request: Request, positions: Ids, tokens: Ids) -> bool:
    """Whether the answer can still be finished in time if these positions of the open block become these tokens."""
    ids, masked = request.ids.copy(), request.masked.copy()
    ids[positions], masked[positions] = tokens, False
    return chain_of(OpenSpan.on(request, ids, masked, np.full(len(ids), UNSCORED))).is_possible


def _at(array: NDArray[np.generic]) -> int:
    """Its address, which does not keep it."""
    return array.ctypes.data


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a kernel with the addresses of arrays, which live until it returns even if nobody else holds them."""
    return function(*(_at(one) if isinstance(one, np.ndarray) else one for one in arguments))


def _agrees(own: Kernel) -> bool:
    """Whether it is what numpy computes, of counted pairs with a position that is decoded and one without logits."""
    step = np.array([[4, 1, 2, 3], [4, 2, 0, 4], [4, 4, 1, 3], [4, 4, 4, 3], [4, 4, 4, 4]], np.int32)
    distance, accepts = np.array([0, 1, 0], np.int32), np.array([True, False, True])
    constraint = Constraint.of_steps(np.arange(4), step, distance, accepts)
    fixed, rows = np.array([OPEN, OPEN, 1, OPEN, OPEN]), np.array([0, UNSCORED, UNSCORED, 1, 2])
    span = OpenSpan(constraint, 7, 0, fixed, rows, 0)
    ours, theirs, draw = NativeChain(span, own), Chain(span), Draw(0.7, 5, 3)
    if not ((ours.viable == theirs.viable).all() and (ours.used == theirs.used).all()):
        return False
    columns, found = np.sin(np.arange(12.0)).reshape(3, 4) * 9, []
    sums = np.zeros(3)
    _call(own.log_sums, sums, columns.copy(), *columns.shape)
    if not np.allclose(sums, np.logaddexp.reduce(columns, axis=1)):
        return False
    for chain in (ours, theirs):
        best, (gains, behind) = chain.behind(columns, is_best=True), chain.gains(columns)
        ways = chain.walk(columns, behind, draw), chain.walk(columns, best, Draw(0.0, 0, 0))
        found.append((best, gains, behind, chain.behind(columns, is_best=False), *ways))
    return all(np.allclose(one, other) for one, other in zip(*found, strict=True))
