"""Which device this is: its name, driver, memory and clocks, the versions that run on it, and its data sheet."""

import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from engine.bench.hardware import HARDWARE, Hardware
from engine.core.config import EngineConfig
from engine.core.errors import ConfigError
from engine.execution.choices import choose_device

_PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy")
_ASKED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
_DATA_SHEETS = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}
"""The name that the driver gives a device -> its entry in `HARDWARE`. Slower siblings have longer names."""


def device_named(name: str) -> torch.device:
    """The device. Raises ConfigError, in one line that says what is missing."""
    config = EngineConfig(model="", device=name)
    if name == "auto":
        raise ConfigError("name the device: `auto` might be a CPU, which no such model fits")
    try:
        return choose_device(config)
    except ConfigError as error:
        lack = "is built without CUDA" if torch.version.cuda is None else "finds no driver or no device"
        what = f"torch {torch.__version__} {lack}" if not torch.cuda.is_available() else str(error)
        raise ConfigError(
            f"the device {name} is not here: {what}; for a dry run, which proves nothing about a GPU: "
            "--device cpu --models tiny"
        ) from None


def describe(device: torch.device) -> dict[str, Any]:
    """What a reader of the figures needs to know of the machine."""
    told: dict[str, Any] = {"device": str(device), "python": platform.python_version(), **_versions()}
    if device.type != "cuda":
        return {**told, "name": platform.processor() or platform.machine()}
    properties = torch.cuda.get_device_properties(device)
    return {
        **told,
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        **_of_driver(str(properties.uuid)),
    }


def data_sheet(machine: Mapping[str, Any]) -> Hardware | None:
    """The peaks of the machine that `describe` tells of; None if its device is not known, or a part of one (MIG)."""
    known = _DATA_SHEETS.get(machine["name"])
    return HARDWARE[known] if known else None


def _versions() -> dict[str, str | None]:
    def installed(package: str) -> str | None:
        with suppress(PackageNotFoundError):
            return version(package)
        return None

    return {package: installed(package) for package in _PACKAGES}


def _of_driver(uuid: str) -> dict[str, str]:
    """What `nvidia-smi` says, where there is one; clocks are those of this moment."""
    command = ["nvidia-smi", f"--id=GPU-{uuid.removeprefix('GPU-')}", f"--query-gpu={','.join(_ASKED)}"]
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(  # noqa: S603 - a fixed command
            [*command, "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        return dict(zip(_ASKED, (value.strip() for value in said.split(",")), strict=False))
    return {}
