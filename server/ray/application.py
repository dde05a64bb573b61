"""The Serve application: deployments of ingresses and replicas, and how Ray places, scales, watches and ends them.

`build` is for Serve config files (`import_path: server.ray.application:build`); its `args` are settings.
"""

import os
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from server.ray.ingress import Ingress
from server.ray.replica import EngineReplica
from server.settings.sources import from_mapping
from server.settings.tree import Settings

NAME = "unmask"
"""Of the application."""
INGRESS = "Ingress"
INGRESSES = 2
"""So that one goes on while the other is rolled over."""
UP_SECONDS, DOWN_SECONDS = 30.0, 600.0
"""How long more or fewer replicas must be wanted: as in docker/k8s/autoscaling.yaml."""
NO_LIMIT_SECONDS = 3600.0
"""How long an ingress that is rolled over may have requests, where they have no time limit."""
HEALTH_SECONDS = 5.0
"""Between two questions whether a replica is well."""
BESIDE = 64
"""Requests that a replica takes beside those that its engine runs and queues: the engine answers them, not Ray."""


def build(args: Mapping[str, Any]) -> Application:
    """The application for the settings in `args`, which are written as in the YAML file, and in the environment.

    Raises ConfigError.
    """
    return application(from_mapping(args, os.environ))


def gpus_of(settings: Settings) -> float:
    """GPUs of one replica: one for each rank where the cluster has any, unless the settings say otherwise."""
    if settings.ray.ray_gpus is not None:
        return settings.ray.ray_gpus
    has_gpus = settings.engine.device != "cpu" and ray.cluster_resources().get("GPU")
    return float(settings.engine.tensor_parallel_size) if has_gpus else 0.0


def application(settings: Settings) -> Application:
    """The application. Ray must be there: whether the cluster has GPUs decides what a replica needs."""
    config, ray_config = settings.engine, settings.ray
    drain = settings.server.shutdown_timeout
    gpus = gpus_of(settings)
    count: dict[str, Any] = {"num_replicas": ray_config.ray_replicas}
    if ray_config.ray_max_replicas is not None:
        count = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=ray_config.ray_replicas,
                max_replicas=ray_config.ray_max_replicas,
                upscale_delay_s=UP_SECONDS,
                downscale_delay_s=DOWN_SECONDS,
                policy=AutoscalingPolicy(policy_function="server.ray.scaling:desired"),
            )
        }
    replicas = serve.deployment(EngineReplica).options(
        **count,
        ray_actor_options={"num_cpus": ray_config.ray_cpus, "num_gpus": gpus},
        max_ongoing_requests=config.max_running_requests + config.max_queued_requests + BESIDE,
        max_queued_requests=config.max_queued_requests,
        request_router_config=RequestRouterConfig(request_router_class="server.ray.routing.router:AffinityRouter"),
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=drain,
        graceful_shutdown_wait_loop_s=1.0,
    )
    ingress = serve.deployment(Ingress).options(
        name=INGRESS,
        num_replicas=INGRESSES,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.server.max_connections,
        max_queued_requests=settings.server.max_connections,
        # Longer than a replica's: what one that is ended has not answered by then is asked of another.
        graceful_shutdown_timeout_s=drain + (settings.server.request_timeout or NO_LIMIT_SECONDS),
        graceful_shutdown_wait_loop_s=1.0,
    )
    return ingress.bind(settings.server, replicas.bind(settings))
