"""The components for a gateway and for KEDA: closed schemas of what they use, and agreement with the other manifests.

The schemas are written here after the published kinds (InferencePool v1, HTTPRoute v1, ScaledObject v1alpha1), cut down
to the fields in use: a field that is misspelt or stands elsewhere is an error. No cluster has seen these files.
"""

import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

from server.http.routes import router
from server.settings.sources import load_settings

from .conftest import DOCKER, ROOT

K8S = DOCKER / "k8s"
BASE = yaml.safe_load((K8S / "kustomization.yaml").read_text())
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
LABELS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "maxLength": 63}}
COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string", "minLength": 1}
NUMBER = {"type": "string", "pattern": r"^\d+(\.\d+)?$"}


def closed(required, **optional):
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema, most):
    return {"type": "array", "items": schema, "minItems": 1, "maxItems": most}


def kind(api_version, name, spec):
    head = {"apiVersion": {"const": api_version}, "kind": {"const": name}, "metadata": closed({"name": NAME})}
    return closed({**head, "spec": spec})


POOL = kind(
    "inference.networking.k8s.io/v1",
    "InferencePool",
    closed(
        {
            "selector": closed({"matchLabels": LABELS}),
            "targetPorts": items(closed({"number": PORT}), 8),
            # The port may be left out only where the reference is to no Service.
            "endpointPickerRef": closed(
                {"name": NAME, "port": closed({"number": PORT})}, failureMode={"enum": ["FailOpen", "FailClose"]}
            ),
        }
    ),
)
PATH = closed({"type": {"enum": ["Exact", "PathPrefix"]}, "value": {"type": "string", "pattern": "^/"}})
BACKEND = {
    "oneOf": [
        closed({"name": NAME, "port": PORT}),
        closed({"group": {"const": "inference.networking.k8s.io"}, "kind": {"const": "InferencePool"}, "name": NAME}),
    ]
}
RULE = closed(
    {"matches": items(closed({"path": PATH}), 64), "backendRefs": items(BACKEND, 16)},
    timeouts=closed({"request": {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}}),
)
ROUTE = kind(
    "gateway.networking.k8s.io/v1",
    "HTTPRoute",
    closed({"parentRefs": items(closed({"name": NAME}), 32), "rules": items(RULE, 16)}),
)
TRIGGER = closed(
    {
        "type": {"const": "prometheus"},
        "name": NAME,
        "metricType": {"enum": ["AverageValue", "Value"]},
        "metadata": closed(
            {
                "serverAddress": {"type": "string", "pattern": "^http://"},
                "query": TEXT,
                "threshold": NUMBER,
                "ignoreNullValues": {"enum": ["true", "false"]},
            }
        ),
    }
)
SCALER = kind(
    "keda.sh/v1alpha1",
    "ScaledObject",
    closed(
        {
            "scaleTargetRef": closed({"apiVersion": TEXT, "kind": TEXT, "name": NAME}),
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "pollingInterval": COUNT,
            "advanced": closed({"horizontalPodAutoscalerConfig": closed({"behavior": {"type": "object"}})}),
            "triggers": items(TRIGGER, 8),
        }
    ),
)
PLUGIN = closed({"type": NAME}, parameters={"type": "object"})
SCORED = closed({"pluginRef": NAME}, weight={"type": "number", "exclusiveMinimum": 0})
CONFIG = closed(
    {
        "apiVersion": {"const": "llm-d.ai/v1alpha1"},
        "kind": {"const": "EndpointPickerConfig"},
        "plugins": items(PLUGIN, 16),
        "schedulingProfiles": items(closed({"name": NAME, "plugins": items(SCORED, 16)}), 1),
    }
)
COMPONENT = closed(
    {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1alpha1"},
        "kind": {"const": "Component"},
        "resources": items(TEXT, 16),
        "patches": items({"oneOf": [closed({"path": TEXT}), closed({"patch": TEXT})]}, 16),
    },
    configMapGenerator=items(closed({"name": NAME, "files": items(TEXT, 16)}), 16),
)
FILES = {
    "gateway/pool.yaml": POOL,
    "gateway/route.yaml": ROUTE,
    "gateway/config.yaml": CONFIG,
    "gateway/kustomization.yaml": COMPONENT,
    "keda/scaler.yaml": SCALER,
    "keda/kustomization.yaml": COMPONENT,
}


