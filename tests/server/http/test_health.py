"""The image's own health check: it finds the server wherever that listens."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from server.http import health


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response({"/health": 200, "/ready": 503}[self.path])
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(params=["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"])
def address(request):
    """Of a server of this process: as it is bound, and the port."""

    class Server(HTTPServer):
        address_family = 10 if ":" in request.param else 2

    with Server((request.param, 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield request.param, server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """A /proc of this process alone, as a container's is."""
    (tmp_path / "1").symlink_to(f"/proc/{os.getpid()}")
    (tmp_path / "net").symlink_to("/proc/self/net")
    sockets = health._sockets
    monkeypatch.setattr(health, "_sockets", lambda _: sockets(tmp_path))


def test_it_is_asked_where_it_listens(address, mine, capsys):
    host, port = address
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    assert list(health.listening()) == [(asked, port)]
    assert health.main() == 0
    assert health.main("/ready") == 1
    assert f"{asked}:{port} 503" in capsys.readouterr().err


def test_nothing_that_listens_is_not_well(mine, capsys):
    assert health.main() == 1
    assert "nothing listens" in capsys.readouterr().err


def test_it_imports_nothing_of_the_project():
    """It runs every few seconds, and importing torch takes as long."""
    code = "import sys, server.http.health; print([name for name in sys.modules if name.partition('.')[0] == 'engine'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
