"""`unmask serve --ray`: brings Ray, Serve's proxy and the application up, waits for signals, and takes them down again.

SIGTERM or Ctrl-C drains: new requests get 503, and running ones finish, for `shutdown_timeout` at most. A second one
ends at once. SIGHUP reads the settings again and rolls the application over, replica by replica.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from engine import ConfigError
from server.ray.application import INGRESS, INGRESSES, NAME, application, gpus_of
from server.settings.tree import Settings

STORE_BYTES = 256 * 2**20
"""Of Ray's object store on this machine, where Ray would take a third of its memory: answers are small."""
DRAIN_PAUSE = 0.2
DRAIN_SECONDS = 5.0
"""Time that ingresses have to answer while the server drains."""
FORCED = 1
"""Exit code if a second signal cuts the draining short."""

logger = logging.getLogger(__name__)


def run(settings: Settings, reread: Callable[[], Settings], announce: Callable[[], None]) -> int:
    """Serves until a signal ends it, and returns the exit code. Raises ConfigError if Ray or the application fails.

    `reread`: the settings as they stand now. `announce`: called once replicas answer.
    """
    own = settings.ray.ray_address is None
    _connect(settings)
    signals = _Signals()  # Ray has put handlers of its own there
    try:
        if own:
            _check_gpus(settings)
        _deploy(settings, "HeadOnly" if own else "EveryNode")
        announce()
        signals.is_serving = True
        while signals.wait() == signal.SIGHUP:
            settings = _rolled_over(settings, reread)
        unfinished = _drain(settings.server.shutdown_timeout)
        if not own:
            serve.delete(NAME, _blocking=False)
        elif not unfinished:
            serve.shutdown()
    finally:
        ray.shutdown()  # ends a cluster of our own at once
    return 0


class _Signals:
    """The signals that arrive, in their order. A second one that ends the process does so at once.

    Raises SystemExit in the main thread where one does before the server serves.
    """

    def __init__(self) -> None:
        self._arrived: list[int] = []
        self._changed = threading.Condition()
        self._is_ending = False
        self.is_serving = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def wait(self) -> int:
        """The next one."""
        while not self._arrived:
            time.sleep(DRAIN_PAUSE)
        return self._arrived.pop(0)

    def _on_signal(self, number: int, _: object) -> None:
        if number != signal.SIGHUP:
            if self._is_ending:
                logger.warning("second signal: ending at once")
                os._exit(FORCED)
            self._is_ending = True
            if not self.is_serving:
                sys.exit(128 + number)
        self._arrived.append(number)


def _connect(settings: Settings) -> None:
    """Joins the cluster, or starts one on this machine alone. Raises ConfigError."""
    config = settings.ray
    try:
        if config.ray_address is not None:
            ray.init(address=config.ray_address)
            return
        most = config.ray_max_replicas or config.ray_replicas
        ray.init(
            address="local",  # without it, a cluster that happens to run here would be joined
            # Ray counts CPUs, and reserves none of them: a machine with few may have several replicas.
            num_cpus=max(os.cpu_count() or 1, int(most * config.ray_cpus) + INGRESSES),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray cannot be reached: {error}") from None


def _deploy(settings: Settings, proxies: str | None) -> None:
    """Brings the application up, or rolls it over. Returns once it runs. Raises ConfigError.

    `proxies`: on which nodes Serve's proxies are started; None has them already.
    """
    server = settings.server
    options = {"host": server.host, "port": server.port, "keep_alive_timeout_s": int(server.keep_alive_timeout)}
    try:
        if proxies:
            serve.start(proxy_location=proxies, http_options=options)
        serve.run(application(settings), name=NAME, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise ConfigError(f"the application does not start: {error}") from None


def _check_gpus(settings: Settings) -> None:
    """Raises ConfigError if this machine has fewer GPUs than the replicas take: Ray would wait for more."""
    wanted, there = settings.ray.ray_replicas * gpus_of(settings), ray.cluster_resources().get("GPU", 0.0)
    if wanted > there:
        raise ConfigError(
            f"ray_replicas is {settings.ray.ray_replicas}, which takes {wanted:g} GPUs, and this machine has "
            f"{there:g}: lower it, or ray_gpus"
        )


def _rolled_over(settings: Settings, reread: Callable[[], Settings]) -> Settings:
    """Rolls over to the settings as they are now, or back if these do not start. Returns those that serve."""
    try:
        wanted = reread()
    except ConfigError as error:
        logger.error("the application stays as it is: %s", error)
        return settings
    try:
        _deploy(wanted, None)
    except ConfigError as error:
        logger.error("%s; going back to the settings before", error)
        try:
            _deploy(settings, None)
        except ConfigError as again:
            logger.error("these do not start any more, either: %s", again)
        return settings
    logger.info("rolled over to the settings as they are now")
    return wanted


def _drain(seconds: float) -> int:
    """Has ingresses refuse new requests; returns how many of the old ones are unfinished after so many seconds."""
    ingress = serve.get_deployment_handle(INGRESS, NAME)
    ends = time.monotonic() + seconds
    _asked(ingress, "drain")
    while (left := sum(_asked(ingress, "unfinished"))) and time.monotonic() < ends:
        time.sleep(DRAIN_PAUSE)
    logger.info("shutting down with %d unfinished requests", left)
    return left


def _asked(ingress: DeploymentHandle, method: str) -> list[int]:
    """What ingresses answer that have not ended; nothing if one does not answer in time."""
    try:
        told = ingress.broadcast(method).results(timeout_s=DRAIN_SECONDS, return_exceptions=True)
    except TimeoutError:
        return []
    return [count for count in told if isinstance(count, int)]
