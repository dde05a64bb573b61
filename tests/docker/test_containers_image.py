"""The image, run by itself: on a read-only root, without a volume, without a right, at another port."""

import json
import re

import pytest

from .conftest import ROOT
from .podman import end, podman, wait

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]
IMAGE = "localhost/unmask-test/server"
NAME = "unmask-test-image"
PORT = 9123


@pytest.fixture(scope="module")
def server(containers):
    """Its name, once it is well by its own health check."""
    podman(
        *("run", "--detach", "--name", NAME, "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"),
        *("--env", f"UNMASK_PORT={PORT + 1}", IMAGE, "--port", str(PORT)),
    )
    try:
        wait(NAME)
        yield NAME
    finally:
        podman("rm", "--force", "--volumes", NAME)


def python(code):
    return podman("exec", NAME, "python", "-c", code)


def test_its_health_check_follows_the_port(server):
    assert f":{PORT}" in podman("logs", server)


def test_a_cache_that_cannot_be_written_costs_a_warning(server):
    complaints = [line for line in podman("logs", server).splitlines() if "cannot be written" in line]
    assert len(complaints) == 1
    assert "/cache/torchinductor" in complaints[0]
    assert "Traceback" not in podman("logs", server)


def test_its_kernel_is_the_one_that_was_built(server):
    code = "from engine.kernels import native, proposals, library; import shutil; from pathlib import Path;"
    code += " assert native.kernel() and proposals.kernel();"
    code += "print(library.library().name, *filter(shutil.which, library.COMPILERS))"
    assert re.fullmatch(r"kernels-(x86-64-v[34]|armv8-a)-\w+\.so", python(code).strip())


def test_it_lists_its_packages(server):
    listed = json.loads(podman("exec", server, "cat", "/usr/share/doc/unmask/packages.cdx.json"))
    versions = {component["name"].lower(): component["version"] for component in listed["components"]}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name in ("fastapi", "numpy", "torch", "transformers"):
        assert versions[name].partition("+")[0] == pinned[name]


def test_its_labels_say_what_it_is(server):
    labels = json.loads(podman("image", "inspect", IMAGE))[0]["Labels"]
    told = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert {"title", "description", "version", "revision", "licenses"} <= {*told}
    assert f'version = "{told["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_it_ends_when_it_is_told_to(server):
    end(server)
