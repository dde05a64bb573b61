"""The manifests: valid, complete, and in agreement with the server and the image that they run."""

import subprocess
import sys

import httpx
import pytest
import yaml

from server.http.lifecycle import GRACE_SECONDS
from server.http.routes import router
from server.settings.environment import service_links
from server.settings.sources import from_file, load_settings

from .conftest import DOCKER

K8S = DOCKER / "k8s"
KUSTOMIZATION = yaml.safe_load((K8S / "kustomization.yaml").read_text())
MANIFESTS = [K8S / name for name in KUSTOMIZATION["resources"]]


def manifest(kind):
    [found] = [m for m in (yaml.safe_load(path.read_text()) for path in MANIFESTS) if m["kind"] == kind]
    return found


@pytest.fixture
def pod():
    return manifest("Deployment")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    [container] = pod["containers"]
    return container


@pytest.fixture
def settings(tmp_path):
    """Of the pod, but for its keys, which are not on this machine."""
    (tmp_path / "api-keys").write_text("a-key\n")
    return load_settings(["--config", str(K8S / "settings.yaml"), "--api-key-file", str(tmp_path / "api-keys")], {})


def test_kustomize_builds_from_every_file_here():
    [generated] = KUSTOMIZATION["configMapGenerator"]
    assert {*KUSTOMIZATION["resources"], *generated["files"], "kustomization.yaml"} == {
        path.name for path in K8S.iterdir() if path.is_file()
    }
    assert KUSTOMIZATION["kind"] == "Kustomization"


@pytest.mark.slow
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_it_is_valid(path):
    module = [sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet", str(path)]
    subprocess.run(module, check=True)


def test_its_settings_are_settings(settings, container, pod):
    assert settings.server.host == "0.0.0.0"
    assert settings.server.port == container["ports"][0]["containerPort"]
    scraped = manifest("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert scraped == {"prometheus.io/scrape": "true", "prometheus.io/port": str(settings.server.port)}
    assert not settings.server.metrics_need_key, "whoever scrapes pods by their annotations brings none"
    written = from_file(K8S / "settings.yaml").values
    assert written["log_format"] == "json"
    [generated] = KUSTOMIZATION["configMapGenerator"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"] == ["--config", f"{mounts['settings']}/{generated['files'][0]}"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(volumes) == set(mounts)
    assert volumes["settings"]["configMap"]["name"] == generated["name"]
    claim = manifest("PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["model-cache"]["persistentVolumeClaim"]["claimName"] == claim
    assert written["api_key_file"].startswith(mounts["api-keys"])


def kubelet_variables(name, ports, host="10.96.7.1"):
    """What a kubelet gives every container for a Service with a cluster IP (`envvars.FromServices`, Docker's links)."""
    prefix = name.upper().replace("-", "_")
    first = ports[0]["port"]
    named = {f"SERVICE_PORT_{port['name'].upper().replace('-', '_')}": port["port"] for port in ports if "name" in port}
    address = f"[{host}]" if ":" in host else host
    variables = {"SERVICE_HOST": host, "SERVICE_PORT": first, **named, "PORT": f"tcp://{address}:{first}"}
    for port in ports:
        protocol = port.get("protocol", "TCP")
        link = f"PORT_{port['port']}_{protocol}"
        variables |= {
            link: f"{protocol.lower()}://{address}:{port['port']}",
            f"{link}_PROTO": protocol.lower(),
            f"{link}_PORT": port["port"],
            f"{link}_ADDR": host,
        }
    return {f"{prefix}_{suffix}": str(value) for suffix, value in variables.items()}


def test_services_are_no_settings_of_the_pod(pod, settings, tmp_path):
    assert pod["enableServiceLinks"] is False
    service = manifest("Service")
    environ = kubelet_variables(service["metadata"]["name"], service["spec"]["ports"])
    assert environ["UNMASK_PORT"].startswith("tcp://")
    argv = ["--config", str(K8S / "settings.yaml"), "--api-key-file", str(tmp_path / "api-keys")]
    assert load_settings(argv, environ) == settings


@pytest.mark.parametrize("name", ["unmask", "unmask-cpu", "unmask-max-model-len", "unmask-service", "unmask-port-80"])
@pytest.mark.parametrize("host", ["10.96.7.1", "fd00:10:96::A1"])
def test_whatever_a_service_is_called_it_is_no_setting(name, host):
    ports = [{"port": 80, "name": "http-api"}, {"port": 53, "name": "dns", "protocol": "UDP"}, {"port": 9, "name": "x"}]
    links = kubelet_variables(name, ports, host)
    assert service_links({**links, "UNMASK_HOST": "::", "UNMASK_PORT_FORWARD": "80", "HOME": "/"}) == list(links)
    given = load_settings([], {**links, "UNMASK_LOG_LEVEL": "error"})
    assert given == load_settings(["--log-level", "error"], {})


def test_a_port_that_is_set_is_not_taken_for_a_service():
    """A container's own `env` stands in place of what the kubelet would give it."""
    environ = kubelet_variables("unmask", [{"port": 80}]) | {"UNMASK_PORT": "8001"}
    assert load_settings([], environ).server.port == 8001


def test_only_one_of_them_counts_the_pods():
    target = manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    deployment = manifest("Deployment")
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "each `kubectl apply` would undo what the autoscaler has decided"


def test_a_pod_has_time_to_drain(settings, pod, container):
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = pause + settings.server.shutdown_timeout + GRACE_SECONDS
    assert pod["terminationGracePeriodSeconds"] > needed
    noticed = container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]
    assert pause >= noticed


def test_a_pod_has_no_privileges(pod, container):
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_probes_are_routes(container):
    paths = {route.path for route in router.routes}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths


def test_everything_selects_the_same_pods(container):
    deployment = manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "unmask"
    assert manifest("Service")["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


@pytest.mark.slow
def test_autoscaling_asks_for_a_metric_that_there_is(golden_server):
    [metric] = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert f"\n{metric['pods']['metric']['name']}{{" in httpx.get(f"{golden_server}/metrics").text
