"""`unmask serve` as a process of its own, with a real engine."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest


@pytest.fixture
def process(llada_tiny):
    command = [sys.executable, "-m", "server.cli", "serve", str(llada_tiny), "--port", "0", "--num-threads", "1"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UNMASK_")}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environ) as process:
        yield process
        process.kill()


def test_from_start_to_sigterm(process):
    report = "".join(iter(process.stdout.readline, "\n")) + process.stdout.readline()
    assert "llada-tiny (llada, 184 K parameters)" in report
    url = re.search(r"curl -N (\S+)", report)[1]
    body = {"prompt": [5, 6, 7], "max_tokens": 32, "stream": True, "diffusion": {"block_length": 8}}
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        events = [line for line in response.iter_lines() if line]
    assert len(events) == 32 / 8 + 1
    assert events[-1] == "data: [DONE]"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_sigterm_ends_the_loading_even_where_an_exception_would_be_lost():
    code = """if True:
        import os, signal, weakref
        from server.commands.sigterm import ended_by_sigterm

        class Dies: pass

        with ended_by_sigterm():
            dies = Dies()
            kept = weakref.ref(dies, lambda _: os.kill(os.getpid(), signal.SIGTERM))
            del dies
        print("still here")
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGTERM, "", "")


@pytest.mark.slow
def test_what_is_compiled_says_the_same(llada_tiny, serve):
    body = {"prompt": [5, 6, 7], "max_tokens": 32, "diffusion": {"block_length": 8}}
    texts = set()
    for flags in ((), ("--compile",)):
        with serve(str(llada_tiny), "--device", "cpu", *flags) as url:
            texts.add(httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"])
    assert len(texts) == 1
