"""torch's compiler, as this engine uses it: for small functions, each one graph, for any number of rows.

Knows functions and devices. Modules decide which of their functions are compiled, `execution.warmup` decides when.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from engine.core.errors import ConfigError
from engine.kernels.experts.mlps import Stacked
from engine.kernels.experts.mlps import expert_mlps as fastest_expert_mlps
from engine.kernels.products import Activation
from engine.kernels.products import coded_linear as fastest_coded_linear
from engine.kernels.products import linear as fastest_linear

logger = logging.getLogger(__name__)

CODE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""torch's own variable. torch makes that folder as soon as it needs any part of its compiler, even if it compiles
nothing."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function compiled at its first call; one graph for all row counts, and another for a single row."""
    return torch.compile(function, fullgraph=True, dynamic=True)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`products.linear`, x [rows, in] weight [out, in] -> [rows, out], which a compiled function may call.

    On a CPU the compiler would replace the product by MKL's. It accepts oneDNN's own operator for constant weights
    only, which would mean one graph for each layer.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        product: Tensor = _opaque_linear(x, weight, bias)
        return product
    return fastest_linear(x, weight, bias)


def coded_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """`products.coded_linear`, which a compiled function may call, for the reason that `linear` says."""
    if torch.compiler.is_compiling():
        product: Tensor = _opaque_coded_linear(x, codes, scales, bias)
        return product
    return fastest_coded_linear(x, codes, scales, bias)


def expert_mlps(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Stacked, down: Stacked, activation: Activation = "silu"
) -> Tensor:
    """`experts.mlps.expert_mlps`, which a compiled function may call.

    The compiler cannot look into it: how many rows each expert has is data.
    """
    if torch.compiler.is_compiling():
        mlps: Tensor = _opaque_expert_mlps(x, chosen, weights, gate_up, down, activation)
        return mlps
    return fastest_expert_mlps(x, chosen, weights, gate_up, down, activation)


def find_code_folder() -> None:
    """Sets another folder if the one that is set cannot be written: torch would end the process."""
    folder = os.environ.get(CODE_FOLDER)
    if not folder:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
        cause = "Permission denied"
    except OSError as error:
        cause = error.strerror or str(error)
    other = "/"  # it exists, and torch needs no more while nothing is compiled
    with suppress(OSError):
        other = tempfile.gettempdir()
    os.environ[CODE_FOLDER] = other
    logger.warning("%s=%s cannot be written (%s): compiled code is not kept", CODE_FOLDER, folder, cause)


def check_compiler(device: torch.device) -> None:
    """Compiles something small for the device. Raises ConfigError if that fails."""
    try:
        compiled(_trial)(torch.ones(2, device=device))
    except (RuntimeError, OSError) as error:
        lines = str(getattr(error, "inner_exception", error)).strip().splitlines()
        cause = next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
        raise ConfigError(
            f"compile: true needs torch's compiler, which does not work here ({cause.strip()}); install a C++ compiler "
            "and Python's headers (on Debian: apt-get install g++ python3-dev), or leave the setting out"
        ) from error


@torch.library.custom_op("unmask::linear", mutates_args=())
def _opaque_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return fastest_linear(x, weight, bias)


@_opaque_linear.register_fake
def _shape_of_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001 - the operator's own
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("unmask::coded_linear", mutates_args=())
def _opaque_coded_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    return fastest_coded_linear(x, codes, scales, bias)


@_opaque_coded_linear.register_fake
def _shape_of_coded_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001 - the operator's own
    return x.new_empty(x.shape[0], codes.shape[0])


@torch.library.custom_op("unmask::expert_mlps", mutates_args=())
def _opaque_expert_mlps(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str
) -> Tensor:
    return fastest_expert_mlps(x, chosen, weights, gate_up, down, cast("Activation", activation))


@_opaque_expert_mlps.register_fake
def _shape_of_expert_mlps(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _trial(x: Tensor) -> Tensor:
    return x + 1
