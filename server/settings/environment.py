"""`UNMASK_*` variables: those that are settings, and those that Kubernetes makes for Services.

A kubelet gives each container variables for every Service of its namespace, also in Docker's old form. For a Service
called `unmask`, it sets `UNMASK_PORT=tcp://10.0.0.1:80`. Knows names and the form of values, but no settings.
"""

import re
from collections.abc import Mapping

PREFIX = "UNMASK_"

_SERVICE_LINK = re.compile(
    r"""UNMASK(_\w+)?_(
        SERVICE_HOST=[\da-fA-F.:]+
      | SERVICE_PORT(_\w+)?=\d+
      | PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://\S+
      | PORT_\d+_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp)|PORT=\d+|ADDR=[\da-fA-F.:]+)
    )""",
    re.VERBOSE | re.ASCII,
)


def settings_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Values by key. An empty variable counts as absent, because compose files leave such variables."""
    links = service_links(environ)
    return {
        name.removeprefix(PREFIX).lower().replace("__", "."): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and value and name not in links
    }


def spell(key: str) -> str:
    """The name of a key's variable."""
    return PREFIX + key.upper().replace(".", "__")


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Names of the variables that describe Services of any name. Their values distinguish them from settings."""
    return [name for name, value in environ.items() if _SERVICE_LINK.fullmatch(f"{name}={value}")]
