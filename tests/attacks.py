"""`python -m tests.attacks`: how long /health takes on an idle server, and while strangers try to stop it.

The server has the demo model, with a template that does mischief when it is asked to. Attackers are threads of this
process that send ready-made bytes, so that a machine of two cores has most of its time for the server.
"""

import http.client
import json
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer

from engine import DEMO_MODEL
from tests.faulty_server import faulty_server

SECONDS = 8.0
NUM_ATTACKERS = 4
CHAT = "/v1/chat/completions"
CONTINUATION = Tokenizer.from_file(str(Path(DEMO_MODEL) / "tokenizer.json")).encode("€").ids[-1]
"""A token that is the last byte of a character, and nothing without the others."""
FAST = {"diffusion": {"unmask": "threshold", "threshold": 0.0}}
"""Few steps for many tokens: the engine is not what is attacked."""
MISCHIEF = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{% set n = 9 %}{{ n ** (n ** n) }}",
    "memory": "{% set n = 10 ** 9 %}{{ ('a' * n) | length }}",
}


def said(content, times=1):
    return {"messages": [{"role": "user", "content": content}] * times, "max_tokens": 1}


ATTACKS = {
    "250 messages of 16,000 letters": (CHAT, said("word" * 4000, times=250)),
    "one of 16,000 letters": (CHAT, said("word" * 4000)),
    "128 prompts of 30,000 letters": ("/v1/completions", {"prompt": ["word" * 7500] * 128, "max_tokens": 1}),
    "16 prompts of 16,000 letters": ("/v1/completions", {"prompt": ["word" * 4000] * 16, "max_tokens": 1}),
    **{f"template: {name}": (CHAT, said(name)) for name in MISCHIEF},
    "a context to detokenize": ("/detokenize", {"tokens": [CONTINUATION] * 1024}),
    "200,000 tokens to detokenize": ("/detokenize", {"tokens": [CONTINUATION] * 200_000}),
    "bytes that form no character": (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 512, "n": 8, "allowed_token_ids": [CONTINUATION], "stop": "z", "logprobs": 0}
        | FAST,
    ),
    "as many logprobs as may be": (
        CHAT,
        {**said("hi"), **FAST, "max_tokens": 512, "n": 24, "logprobs": True, "top_logprobs": 20, "ignore_eos": True},
    ),
    "more logprobs than may be": ("/v1/completions", {"prompt": "a", "max_tokens": 512, "n": 128, "logprobs": 20}),
    "200,000 allowed tokens": (
        "/v1/completions",
        {"prompt": "a", "max_tokens": 1, "n": 64, "allowed_token_ids": [CONTINUATION] * 200_000},
    ),
    "200,000 template variables": (CHAT, {**said("hi"), "chat_template_kwargs": {"a": ["b"] * 200_000}}),
}


def mischievous(folder):
    """The demo model, whose template runs a program when the first message is its name."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(Path(DEMO_MODEL) / name, folder)
    (folder / "model.safetensors").symlink_to(Path(DEMO_MODEL) / "model.safetensors")
    programs = "".join(
        f"{{% if messages[0].content == '{name}' %}}{program}{{% endif %}}" for name, program in MISCHIEF.items()
    )
    (folder / "chat_template.jinja").write_text(programs + (Path(DEMO_MODEL) / "chat_template.jinja").read_text())
    return folder


def attack(address, path, body, ended, statuses):
    while not ended.is_set():
        connection = http.client.HTTPConnection(address, timeout=120)
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
        connection.close()


def probe(address, seconds):
    """Seconds that each answer of /health took."""
    took, end = [], time.monotonic() + seconds
    connection = http.client.HTTPConnection(address, timeout=60)
    while time.monotonic() < end:
        begun = time.monotonic()
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
        took.append(time.monotonic() - begun)
        time.sleep(0.01)
    return sorted(took)


def told(name, took, statuses):
    worst, p99, median = took[-1], took[int(len(took) * 0.99)], took[len(took) // 2]
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    print(f"{name:<32} p50 {1e3 * median:6.1f} ms  p99 {1e3 * p99:6.1f} ms  max {1e3 * worst:6.1f} ms  {answers}")


def main():
    with TemporaryDirectory() as name:
        folder = Path(name)
        with faulty_server(mischievous(folder), folder / "log") as (url, _):
            address = url.removeprefix("http://")
            told("idle", probe(address, SECONDS), {})
            for label, (path, body) in ATTACKS.items():
                ended, statuses = threading.Event(), Counter()
                given = (address, path, json.dumps(body).encode(), ended, statuses)
                attackers = [threading.Thread(target=attack, args=given) for _ in range(NUM_ATTACKERS)]
                for attacker in attackers:
                    attacker.start()
                took = probe(address, SECONDS)
                ended.set()
                for attacker in attackers:
                    attacker.join()
                told(label, took, statuses)


if __name__ == "__main__":
    sys.exit(main())
