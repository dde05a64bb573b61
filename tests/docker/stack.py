"""The compose files, started by podman-compose from one file: local images, no Grafana, an address of its own."""

import os
import secrets
import shutil
import subprocess
import sys

import httpx
import yaml

from .conftest import DOCKER, ROOT
from .merge import merged
from .podman import end, podman, wait

PROJECT = "unmask-test"
LOOPBACK = "127.77.0.1"
"""Where ports are published: nothing else of this machine listens there."""
FILES = ("compose.yaml", "compose.cpu.yaml")


def rendered(files, folder):
    """The files merged, and changed as this machine needs it; the key stands in a file of `folder`."""
    document = merged([DOCKER / name for name in files])
    services = document["services"]
    del services["grafana"], document["secrets"]["grafana-admin"], document["volumes"]["grafana-data"]
    for name, service in services.items():
        program = name.partition("-")[0]
        service["image"] = f"localhost/unmask-test/{program}"
        service.pop("build", None)
        service.pop("depends_on", None)
        service["healthcheck"].pop("start_interval", None)
        service["ports"] = [port.replace("127.0.0.1:", f"{LOOPBACK}:") for port in service["ports"]]
        service["volumes"] = [
            volume.replace("./prometheus/", f"{folder}/prometheus/").replace("./", f"{DOCKER}/", 1)
            for volume in service["volumes"]
        ]
        if isinstance(
            service["networks"], dict
        ):  # as Docker does: an address that comes back is the same card, which neighbours remember
            inside = service["networks"]["inside"]
            inside["mac_address"] = "02:42:" + ":".join(f"{int(n):02x}" for n in inside["ipv4_address"].split("."))
        if program == "server":  # `extends` reads compose.yaml alone
            service["command"], service["deploy"] = services["server"]["command"], {}
    hasten(folder / "prometheus")
    document["secrets"]["api-keys"]["file"] = str(folder / "api-keys")
    return document | {"name": PROJECT}


def hasten(folder):
    """Prometheus' configuration, whose alarms wait for seconds: promtool's tests know for how long they should."""
    shutil.copytree(DOCKER / "prometheus", folder, dirs_exist_ok=True)
    for path, given, hastened in (
        ("prometheus.yml", "evaluation_interval: 15s", "evaluation_interval: 5s"),
        ("rules/alerts.yml", "for: 1m", "for: 5s"),
    ):
        text = (folder / path).read_text()
        assert given in text
        (folder / path).write_text(text.replace(given, hastened))


class Stack:
    def __init__(self, folder):
        self._folder = folder
        self.key = secrets.token_hex(24)
        (folder / "api-keys").write_text(f"{self.key}\n")
        self._write(FILES)

    def _write(self, files):
        self.document = rendered(files, self._folder)
        (self._folder / "compose.yaml").write_text(yaml.safe_dump(self.document))

    def compose(self, *arguments):
        command = [sys.executable, "-m", "podman_compose", "--podman-path", os.environ["UNMASK_PODMAN"]]
        command += ["-p", PROJECT, "-f", str(self._folder / "compose.yaml"), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def up(self, *services):
        self.compose("up", "-d", "--no-deps", *services)
        for service in services:
            wait(self.name(service))

    def widen(self):
        """To two servers, as with compose.two.yaml from the start."""
        self._write([*FILES, "compose.two.yaml"])
        self.up("server-b")
        for service in ("nginx", "prometheus"):
            self.renew(service)

    def renew(self, service):
        """As `up` does with another image or other settings: ended in its time, and made anew."""
        end(self.name(service))
        podman("rm", self.name(service))
        self.up(service)

    def down(self):
        self.compose("down", "--volumes")

    def name(self, service):
        return f"{PROJECT}_{service}_1"

    def url(self, service):
        """Of the port that it publishes."""
        address, port, _ = self.document["services"][service]["ports"][0].split(":")
        return f"http://{address}:{port}"

    def client(self):
        """Of nginx, with the key."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url("nginx"), headers=headers, timeout=120)
