"""`unmask chat` against a real server, through a pipe and on a terminal."""

import asyncio
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from rich.console import Console

from server.chat import command
from server.chat.conversation import Conversation
from server.cli import main

PROMPT = b"\x1b[1;36m>"
QUESTION = "Sort these numbers: 7 3 12 5."


def test_one_question(demo_server, capsys):
    assert main(["chat", "--base-url", demo_server, "--set", "cache", "none", QUESTION]) == 0
    told = capsys.readouterr().out
    assert "Sorted: 3 5 7 12." in told
    assert "cache none" in told


def test_a_pipe(demo_server, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    assert main(["chat", "--base-url", demo_server]) == 0
    assert "Sorted: 3 5 7 12." in capsys.readouterr().out


def test_a_refusal_is_told_and_is_a_failure(demo_server, capsys):
    assert main(["chat", "--base-url", demo_server, "--set", "cache", "x", QUESTION]) == 1
    assert "cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--base-url", "http://127.0.0.1:9", "hi"], "no server answers"),
        (["--base-url", "nonsense", "hi"], "is no URL"),
        (["--max-tokens", "0", "hi"], "no whole number above 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, why, capsys):
    assert main(["chat", *arguments]) == 2
    assert why in capsys.readouterr().err


class Other:
    """A server that knows no steps: it refuses `diffusion`, or passes it over."""

    def __init__(self, refuses):
        self.refuses = refuses
        self.asked = []

    def stream(self, method, path, json):
        self.asked.append(json)
        return self

    async def __aenter__(self):
        self.is_success = not (self.refuses and "diffusion" in self.asked[-1])
        self.status_code = 200 if self.is_success else 400
        return self

    async def __aexit__(self, *_):
        pass

    async def aread(self):
        return json.dumps({"error": {"message": "unknown field diffusion"}}).encode()

    async def aiter_lines(self):
        yield 'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}'
        yield "data: [DONE]"


@pytest.mark.parametrize("refuses", [True, False])
def test_other_servers(refuses, capsys):
    other = Other(refuses)
    with asyncio.Runner() as runner:
        session = command.Session(Console(), other, "m", Conversation(), runner)
        assert session.once("Hello?") == 0
        assert session.once("Again?") == 0
    assert "hi" in capsys.readouterr().out
    assert len(other.asked) == (3 if refuses else 2), "it is asked for steps once"


def test_a_server_that_is_busy_is_asked_for_steps_again(capsys):
    """It may know them: only a field that is refused says that it does not."""

    class Busy(Other):
        async def __aenter__(self):
            self.is_success = len(self.asked) > 1
            self.status_code = 200 if self.is_success else 429
            return self

    other = Busy(refuses=False)
    with asyncio.Runner() as runner:
        session = command.Session(Console(), other, "m", Conversation(), runner)
        assert session.once("Hello?") == 1
        assert session.once("Again?") == 0
    assert [body.get("diffusion") for body in other.asked] == [{"trace": True}] * 2


def spoken(other, lines, monkeypatch, model="m", settings=None):
    """What the terminal shows of a talk of these lines."""
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    said = iter(lines)

    def line(_prompt):
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(console, "input", line)
    monkeypatch.setattr(command, "_remember_lines", lambda: None)
    with asyncio.Runner() as runner:
        session = command.Session(console, other, model, Conversation(settings=settings or {}), runner)
        assert session.talk() == 0
    return console.file.getvalue()


@pytest.mark.parametrize("how", ["error", "no JSON", "in the stream"])
def test_a_server_cannot_speak_to_the_terminal(how, monkeypatch):
    class Rude(Other):
        base_url = "http://there/"

        async def aread(self):
            said = "no\x1b[2J\x9b1m"
            return json.dumps({"error": {"message": said}}).encode() if how == "error" else said.encode()

        async def __aenter__(self):
            await super().__aenter__()
            self.is_success = how == "in the stream"
            return self

        async def aiter_lines(self):
            yield 'data: {"error": {"code": "no\\u001b[2J\\u009b1m"}}'

    told = spoken(Rude(refuses=True), ["Hello?", "/retry"], monkeypatch, model="m[bold]\x1b[31m[/b] [/nonsense]")
    assert "no�[2J�1m" in told
    assert "m[bold]�[31m[/b] [/nonsense] at http://there/" in told
    assert not {"\x1b", "\x9b"} & set(told)


def test_the_users_own_word_on_trace_holds(monkeypatch):
    other = Other(refuses=False)
    other.base_url = "http://there/"
    spoken(other, ["One?", "/set trace false", "Two?", "/set stop x", "/compare stop [/b] y"], monkeypatch)
    assert [body["diffusion"]["trace"] for body in other.asked] == [True, False, False, False]
    assert [body.get("stop") for body in other.asked] == [None, None, "[/b]", "y"]


def test_what_is_no_setting_is_told(capsys):
    assert main(["chat", "--base-url", "http://127.0.0.1:9", "--set", "stream", "false", "hi"]) == 2
    assert "stream is no setting" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_a_terminal(demo_server, tmp_path):
    """A talk with commands; Ctrl-C ends an answer, not the talk."""
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": str(tmp_path)}
        os.execve(sys.executable, [sys.executable, "-m", "server.cli", "chat", "--base-url", demo_server], environ)
    seen = b""

    def until(text):
        nonlocal seen
        end = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < end, seen.decode(errors="replace")
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)
        seen = seen[seen.index(text) + len(text) :]

    until(b"Ctrl-D ends")
    os.write(terminal, f"{QUESTION}\n".encode())
    until(b"Sorted: 3 5 7 12.")
    until(b"forwards")
    os.write(terminal, b"/compare cache dual none\n")
    until(b"cache = none")
    until(PROMPT)
    os.write(terminal, b"/set max_tokens 900\n/set unmask fixed\nTell me a story about Ann.\n")
    until(b"story")
    time.sleep(0.5)
    os.kill(pid, signal.SIGINT)
    until(PROMPT)
    end = time.monotonic() + 60
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < end, seen.decode(errors="replace")
        with suppress(OSError):  # it has just ended
            os.write(terminal, b"/quit\n")  # again: what is typed while Ctrl-C comes through is lost
            if select.select([terminal], [], [], 0.5)[0]:
                os.read(terminal, 65536)
    assert ended[1] == 0
    assert QUESTION in (tmp_path / "unmask" / "chat_history").read_text()


def test_help_and_the_list_of_commands():
    told = subprocess.run([sys.executable, "-m", "server.cli", "--help"], capture_output=True, text=True, check=True)
    assert "chat " in told.stdout
