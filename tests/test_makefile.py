"""`make` as a newcomer uses it, with a Python that writes down what it is asked in place of installing anything."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> asked
if [ "$1 $2" = "-m venv" ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/unmask; fi
"""
CPU_INDEX = yaml.safe_load((ROOT / "docker" / "compose.cpu.yaml").read_text().replace("!override", ""))["services"][
    "server"
]["build"]["args"]["TORCH_INDEX"]


@pytest.fixture
def make(tmp_path):
    """`make("serve")`: what is printed, and the commands that ran."""
    (tmp_path / "docker").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "docker/compose.cpu.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python3").write_text(STUB)
    (tmp_path / "python3").chmod(0o755)
    given = ("MAKE", "MFLAGS", "SLOW", "FILE", "GPU", "TORCH_INDEX")  # of the make that runs these tests
    environ = {name: value for name, value in os.environ.items() if not name.startswith(given)}

    def run(*arguments):
        (tmp_path / "asked").write_text("")
        command = ["make", *arguments, f"PYTHON={tmp_path / 'python3'}"]
        ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
        return ended.stdout, (tmp_path / "asked").read_text().splitlines()

    return run


def test_serving_installs_the_runtime_alone_and_says_so(make):
    printed, asked = make("serve", "GPU=yes")
    assert [line for line in asked if "pip install" in line] == [
        "python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e ."
    ]
    assert asked[-1] == "unmask serve"
    assert "Installing what a server needs into .venv" in printed
    assert "Starting the server" in printed
    _, asked = make("serve", "GPU=yes")
    assert asked == ["unmask serve"], "nothing is installed twice"


def test_tests_install_the_rest(make):
    make("serve", "GPU=yes")
    printed, asked = make("test", "GPU=yes")
    assert "Installing what tests and linters need" in printed
    assert [line.rsplit(" ", 1)[1] for line in asked if "pip install" in line] == [".[dev]"]
    assert asked[-1].startswith("python -m pytest -q --numprocesses auto ")


def test_without_a_gpu_the_way_to_the_small_torch_is_told(make):
    remedy = f"make serve TORCH_INDEX={CPU_INDEX}"
    assert remedy in make("serve", "GPU=")[0]


def test_that_way_leads_there_and_is_not_told_again(make):
    printed, asked = make("serve", "GPU=", f"TORCH_INDEX={CPU_INDEX}")
    assert "GPU" not in printed
    [installed] = [line for line in asked if "pip install" in line]
    assert f"--extra-index-url {CPU_INDEX} -c constraints.txt" in installed


def test_with_a_gpu_nothing_is_told(make):
    assert "TORCH_INDEX" not in make("serve", "GPU=/usr/bin/nvidia-smi")[0].replace("--extra-index-url", "")


def test_ci_runs_what_a_developer_checks():
    """In another order, and the images apart."""
    [checked] = re.findall(r"^check: (.+?) +##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    run = (ROOT / ".ci" / "run").read_text()
    asked = re.findall(r"^(?:make|\"\$\{beside\[@\]\}\") (.+)$", run, re.MULTILINE)
    assert sorted(" ".join(asked).split()) == sorted([*checked.split(), "SLOW=yes", "images"])


def test_slow_tests_are_for_who_asks(make):
    slow = "-m not containers and not browser and not gpu"
    assert slow not in make("test", "GPU=yes")[1][-1]
    assert slow in make("test", "SLOW=yes", "GPU=yes", "--assume-old=tools")[1][-1]
    assert slow in make("check", "GPU=yes", "--dry-run")[0].replace("'", "")


def test_what_a_gpu_is_asked_installs_nothing(make):
    _, asked = make("test-gpu")
    assert asked == ["python3 -m pytest -q -c tests/gpu/pytest.ini -m gpu tests/gpu"]
