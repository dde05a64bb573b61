"""The Dockerfile and the compose files without Docker: every path, port, flag and command in them is real."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from server.http.lifecycle import GRACE_SECONDS
from server.settings.sources import load_settings
from server.settings.tree import ServerConfig

from .conftest import DOCKER, ROOT

FILES = ("compose.yaml", "compose.cpu.yaml", "compose.two.yaml")
MODELS = "/etc/unmask/"
"""Where the image has `configs/`."""


class Loader(yaml.SafeLoader):
    """Knows Compose's tags for overlays."""


def replacing(loader, node):
    """Whatever stands behind `!override`."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True)


Loader.add_constructor("!override", replacing)


def compose(name):
    return yaml.load((DOCKER / name).read_text(), Loader)


def services():
    """(file, name, service) of all files, overlays for themselves."""
    return [(file, name, service) for file in FILES for name, service in compose(file)["services"].items()]


def dockerfile():
    """Instruction -> its arguments, of the last stage."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stage = text[text.rindex("\nFROM ") :]
    return {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in stage.splitlines() if line[:1].isupper()}


def test_the_base_services_are_hardened():
    base = compose("compose.yaml")
    for name, service in base["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        uid = service["user"].split(":")[0]
        assert uid.isdecimal()
        assert uid != "0"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert re.search(r":v?\d+\.\d+", service["image"]), "a version, not whatever is newest"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_no_secret_is_in_a_file_that_is_kept():
    base = compose("compose.yaml")
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for secret in base["secrets"].values():
        folder = (DOCKER / secret["file"]).parent
        assert f"{folder.relative_to(ROOT)}/" in ignored
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    assert not [line for line in allowed[1:] if line.startswith("!docker")], "secrets would be sent to the builder"
    for _, _, service in services():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|KEY|TOKEN", name) or value.startswith("/run/secrets/")
        for secret in service.get("secrets", ()):
            assert secret in base["secrets"]


def test_everything_that_is_mounted_is_there():
    named = compose("compose.yaml")["volumes"]
    targets = {}
    for file, name, service in services():
        for volume in service.get("volumes", ()):
            source, target, *options = volume.split(":")
            if source.startswith("."):
                assert (DOCKER / source).exists(), f"{file}: {source}"
                assert options == ["ro"]
            else:
                assert source in named
            targets.setdefault(name, set()).add(target)
    prometheus = compose("compose.yaml")["services"]["prometheus"]
    paths = [flag.split("=")[1] for flag in prometheus["command"] if "=/" in flag]
    assert set(paths) <= targets["prometheus"]
    rules = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["rule_files"]
    assert all(Path("/etc/prometheus", rule).parent.as_posix() in targets["prometheus"] for rule in rules)
    assert "include upstream.conf;" in (DOCKER / "nginx" / "nginx.conf").read_text()
    assert "/etc/nginx/upstream.conf" in targets["nginx"]


def commands():
    return {
        f"{file}: {name}": service["command"]
        for file, name, service in services()
        if name.startswith("server") and "command" in service
    }


@pytest.fixture
def outside(tmp_path):
    """Arguments of a server's command with the image's paths turned into this checkout's, and a key in the key file."""
    (tmp_path / "api-keys").write_text("a-key\n")

    def translate(command):
        places = {MODELS: f"{ROOT}/configs/", "/run/secrets/": f"{tmp_path}/"}
        assert all(any(place in argument for argument in command) for place in places)
        for place, here in places.items():
            command = [argument.replace(place, here) for argument in command]
        return command

    return translate


@pytest.mark.parametrize("where", commands())
def test_servers_start_with_settings_that_parse(where, outside):
    settings = load_settings(outside(commands()[where]), {})
    assert settings.server.port == 8000
    assert settings.server.host == "0.0.0.0"
    assert not settings.server.metrics_need_key, "Prometheus brings none"
    [network] = compose("compose.yaml")["networks"]["inside"]["ipam"]["config"]
    assert network["subnet"] in settings.server.trusted_proxies


@pytest.mark.slow
def test_the_cpu_server_serves(outside, serve):
    """The very command of compose.cpu.yaml, but for where it listens."""
    with serve(*outside(commands()["compose.cpu.yaml: server"]), "--host", "127.0.0.1") as url:
        body = {"prompt": "Question: What is 2 plus 2?\nAnswer:", "max_tokens": 32}
        keyed = httpx.post(f"{url}/v1/completions", json=body, headers={"authorization": "Bearer a-key"}, timeout=60)
        assert keyed.status_code == 200, keyed.text
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 401
        assert httpx.get(f"{url}/metrics").status_code == 200


def test_the_image_has_what_commands_name():
    image = dockerfile()
    assert image["COPY"].split() == ["configs", MODELS.rstrip("/")]
    assert image["HEALTHCHECK"].endswith('CMD ["python", "-m", "server.http.health"]')
    assert image["ENTRYPOINT"] == '["unmask", "serve"]'
    assert image["EXPOSE"] == str(ServerConfig().port)
    assert image["USER"] == compose("compose.yaml")["services"]["server"]["user"]
    assert image["STOPSIGNAL"] == "SIGTERM"


def test_ports_match_what_listens():
    base = compose("compose.yaml")["services"]
    published = {name: int(service["ports"][0].rsplit(":", 1)[1]) for name, service in base.items()}
    assert published["server"] == ServerConfig().port
    nginx = (DOCKER / "nginx" / "nginx.conf").read_text()
    assert f"listen {published['nginx']};" in nginx
    scrape = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["file_sd_configs"] == [{"files": ["targets.yml"]}]
    addresses = [
        service["networks"]["inside"]["ipv4_address"]
        for service in (base["server"], compose("compose.two.yaml")["services"]["server-b"])
    ]
    for count, number in enumerate(("one", "two"), start=1):
        [group] = yaml.safe_load((DOCKER / "prometheus" / f"targets-{number}.yml").read_text())
        assert group["targets"] == [f"{address}:{published['server']}" for address in addresses[:count]]
    for name, service in base.items():
        assert f":{published[name]}/" in " ".join(service["healthcheck"]["test"]), name


def test_the_grace_period_outlasts_the_servers_own_time_to_drain():
    for file, name, service in services():
        if "stop_grace_period" in service:
            seconds = int(service["stop_grace_period"].removesuffix("s"))
            settings = load_settings([flag for flag in service.get("command", ()) if "shutdown" in flag], {})
            assert seconds > settings.server.shutdown_timeout + GRACE_SECONDS, f"{file}: {name}"


@pytest.mark.slow
def test_the_health_check_does_what_it_says(serve, llada_tiny):
    """Against a server that is up, and against none. The image's own: tests/server/test_health.py."""
    kind, *command = compose("compose.yaml")["services"]["server"]["healthcheck"]["test"]
    assert (kind, command[0]) == ("CMD", "python")

    def check(port):
        there = [argument.replace(":8000/", f":{port}/") for argument in command[1:]]
        return subprocess.run([sys.executable, *there], capture_output=True).returncode

    with serve(str(llada_tiny)) as url:
        assert check(url.rsplit(":", 1)[1]) == 0
    assert check(url.rsplit(":", 1)[1]) != 0


def test_the_compose_files_first_lines_say_how(tmp_path):
    """Their commands name files that are there, and make every secret that is needed."""
    header = (DOCKER / "compose.yaml").read_text().split("\n\n")[0]
    for file in re.findall(r"docker/compose[\w.]*yaml", header):
        assert (ROOT / file).exists()
    for secret in compose("compose.yaml")["secrets"].values():
        assert Path("docker", secret["file"]).as_posix() in header
    assert all(shlex.split(line, comments=True) for line in re.findall(r"^#   (.*)", header, re.MULTILINE))
