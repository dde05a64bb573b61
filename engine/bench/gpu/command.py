"""The command: its flags, the order of the parts, and which cases each has.

What proves most in least time comes first: a run that is cut short leaves speed out, and the larger crowds.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from engine.bench.gpu import golden, kernels, machine, speed, waits
from engine.bench.gpu.prediction import METHODS, table
from engine.bench.gpu.report import Outcome, Report, Verdict
from engine.bench.hardware import HARDWARE, Hardware
from engine.bench.roofline.prediction import geometry_of
from engine.core.errors import ConfigError
from engine.execution.choices import enter_device
from engine.models.synthetic import SIZES

MODELS = ("llada-8b", "dream-7b", "sdar-8b")
GOLDEN = Path("tests/data/llada-tiny")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `run`."""
    parser.description = (
        "Asks a GPU whether kernels, golden rows, waits and speed are what was predicted (docs/gpu.md). Needs torch, "
        "triton, transformers, safetensors and numpy. Exit code 1: something is wrong, not just slow."
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a dry run [default: cuda]")
    parser.add_argument(
        "--models", nargs="+", choices=SIZES, default=MODELS, metavar="MODEL",
        help=f"geometries of random weights, of {', '.join(SIZES)} [default: {' '.join(MODELS)}]",
    )  # fmt: skip
    parser.add_argument(
        "--requests", nargs="+", type=_positive, default=(1, 16, 64), metavar="N",
        help="requests that decode at once [default: 1 16 64]",
    )  # fmt: skip
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        metavar="M",
        help="cases that would start later are left out [default: 10]",
    )
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FOLDER",
        help=f"a checkpoint with golden rows [default: {GOLDEN}, if it is here]",
    )
    parser.add_argument(
        "--hardware", choices=HARDWARE, metavar="GPU",
        help=f"whose data sheet the prediction takes, of {', '.join(HARDWARE)} [default: by the device's name]",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument("--predict", action="store_true", help="print the predictions as tables, and run nothing")


def run(given: argparse.Namespace) -> int:
    """Runs all parts. Returns the exit code. Raises ConfigError for errors that the user can fix."""
    if given.predict:
        chosen = [HARDWARE[given.hardware]] if given.hardware else HARDWARE.values()
        sys.stdout.write("\n".join(table(given.models, hardware, given.requests) for hardware in chosen))
        return 0
    folder = given.golden or (GOLDEN if GOLDEN.is_dir() else None)
    if folder and not (folder / golden.ROWS).is_file():
        raise ConfigError(f"--golden {folder}: there is no {golden.ROWS}")
    device = machine.device_named(given.device)
    enter_device(device)
    described = machine.describe(device)
    hardware = HARDWARE[given.hardware] if given.hardware else machine.data_sheet(described)
    report = Report(described, given.minutes, given.json)
    report.write()
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in described.items()))
    _kernels(report, given, device)
    if folder:
        report.run("golden", folder.name, partial(golden.check, folder, str(device)))
        report.run("golden", f"{folder.name}, CUDA graphs", partial(golden.check_graphs, folder, str(device)))
    else:
        report.run("golden", "rows", lambda: Outcome(Verdict.LEFT_OUT, f"there is no {GOLDEN} here", {}))
    _waits(report, given, device)
    _speed(report, given, device, hardware)
    sys.stdout.write(f"{report.summary}\n")
    return int(report.has_failed)


def _kernels(report: Report, given: argparse.Namespace, device: torch.device) -> None:
    for kernel, attend in kernels.kernels_on(device).items():
        for label, dtype, stored in kernels.FORMATS:
            for model in given.models:
                check = partial(kernels.check, attend, geometry_of(model), dtype, stored, device)
                report.run("kernels", f"{kernel}, {label}, heads of {model}", check)
    report.run("kernels", "scoring", partial(kernels.check_scoring, device))


def _waits(report: Report, given: argparse.Namespace, device: torch.device) -> None:
    for requests in given.requests:
        name = f"{given.models[0]}, {_counted(requests)}"
        report.run("waits", name, partial(waits.check, given.models[0], device, requests))


def _speed(report: Report, given: argparse.Namespace, device: torch.device, hardware: Hardware | None) -> None:
    for model in given.models:
        for requests in given.requests:
            for method in METHODS:
                name = f"{model}, {method.removeprefix('engine/')}, {_counted(requests)}"
                report.run("speed", name, partial(speed.check, model, device, method, requests, hardware))


def _counted(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
