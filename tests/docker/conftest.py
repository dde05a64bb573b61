"""Programs that these tests run: those of `.ci/tools`, or the machine's own."""

import json
import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forked import wait_until_ready

from .podman import podman, remove_all

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


@pytest.fixture(scope="session")
def tool():
    """`tool("promtool")`: the path of a program."""

    def find(name):
        path = os.pathsep.join([str(ROOT / ".tools" / "bin"), os.environ["PATH"], "/usr/sbin"])
        found = shutil.which(name, path=path)
        assert found, f"{name} is not here; `make tools` fetches it"
        return found

    return find


@pytest.fixture(scope="session")
def free_port():
    def find():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def background():
    """`with background(command, ready_url)`: a process that runs while the body does, and its output on failure."""

    @contextmanager
    def running(command, ready_url, log, **options):
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
        try:
            wait_until_ready(process, ready_url, log, 60)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return running


@pytest.fixture(scope="session")
def panels():
    """(title, query) of every query of every dashboard."""
    return [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


@pytest.fixture(scope="session")
def containers():
    """podman, with nothing there before and nothing left afterwards."""
    assert os.environ.get("UNMASK_PODMAN"), "`make test-containers` builds what these tests run"
    remove_all()
    yield
    left = podman("ps", "--all", "--quiet") + podman("volume", "ls", "--quiet")
    remove_all()
    assert not left
