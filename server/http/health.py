"""Whether the server in this container is healthy: `python -m server.http.health`, for the image's HEALTHCHECK.

Tries every address at which a visible process listens, because the port may come from a file, a variable or a flag.
Reads Linux's /proc and imports nothing of the project, because it runs every few seconds.
"""

import re
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

LISTENING = "0A"
SECONDS = 4


def main(path: str = "/health") -> int:
    """Returns 0 if a server answers 200; else 1, after writing what was found to stderr."""
    found = list(listening())
    answers = [f"{host}:{port} {_ask(host, port, path)}" for host, port in found]
    if any(answer.endswith(" 200") for answer in answers):
        return 0
    sys.stderr.write(f"not well: {', '.join(answers) or 'nothing listens'}\n")
    return 1


def listening(proc: Path = Path("/proc")) -> Iterator[tuple[str, int]]:
    """Address and port of each socket on which a process here listens. A wildcard address becomes the loopback."""
    mine = set(_sockets(proc))
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                local, state, inode = (line.split()[column] for column in (1, 3, 9))
                if state == LISTENING and inode in mine:
                    yield _address(local)


def _sockets(proc: Path) -> Iterator[str]:
    """Inodes of the sockets of all processes that this user may inspect."""
    for descriptor in proc.glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                yield match[1]


def _address(written: str) -> tuple[str, int]:
    """Parses the kernel's form of an address: words of 32 bits in this machine's byte order, and the port."""
    words, port = written.split(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    if not any(packed):
        return ("127.0.0.1" if len(packed) == 4 else "::1"), int(port, 16)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), int(port, 16)


def _ask(host: str, port: int, path: str) -> int | str:
    connection = HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
