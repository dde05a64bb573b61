"""`unmask bench serve`: against the project's own server, and against fakes that tell less or fail."""

import json
import signal
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest

from server.cli import main
from tests.forked import Forked


class Fake:
    """A server whose answers are a list of chunks; says what it was sent. `scripts` are taken in turn, the last stays.

    A script is (status, JSON body) for an error, else the texts of an answer's chunks; an exception breaks it off.
    """

    def __init__(self, *scripts, usage=None, delay=0.0, refuses=()):
        self.scripts = deque(scripts)
        self.usage, self.delay, self.refuses = usage, delay, refuses
        self.bodies, self.headers = [], []
        self.in_flight = self.most_in_flight = 0
        self.lock = Lock()

    def next_script(self):
        with self.lock:
            return self.scripts.popleft() if len(self.scripts) > 1 else self.scripts[0]

    @contextmanager
    def running(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": "fake"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with fake.lock:
                    fake.bodies.append(body)
                    fake.headers.append(self.headers)
                    fake.in_flight += 1
                    fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
                try:
                    self.answer(body)
                finally:
                    with fake.lock:
                        fake.in_flight -= 1

            def answer(self, body):
                if refused := [name for name in fake.refuses if name in (body.get("stream_options") or {})]:
                    return self.reply(400, {"error": {"message": f"no {refused}", "type": "invalid_request_error"}})
                script = fake.next_script()
                if isinstance(script, tuple):
                    return self.reply(*script)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                chat = self.path.endswith("chat/completions")
                if chat:
                    self.send({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
                for text in script:
                    time.sleep(fake.delay)
                    if text is None:
                        return None
                    if isinstance(text, dict):
                        self.send(text)
                    else:
                        self.send({"choices": [{"delta": {"content": text}} if chat else {"text": text}]})
                if fake.usage and "include_usage" in (body.get("stream_options") or {}):
                    self.send({"choices": [], "usage": fake.usage})
                self.wfile.write(b": bye\n\ndata: [DONE]\n\n")
                return None

            def send(self, event):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()

            def reply(self, status, body):
                payload = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *arguments):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


def bench(capsys, fake, *flags, code=0):
    with fake.running() as url:
        assert main(["bench", "serve", "--base-url", url, *flags, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def after_the_first_block(figures):
    return figures["end_to_end"]["mean"] - figures["time_to_first_block"]["mean"]


def fails(capsys, *argv):
    """The one line of a command that the user has to mend."""
    assert main(["bench", "serve", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.slow
def test_the_projects_own_server(capsys, demo_server):
    params = {"diffusion": {"cache": "window", "unmask": "fixed", "steps": 16, "block_length": 16}}
    flags = ("--num-prompts", "6", "--concurrency", "3", "--output-length", "64", "--ignore-eos")
    url, extra = demo_server, json.dumps(params)
    assert main(["bench", "serve", "--base-url", url, *flags, "--extra-body", extra, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    by_ids = ("--num-prompts", "2", "--vocab-size", "800", "--prompt-length", "40", "--request-rate", "50")
    assert main(["bench", "serve", "--base-url", f"{url}/v1", *by_ids, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == 2 * 40
    assert "gpt-9" in fails(capsys, "--base-url", url, "--model", "gpt-9")
    assert "cache" in fails(capsys, "--base-url", url, "--extra-body", '{"diffusion": {"cache": "magic"}}')
    assert (figures["completed"], figures["failed"], figures["tokens_from"]) == (6, 0, "usage")
    assert figures["completion_tokens"] == 6 * 64
    assert figures["forwards_per_token"] == pytest.approx(16 / 64)
    assert figures["rows_per_token"] > 0.25
    assert figures["blocks_per_request"] == 4
    first, end = figures["time_to_first_block"], figures["end_to_end"]
    assert 0 < first["p50"] <= first["p90"] <= first["p99"] <= end["p99"]
    assert figures["inter_block_latency"]["p50"] > 0
    assert figures["tokens_per_second"] == pytest.approx(6 * 64 / figures["seconds"])


def test_a_server_without_usage_counts_chunks(capsys):
    fake = Fake(["a", "b", "", "c"], delay=0.02)
    figures = bench(capsys, fake, "--num-prompts", "4", "--concurrency", "2")
    assert (figures["completed"], figures["completion_tokens"], figures["tokens_from"]) == (4, 12, "chunks")
    for name in ("prompt_tokens", "forwards_per_token", "rows_per_token"):
        assert figures[name] is None
    assert fake.most_in_flight == 2
    assert figures["time_to_first_block"]["p50"] > 0.02
    assert after_the_first_block(figures) == pytest.approx(2 * figures["time_per_output_token"]["mean"])
    went_ahead, *counted = [body["prompt"] for body in fake.bodies]
    assert len(set(counted)) == len(counted) == 4
    assert went_ahead in counted


@pytest.mark.parametrize(
    ("refuses", "left"),
    [
        ((), {"include_usage": True, "continuous_usage_stats": True}),
        (("continuous_usage_stats",), {"include_usage": True}),
        (("continuous_usage_stats", "include_usage"), None),
    ],
)
def test_a_server_that_refuses_stream_options(capsys, refuses, left):
    fake = Fake(["a", "b"], refuses=refuses, usage={"prompt_tokens": 7, "completion_tokens": 40})
    figures = bench(capsys, fake, "--num-prompts", "2")
    assert figures["failed"] == 0
    assert fake.bodies[-1].get("stream_options") == left
    assert figures["completion_tokens"] == (80 if left else 4)
    assert figures["prompt_tokens"] == (14 if left else None)


def test_running_usage_tells_tokens_that_have_no_text(capsys):
    def chunk(text, tokens):
        return {"choices": [{"text": text}], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}

    fake = Fake([chunk("", 0), chunk("a b", 32), chunk("", 64), chunk("", 64)], delay=0.05)
    figures = bench(capsys, fake, "--num-prompts", "1")
    assert (figures["blocks_per_request"], figures["completion_tokens"]) == (2, 64)
    assert after_the_first_block(figures) == pytest.approx(32 * figures["time_per_output_token"]["mean"])


def test_the_request(capsys, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one", "max_tokens": 5}\n\n{"prompt": [1, 2]}\n', encoding="utf-8-sig")
    fake = Fake(["a"])
    flags = ("--prompts", str(path), "--output-length", "9", "--api-key", "secret", "--ignore-eos", "--model", "mine")
    bench(
        capsys, fake, *flags, "--extra-body", '{"temperature": 1, "x": 2}', "--num-prompts", "3", "--concurrency", "1"
    )
    assert [(body["prompt"], body["max_tokens"]) for body in fake.bodies[1:]] == [("one", 5), ([1, 2], 9), ("one", 5)]
    for body, headers in zip(fake.bodies, fake.headers, strict=True):
        assert (body["model"], body["temperature"], body["x"]) == ("mine", 1, 2)
        assert body["stream"] is body["ignore_eos"] is True
        assert headers["authorization"] == "Bearer secret"


def test_chat(capsys):
    fake = Fake(["Hel", "lo"], usage={"prompt_tokens": 3, "completion_tokens": 2})
    figures = bench(capsys, fake, "--endpoint", "chat", "--num-prompts", "1", "--prompt-length", "2")
    assert figures["blocks_per_request"] == 2  # the chunk with the role brings no text
    [message] = fake.bodies[0]["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 2)
    assert "prompt" not in fake.bodies[0]


def test_failures_are_counted_by_reason(capsys):
    busy = (429, {"error": {"message": "later", "type": "rate_limit", "code": "queue_full"}})
    broken = ["a", {"error": {"message": "boom", "type": "server_error", "code": None}}]
    fake = Fake(["a"], busy, busy, ["a", None], (500, b"<html>"), broken, ["a"])
    figures = bench(capsys, fake, "--num-prompts", "6", "--concurrency", "1")
    assert figures["failures"] == {
        "HTTP 429 queue_full": 2,
        "the stream ended without [DONE]": 1,
        "HTTP 500": 1,
        "an error in the stream server_error": 1,
    }
    assert (figures["completed"], figures["failed"], figures["completion_tokens"]) == (1, 5, 1)


def test_nothing_answered_is_exit_code_1(capsys):
    figures = bench(capsys, Fake(["a"], (500, {})), "--num-prompts", "2", code=1)
    assert (figures["completed"], figures["failures"], figures["end_to_end"]) == (0, {"HTTP 500": 2}, None)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {"error": {"message": "Incorrect API key", "type": "invalid_request_error"}}), "--api-key"),
        ((404, {"error": {"message": "The model does not exist", "code": "model_not_found"}}), "--model"),
        ((400, {"error": {"message": "max_tokens is too large"}}), "max_tokens is too large"),
        ((503, {}), "busy"),
        ([{"error": {"message": "boom", "type": "server_error"}}], "an error in the stream"),
        ([None], "without [DONE]"),
    ],
)
def test_what_would_fail_every_time_fails_at_once(capsys, reply, message):
    fake = Fake(reply)
    with fake.running() as url:
        assert message in fails(capsys, "--base-url", url)
    assert len(fake.bodies) <= 3


def test_a_server_that_is_not_there(capsys):
    assert "127.0.0.1:9" in fails(capsys, "--base-url", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--base-url", "nowhere"], "http://127.0.0.1:8000"),
        (["--num-prompts", "0"], "above 0"),
        (["--request-rate", "inf"], "above 0"),
        (["--request-rate", "1", "--concurrency", "2"], "not allowed with"),
        (["--prompt-length", "9-3"], "in order"),
        (["--output-length", "many"], "no length"),
        (["--extra-body", "{"], "not valid JSON"),
        (["--extra-body", "[]"], "JSON object"),
        (["--prompts", "nowhere.jsonl"], "cannot be read"),
        (["--vocab-size", "10", "--endpoint", "chat"], "of text"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, argv, message):
    assert message in fails(capsys, *argv)


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"prompt": [1, "a"]}', '{"prompt": "a", "max_tokens": 0}'])
def test_a_bad_line_is_named(capsys, tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    assert "prompts.jsonl, line 2" in fails(capsys, "--prompts", str(path))
    path.write_text("\n")
    assert "holds no prompts" in fails(capsys, "--prompts", str(path))


@pytest.mark.slow
def test_ctrl_c_gives_the_table_of_what_was_done(tmp_path):
    fake = Fake(["a", "b"], delay=0.02, usage={"prompt_tokens": 1, "completion_tokens": 2})
    with fake.running() as url:
        command = ["bench", "serve", "--base-url", url, "--num-prompts", "100000"]
        with Forked("server.cli", *command, log=tmp_path / "log") as process:
            while len(fake.bodies) < 30:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
    out = (tmp_path / "log").read_text()
    assert "Traceback" not in out
    assert "(interrupted)" in out
    assert "time to first block" in out
    assert "answered, 0 failed" in out
    assert "…" not in out
