"""Settings of serving by replicas on a Ray cluster. Knows no Ray."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from engine import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """How many replicas there are, and what each gets. Raises ConfigError for bounds that exclude each other."""

    ray: bool = False
    """Serve by replicas under Ray Serve instead of one process; needs `unmask[ray]`. SIGHUP reads the settings again,
    and rolls the replicas over."""
    ray_address: str | None = None
    """The cluster: `auto` for the one that this machine is in, or host:port; null starts one on this machine alone."""
    ray_replicas: Annotated[int, Field(ge=1)] = 1
    """Replicas of the engine; with `ray_max_replicas`, the fewest."""
    ray_max_replicas: Annotated[int, Field(ge=1)] | None = None
    """The most replicas, which waiting requests and full forwards call up; null keeps their number."""
    ray_cpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """CPUs that Ray reserves for a replica."""
    ray_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """GPUs that a replica gets; null is `tensor_parallel_size` where the cluster has any, unless `device` is cpu."""

    def __post_init__(self) -> None:
        if self.ray_max_replicas is not None and self.ray_max_replicas < self.ray_replicas:
            raise ConfigError(
                f"ray_max_replicas is {self.ray_max_replicas}; it must be at least ray_replicas, {self.ray_replicas}"
            )
