"""`unmask serve`: loads settings and model, runs the server, returns its exit code."""

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from rich.console import Console

from engine import (
    ConfigError,
    Engine,
    EngineConfig,
    EngineLoop,
    check_settings,
    load,
)
from server.commands import dry_run
from server.commands.banner import start_report
from server.commands.loading import progress_of
from server.commands.sigterm import ended_by_sigterm
from server.console import output
from server.guards.auth import LOOPBACK
from server.guards.places import affordable_connections
from server.http.app import create_app
from server.http.lifecycle import Server
from server.observe import logs
from server.observe.observability import tracer_of
from server.settings.environment import service_links
from server.settings.sources import load_settings
from server.settings.tree import ServerConfig, Settings
from server.text.tokenizer import Tokenizer

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # or Ray would report to its makers
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after 5 s, a proxy that starts on a busy machine would be ended
}
"""What Ray reads of its environment, where the user has not said otherwise."""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the server, and returns the exit code. Raises ConfigError or LoadError for errors that the user can fix."""
    memories, argv = dry_run.take(argv)
    settings = load_settings(argv, os.environ)
    if memories:
        spec = check_settings(settings.engine, settings.diffusion, settings.server.temperature)
        dry_run.show(settings.engine, settings.diffusion, spec, memories, output(110))
        return 0
    logs.set_up(settings.server)
    if links := service_links(os.environ):
        logger.info("ignoring %s: Kubernetes makes them of Services, they are no settings", ", ".join(links))
    check_settings(settings.engine, settings.diffusion, settings.server.temperature)  # weights take minutes to read
    settings = replace(settings, server=effective_config(settings.server))
    if settings.ray.ray:
        return _serve_on_ray(settings, argv)
    tracer = tracer_of(settings)
    with ExitStack() as stack:
        sock = stack.enter_context(closing(_bind(settings.server)))
        engine = EngineLoop(_load(settings.engine), stuck_after=settings.server.stuck_after)
        tokenizer = stack.enter_context(closing(Tokenizer.load(engine.info.folder)))
        app = create_app(engine, tokenizer, settings, tracer)
        name, url = settings.model_names[0], _url(sock)
        report = start_report(engine.info, name, url, has_page=settings.server.page)

        def announce() -> None:
            Console().print(report, highlight=False, markup=False, soft_wrap=True)
            if not sys.stderr.isatty():
                logger.info("listening on %s and serving %s", url, name)

        _warn_if_exposed(settings.server)
        server = Server(app, engine, settings.server, announce)
        asyncio.run(server.serve(sockets=[sock]))
    if tracer:
        tracer.shutdown()  # sends the spans that are still buffered
    return server.exit_code


def _serve_on_ray(settings: Settings, argv: Sequence[str]) -> int:
    """Serves by replicas under Ray Serve. Raises ConfigError if Ray is missing or fails, or the port is in use."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when Ray is imported, here and in the processes that it starts
    try:
        from server.ray.start import run
    except ImportError:
        raise ConfigError("ray needs Ray Serve: pip install 'unmask[ray]'") from None
    with closing(_bind(settings.server)) as sock:
        port, url = sock.getsockname()[1], _url(sock)
    settings = replace(settings, server=replace(settings.server, port=port))

    def reread() -> Settings:
        found = load_settings(argv, os.environ)
        check_settings(found.engine, found.diffusion, found.server.temperature)
        return replace(found, server=effective_config(found.server))

    def announce() -> None:
        _warn_if_exposed(settings.server)
        logger.info("listening on %s and serving %s", url, settings.model_names[0])

    return run(settings, reread, announce)


def _warn_if_exposed(config: ServerConfig) -> None:
    if is_exposed(config):
        logger.warning("listening on %s without an API key: whoever reaches it is served", config.host)


def effective_config(config: ServerConfig) -> ServerConfig:
    """The config with `max_connections` that this process may hold, and with `allowed_hosts` for a local server.

    A server on the loopback without API keys answers only for loopback hosts: any web page in a browser on this machine
    can send it requests. Raises ConfigError if the process may hold no connection.
    """
    connections = affordable_connections(config.max_connections)
    if connections < config.max_connections:
        logger.warning(
            "max_connections is %d, not %d: this process may not open more files (ulimit -n)",
            connections,
            config.max_connections,
        )
    hosts = config.allowed_hosts
    if not hosts and not config.api_key and is_local(config.host):
        hosts = (*LOOPBACK, f"[{config.host}]" if ":" in config.host else config.host)
    return replace(config, max_connections=connections, allowed_hosts=hosts)


def is_exposed(config: ServerConfig) -> bool:
    """Whether other machines may reach a server that asks for no key."""
    return not (is_local(config.host) or config.api_key)


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may resolve to any address
        return False


def _bind(config: ServerConfig) -> socket.socket:
    """Binds the socket. Called before the model is loaded, so that a port in use is reported without minutes of wait.

    Raises ConfigError.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio disables Nagle's algorithm only for sockets that name their protocol. With it, each answer waits 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        remedy = "; give another one with --port" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror}{remedy}") from None
    return sock


def _load(config: EngineConfig) -> Engine:
    """Loads the engine, and shows how far it is. Raises LoadError."""
    with ended_by_sigterm(), progress_of(config.model) as progress:
        return load(config, progress)


def _url(sock: socket.socket) -> str:
    """The URL of the server for clients on this machine."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
