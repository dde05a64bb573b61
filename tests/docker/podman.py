"""The podman that `.ci/containers` has made: its images, containers and networks are nobody else's."""

import json
import os
import subprocess
import time
from contextlib import suppress


def call(*arguments):
    """Whether it succeeds, and what it says."""
    ended = subprocess.run([os.environ["UNMASK_PODMAN"], *arguments], capture_output=True, text=True)
    return ended.returncode == 0, ended.stdout + ended.stderr


def podman(*arguments):
    """What it says, where it must succeed."""
    succeeds, said = call(*arguments)
    assert succeeds, f"{arguments}: {said}"
    return said


def inspect(container):
    return json.loads(podman("inspect", container))[0]


def is_well(container):
    """As its health check says now: nobody else asks it where there is no systemd."""
    return call("healthcheck", "run", container)[0]


def wait(container, seconds=240):
    """Until it is well."""
    end = time.monotonic() + seconds
    while not is_well(container):
        assert time.monotonic() < end, podman("logs", container)
        time.sleep(1)


def end(container):
    """Within its grace period: otherwise it would be killed, and its exit code say so."""
    podman("stop", container)
    assert inspect(container)["State"]["ExitCode"] == 0, podman("logs", container)


def remove_all():
    """What an earlier run that was killed may have left."""
    with suppress(AssertionError):
        podman("rm", "--all", "--force", "--time", "1")
        podman("pod", "rm", "--all", "--force")
        podman("volume", "prune", "--force")
        podman("network", "prune", "--force")
        podman("secret", "rm", "--all")
