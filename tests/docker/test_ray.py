"""The files for Ray: a Serve configuration and KubeRay's RayService, held to schemas, to each other and to settings.

The schema of the RayService is written here after the published kind (ray.io/v1), cut down to the fields in use: one
that is misspelt or stands elsewhere is an error. Its pods are held to Kubernetes' own. No cluster has seen these files.
"""

import subprocess
import sys

import jsonschema
import pytest
import yaml

from server.ray.application import NAME, build
from server.ray.scaling import FULL, WAITING_EACH
from server.settings.sources import from_mapping

from .conftest import DOCKER, ROOT

SERVE = DOCKER / "ray" / "serve.yaml"
SERVICE = DOCKER / "k8s" / "ray" / "service.yaml"
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}


def closed(required, **optional):
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
TEMPLATE = closed({"spec": {"type": "object"}}, metadata={"type": "object"})
WORKERS = {"replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
RAY_SERVICE = closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayService"},
        "metadata": closed({"name": TEXT}),
        "spec": closed(
            {
                "serveConfigV2": TEXT,
                "rayClusterConfig": closed(
                    {
                        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
                        "headGroupSpec": closed({"rayStartParams": PARAMS, "template": TEMPLATE}),
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": closed(
                                {"groupName": TEXT, "rayStartParams": PARAMS, "template": TEMPLATE, **WORKERS}
                            ),
                        },
                    },
                    enableInTreeAutoscaling={"type": "boolean"},
                    authOptions=closed({"mode": {"const": "token"}}),
                ),
            },
            serviceUnhealthySecondThreshold=COUNT,
            deploymentUnhealthySecondThreshold=COUNT,
        ),
    }
)


@pytest.fixture(scope="module")
def service():
    return yaml.safe_load(SERVICE.read_text())


@pytest.fixture(scope="module")
def cluster(service):
    return service["spec"]["rayClusterConfig"]


@pytest.fixture(scope="module", params=["serve", "service"])
def config(request, service):
    """A Serve configuration, as it stands there."""
    return yaml.safe_load(SERVE.read_text() if request.param == "serve" else service["spec"]["serveConfigV2"])


def pods(cluster):
    [workers] = cluster["workerGroupSpecs"]
    return {"head": cluster["headGroupSpec"]["template"]["spec"], "worker": workers["template"]["spec"]}


def test_nobody_joins_the_cluster_without_a_token(cluster):
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_service_has_the_fields_of_its_kind_and_no_others(service):
    jsonschema.validate(service, RAY_SERVICE)


def test_its_pods_are_valid(cluster, tmp_path):
    for name, spec in pods(cluster).items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}))
        subprocess.run([sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet", str(path)], check=True)


def test_serve_takes_its_configuration(config):
    from ray.serve.schema import ServeDeploySchema  # seconds, which all tests would wait for

    read = ServeDeploySchema.model_validate(config)
    [application] = read.applications
    assert (application.name, application.route_prefix) == (NAME, "/")
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    given = read.model_dump(exclude_unset=True)
    assert given.keys() == config.keys(), "Serve passes over keys that it does not know"
    assert given["http_options"].keys() == config["http_options"].keys()


def test_its_arguments_are_settings(config, tmp_path):
    (tmp_path / "api-keys").write_text("a-key\n")
    [application] = config["applications"]
    args = dict(application["args"])
    if "api_key_file" in args:
        args["api_key_file"] = str(tmp_path / "api-keys")
    assert build(args), "an application can be made of it, without a cluster"
    settings = from_mapping(args, {})
    assert settings.ray.ray_replicas < settings.ray.ray_max_replicas
    assert config["http_options"]["keep_alive_timeout_s"] == settings.server.keep_alive_timeout


def test_both_configurations_agree(service):
    [ours], [theirs] = (
        yaml.safe_load(text)["applications"] for text in (SERVE.read_text(), service["spec"]["serveConfigV2"])
    )
    assert {**ours["args"], "api_key_file": None, "metrics_need_key": None} == {
        **theirs["args"],
        "api_key_file": None,
        "metrics_need_key": None,
    }


def test_the_cluster_fits_the_replicas(service, cluster):
    [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    args = application["args"]
    [workers] = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (args["ray_replicas"], args["ray_max_replicas"])
    [container] = pods(cluster)["worker"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == args["ray_gpus"]
    assert int(container["resources"]["requests"]["cpu"]) > args["ray_cpus"]
    assert pods(cluster)["worker"]["terminationGracePeriodSeconds"] > args["shutdown_timeout"]
    for spec in pods(cluster).values():
        [mount] = spec["containers"][0]["volumeMounts"]
        assert args["api_key_file"].startswith(mount["mountPath"])
        [volume] = spec["volumes"]
        assert volume["name"] == mount["name"]


def test_ray_is_the_version_that_is_tested(cluster):
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert cluster["rayVersion"] == pinned["ray"]


def test_ray_and_keda_scale_by_the_same_numbers():
    scaler = yaml.safe_load((DOCKER / "k8s" / "keda" / "scaler.yaml").read_text())
    asked = {trigger["name"]: float(trigger["metadata"]["threshold"]) for trigger in scaler["spec"]["triggers"]}
    assert asked == {"queue": WAITING_EACH, "rows": FULL}
