"""The Deployment, run by podman: with its settings, keys and claim, and with variables as a kubelet makes them.

podman has no services and no probes of its own; the pod is asked from outside, as a kubelet would.
"""

import base64
import shutil
import subprocess
import time
from contextlib import suppress

import httpx
import pytest
import yaml

from .podman import call, end, inspect, podman
from .test_kubernetes import K8S, KUSTOMIZATION, kubelet_variables

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]
KEY = "a-key-of-the-pods"
ENCODED = base64.b64encode(KEY.encode()).decode()
POD = "unmask-pod-0"
CONTAINER = f"{POD}-server"


def built():
    """What `kubectl apply -k` would send, by kind; without kubectl, without its names and labels."""
    if shutil.which("kubectl"):
        text = subprocess.run(["kubectl", "kustomize", K8S], capture_output=True, text=True, check=True).stdout
        documents = list(yaml.safe_load_all(text))
    else:
        documents = [yaml.safe_load((K8S / name).read_text()) for name in KUSTOMIZATION["resources"]]
        [generated] = KUSTOMIZATION["configMapGenerator"]
        data = {name: (K8S / name).read_text() for name in generated["files"]}
        kind = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generated["name"]}}
        documents.append({**kind, "data": data})
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(containers, tmp_path_factory):
    """Its address. Changed: the image, the demo model in place of one that takes a GPU, and a claim of less."""
    documents = built()
    template = documents["Deployment"]["spec"]["template"]["spec"]
    [container] = template["containers"]
    container["image"] = "localhost/unmask-test/server:latest"
    container["imagePullPolicy"] = "Never"
    for amounts in container["resources"].values():
        del amounts["nvidia.com/gpu"], amounts["memory"]
    service = documents["Service"]
    links = kubelet_variables(service["metadata"]["name"], service["spec"]["ports"])
    container["env"] = [{"name": name, "value": value} for name, value in links.items()]
    [(name, text)] = documents["ConfigMap"]["data"].items()
    settings = yaml.safe_load(text) | {"model": "demo", "served_model_name": ["demo"], "max_model_len": 512}
    documents["ConfigMap"]["data"] = {name: yaml.safe_dump(settings)}
    keys = {"api-keys": ENCODED}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "unmask-api-keys"}, "data": keys}
    # podman 4.3 looks for a word that Kubernetes lets one leave out.
    volumes = {volume["name"]: volume for volume in template["volumes"]}
    volumes["api-keys"]["secret"]["optional"] = False
    path = tmp_path_factory.mktemp("pod") / "pod.yaml"
    kept = [documents[kind] for kind in ("ConfigMap", "PersistentVolumeClaim", "Deployment")]
    path.write_text(yaml.safe_dump_all([secret, *kept]))
    try:
        podman("kube", "play", path)
        networks = inspect(CONTAINER)["NetworkSettings"]["Networks"]
        yield next(iter(networks.values()))["IPAddress"]
    finally:
        for command in (f"kube down {path}", "secret rm unmask-api-keys", "volume rm --all"):
            call(*command.split())


def until_it_is(status, url, seconds=240):
    last = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == status:
                return
        assert inspect(CONTAINER)["State"]["Running"], podman("logs", CONTAINER)
        assert time.monotonic() < last, podman("logs", CONTAINER)
        time.sleep(1)


def test_it_is_live_and_ready_as_its_probes_ask(pod):
    """Whatever variables a Service of its name brings."""
    [container] = built()["Deployment"]["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        url = f"http://{pod}:{port['containerPort']}{container[probe]['httpGet']['path']}"
        until_it_is(200, url)
    assert "UNMASK_PORT=tcp://" in podman("exec", CONTAINER, "env")
    assert "they are no settings" in podman("logs", CONTAINER)


def test_it_answers_with_the_key_of_its_secret(pod):
    body = {"prompt": "Question: What is 2 plus 2?\nAnswer:", "max_tokens": 16}
    url = f"http://{pod}:8000/v1/completions"
    key = podman("exec", CONTAINER, "cat", "/run/secrets/unmask/api-keys").strip()
    assert key in (KEY, ENCODED), "podman 4.3 does not decode it"
    answer = httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert httpx.post(url, json=body).status_code == 401


def test_its_root_is_read_only_and_it_has_no_rights(pod):
    assert inspect(CONTAINER)["HostConfig"]["ReadonlyRootfs"]
    fields = dict(line.split(":", 1) for line in podman("exec", CONTAINER, "cat", "/proc/1/status").splitlines())
    assert fields["Uid"].split()[0] == "10001"
    assert int(fields["CapEff"], 16) == 0
    assert call("exec", CONTAINER, "touch", "/cache/x")[0], "its claim is its own"


def test_it_ends_in_its_grace_period(pod):
    end(CONTAINER)