def document(name):
    return yaml.safe_load((K8S / name).read_text())


@pytest.fixture(scope="module")
def picker():
    """Kind -> manifest."""
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all((K8S / "gateway/picker.yaml").read_text())}


@pytest.fixture
def server():
    """The pod template of the servers with the labels that kustomize adds."""
    template = document("deployment.yaml")["spec"]["template"]
    added = {name: value for labels in BASE["labels"] for name, value in labels["pairs"].items()}
    return {**template, "metadata": {"labels": template["metadata"]["labels"] | added}}


@pytest.mark.parametrize("name", FILES)
def test_it_has_the_fields_of_its_kind_and_no_others(name):
    jsonschema.validate(document(name), FILES[name])


def test_the_picker_is_valid():
    module = [sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet", str(K8S / "gateway/picker.yaml")]
    subprocess.run(module, check=True)


@pytest.mark.parametrize("name", ["gateway", "keda"])
def test_components_are_built_from_every_file_in_them(name):
    component = document(f"{name}/kustomization.yaml")
    files = [file for generated in component.get("configMapGenerator", ()) for file in generated["files"]]
    patches = [patch["path"] for patch in component["patches"] if "path" in patch]
    there = {path.name for path in (K8S / name).iterdir()}
    assert there == {"kustomization.yaml", *component["resources"], *files, *patches}
    assert f"components: [{name}]" in (K8S / name / "kustomization.yaml").read_text()
    assert "components" not in BASE, "a cluster without their kinds would refuse everything"


def test_the_pool_is_the_servers_and_not_the_picker(server, picker):
    spec = document("gateway/pool.yaml")["spec"]
    assert spec["selector"]["matchLabels"] == server["metadata"]["labels"]
    assert spec["targetPorts"] == [{"number": server["spec"]["containers"][0]["ports"][0]["containerPort"]}]
    labels = picker["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] != server["metadata"]["labels"]["app.kubernetes.io/component"]


def test_the_pool_is_picked_from_by_the_picker(picker):
    pool = document("gateway/pool.yaml")
    deployment, service = picker["Deployment"], picker["Service"]
    reference = pool["spec"]["endpointPickerRef"]
    assert reference["name"] == service["metadata"]["name"]
    [port] = service["spec"]["ports"]
    assert reference["port"]["number"] == port["port"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert f"--pool-name={pool['metadata']['name']}" in container["args"]
    assert f"--pool-group={pool['apiVersion'].split('/')[0]}" in container["args"]
    assert f"--grpc-port={ports[port['targetPort']]}" in container["args"]
    assert f"--grpc-health-port={ports['grpc-health']}" in container["args"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == ports["grpc-health"]


def test_the_picker_has_its_config_and_its_rights(picker):
    pod = picker["Deployment"]["spec"]["template"]["spec"]
    [container], [volume] = pod["containers"], pod["volumes"]
    [generated] = document("gateway/kustomization.yaml")["configMapGenerator"]
    assert volume["configMap"]["name"] == generated["name"]
    assert f"--config-file={container['volumeMounts'][0]['mountPath']}/{generated['files'][0]}" in container["args"]
    binding, account = picker["RoleBinding"], picker["ServiceAccount"]["metadata"]["name"]
    assert binding["roleRef"]["name"] == picker["Role"]["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": BASE["namespace"]}]
    assert pod["serviceAccountName"] == account
    assert {verb for rule in picker["Role"]["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}


def test_profiles_weigh_plugins_that_there_are():
    config = document("gateway/config.yaml")
    there = {plugin["type"] for plugin in config["plugins"]}
    [profile] = config["schedulingProfiles"]
    assert {plugin["pluginRef"] for plugin in profile["plugins"]} <= there
    assert all(plugin["pluginRef"].endswith("-scorer") == ("weight" in plugin) for plugin in profile["plugins"])


def test_the_route_leads_to_the_pool_and_to_the_service():
    picked, rest = document("gateway/route.yaml")["spec"]["rules"]
    pool, service = document("gateway/pool.yaml"), document("service.yaml")
    assert [backend["name"] for backend in picked["backendRefs"]] == [pool["metadata"]["name"]]
    assert rest["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
    posted = {route.path for route in router.routes if "POST" in route.methods}
    assert {match["path"]["value"] for match in picked["matches"]} <= posted
    assert [match["path"] for match in rest["matches"]] == [{"type": "PathPrefix", "value": "/v1"}]


def test_the_servers_show_what_the_picker_reads(server, tmp_path):
    patch = document("gateway/metrics.yaml")
    deployment = document("deployment.yaml")
    assert [patch[key] for key in ("kind", "metadata")] == [deployment[key] for key in ("kind", "metadata")]
    [patched], [container] = patch["spec"]["template"]["spec"]["containers"], server["spec"]["containers"]
    assert patched["name"] == container["name"]
    (tmp_path / "api-keys").write_text("a-key\n")
    argv = ["--config", str(K8S / "settings.yaml"), "--api-key-file", str(tmp_path / "api-keys")]
    settings = load_settings(argv, {variable["name"]: variable["value"] for variable in patched["env"]})
    assert settings.server.metrics_compat == "vllm"
    assert not settings.server.metrics_need_key, "the picker brings none"


def test_only_one_of_them_counts_the_pods():
    [patch] = document("keda/kustomization.yaml")["patches"]
    removed, autoscaler = yaml.safe_load(patch["patch"]), document("autoscaling.yaml")
    assert removed.pop("$patch") == "delete"
    assert removed == {key: autoscaler[key] for key in ("apiVersion", "kind", "metadata")}
    scaler = document("keda/scaler.yaml")["spec"]
    assert scaler["scaleTargetRef"] == autoscaler["spec"]["scaleTargetRef"]
    bounds = autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]
    assert (scaler["minReplicaCount"], scaler["maxReplicaCount"]) == bounds
    assert scaler["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler["spec"]["behavior"]


def triggers():
    return {trigger["name"]: trigger for trigger in document("keda/scaler.yaml")["spec"]["triggers"]}


def test_it_scales_by_metrics_of_the_model_that_is_served():
    table = (ROOT / "docs" / "operations.md").read_text()
    [model] = document("settings.yaml")["served_model_name"]
    for trigger in triggers().values():
        selected = re.findall(r'(unmask_\w+?)(?:_sum|_count)?\{model_name="(.*?)"\}', trigger["metadata"]["query"])
        assert len(selected) == trigger["metadata"]["query"].count("unmask_")
        for name, value in selected:
            assert f"| `{name}` |" in table
            assert value == model


SERIES = {
    # Of two servers one has a half-full forward each two seconds, the other a full one each second; then neither has.
    'unmask_requests_waiting{model_name="M",instance="a"}': "3x10 0x100",
    'unmask_requests_waiting{model_name="M",instance="b"}': "5x10 0x100",
    'unmask_batch_rows_sum{model_name="M",instance="a"}': "0+90000x10 900000x100",
    'unmask_batch_rows_count{model_name="M",instance="a"}': "0+30x10 300x100",
    'unmask_batch_rows_capacity{model_name="M",instance="a"}': "6000x200",
    'unmask_batch_rows_sum{model_name="M",instance="b"}': "0+360000x10 3600000x100",
    'unmask_batch_rows_count{model_name="M",instance="b"}': "0+60x10 600x100",
    'unmask_batch_rows_capacity{model_name="M",instance="b"}': "6000x200",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "busy", "idle"), [("queue", 8, 0), ("rows", (0.5 * 3000 + 1 * 6000) / (1.5 * 6000), 0)]
)
def test_its_queries_give_one_number_each(name, busy, idle, tool, tmp_path):
    model = document("settings.yaml")["served_model_name"][0]
    query = triggers()[name]["metadata"]["query"]
    series = [{"series": key.replace('"M"', f'"{model}"'), "values": values} for key, values in SERIES.items()]
    times = {"8m": busy, "60m": idle}
    asked = [
        {"expr": query, "eval_time": time, "exp_samples": [{"labels": "{}", "value": value}]}
        for time, value in times.items()
    ]
    test = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    subprocess.run([tool("promtool"), "test", "rules", str(tmp_path / "test.yml")], check=True)
