"""Fixtures that several test modules share: the tiny golden checkpoint and engines over it.

The engine is imported where it is used: pytest-xdist's own process reads this file too, and would spend its first
seconds on torch before it starts those that run the tests.
"""

import gc
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import settings

from tests.forked import Forked, wait_until_ready

settings.register_profile("any machine", deadline=None)  # a busy one takes seconds where an idle one takes none
settings.load_profile("any machine")

# Triton reads it once, when anything imports it: its kernels run in its interpreter, since tests see no GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

LLADA_TINY = Path(__file__).parent / "data" / "llada-tiny"
DREAM_TINY = LLADA_TINY.with_name("dream-tiny")
SDAR_TINY = LLADA_TINY.with_name("sdar-tiny")
FAST_DLLM_TINY = LLADA_TINY.with_name("fast-dllm-v2-tiny")
SDAR_MOE_TINY = LLADA_TINY.with_name("sdar-moe-tiny")
LLADA_MOE_TINY = LLADA_TINY.with_name("llada-moe-tiny")
LLADA2_TINY = LLADA_TINY.with_name("llada2-tiny")
LLADA22_TINY = LLADA_TINY.with_name("llada22-tiny")
NEMOTRON_TINY = LLADA_TINY.with_name("nemotron-tiny")
NEMOTRON_SPEC_TINY = LLADA_TINY.with_name("nemotron-tiny-spec")
DIFFUSION_GEMMA_TINY = LLADA_TINY.with_name("diffusion-gemma-tiny")


def pytest_configure(config: pytest.Config) -> None:
    """Hides all GPUs, from this process and those that it starts: tests are the same with and without one.

    But for `-m gpu` alone.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """Tests of real servers come first, so that one worker of pytest-xdist gets them and starts shared servers once.

    Then slow ones, so that the last to end is a short one.
    """
    items.sort(key=lambda item: ("serve" not in item.fixturenames, item.get_closest_marker("slow") is None))


def pytest_collection_finish():
    """Modules and tests stay to the end: no collection of garbage has to walk all of torch again.

    Fewer collections spare a fifth of the processor's time: most look through what a test still needs.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)


@pytest.fixture(scope="session", autouse=True)
def tls() -> Iterator[None]:
    """Clients share what they know of TLS, which none speaks: each would read 140 certificates first, for 30 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session")
def llada_tiny() -> Path:
    """A random checkpoint in LLaDA's layout, with what the published code computed from it."""
    return LLADA_TINY


@pytest.fixture(scope="session")
def dream_tiny() -> Path:
    """The same in Dream's layout: grouped heads, qkv bias, shifted logits."""
    return DREAM_TINY


@pytest.fixture(scope="session")
def sdar_tiny() -> Path:
    """The same in SDAR's layout: block-causal, norms of queries and keys, heads wider than their share of a row."""
    return SDAR_TINY


@pytest.fixture(scope="session")
def fast_dllm_tiny() -> Path:
    """The same in Fast-dLLM v2's layout: block-causal, shifted logits, a mask that only the tokenizer knows."""
    return FAST_DLLM_TINY


@pytest.fixture(scope="session")
def sdar_moe_tiny() -> Path:
    """The same in SDAR-MoE's layout: eight experts in each layer, two for each row."""
    return SDAR_MOE_TINY


@pytest.fixture(scope="session")
def llada_moe_tiny() -> Path:
    """The same in LLaDA-MoE's layout: full attention, sixteen experts, four for each row, not normalised."""
    return LLADA_MOE_TINY


@pytest.fixture(scope="session")
def llada2_tiny() -> Path:
    """The same in LLaDA2's layout: block-causal, a dense layer, experts in groups beside a shared one."""
    return LLADA2_TINY


@pytest.fixture(scope="session")
def llada22_tiny() -> Path:
    """LLaDA2.2: the same with experts chosen by block, and tokens that delete and split."""
    return LLADA22_TINY


@pytest.fixture(scope="session")
def nemotron_tiny() -> Path:
    """The same in Nemotron-Labs-Diffusion's layout: causal commits, YaRN from position 32 on, an adapter for drafts."""
    return NEMOTRON_TINY


@pytest.fixture(scope="session")
def nemotron_spec_tiny() -> Path:
    """The same, trained to count, so that drafts are accepted."""
    return NEMOTRON_SPEC_TINY


@pytest.fixture(scope="session")
def diffusion_gemma_tiny() -> Path:
    """The same in DiffusionGemma's layout: a canvas of random tokens, layers with a window and heads of their own."""
    return DIFFUSION_GEMMA_TINY


@pytest.fixture(scope="session")
def published():
    """`published("llada-8b")`: geometry and token ids of its `config.json`, or what is known of it (docs/models.md)."""
    return lambda name: json.loads((LLADA_TINY.parent / "published" / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def golden() -> list[dict]:
    """180 generations of the published Fast-dLLM samplers."""
    return json.loads((LLADA_TINY / "generations.json").read_text())


@pytest.fixture
def engine(llada_tiny):
    from engine import EngineConfig, load

    return load(EngineConfig(model=str(llada_tiny)))


@pytest.fixture(scope="session")
def submission():
    """Builds a Submission from a golden row, or from keyword arguments in a golden row's words."""
    from engine import DiffusionParams, Hole, SamplingParams, Submission

    def build(request_id="r", **row):
        names = ("temperature", "seed", "top_p", "top_k", "stop_ids", "ignore_eos")
        sampling = {key: row[key] for key in names if key in row}
        keys = [field.name for field in fields(DiffusionParams)]
        row = {"lookahead": None, **row}  # published samplers see all of the canvas
        return Submission(
            request_id=str(request_id),
            prompt_ids=row.get("prompt", [5, 6, 7]),
            sampling=SamplingParams(max_tokens=row.get("gen_length", 32), **sampling),
            diffusion=DiffusionParams(**{key: row[key] for key in keys if key in row}),
            holes=tuple(Hole(offset, length) for offset, length in row.get("holes", ())),
        )

    return build


@pytest.fixture(scope="session")
def run():
    """Steps an engine until it is empty: request id -> (tokens, finish reason, usage)."""

    def until_empty(engine, *submissions) -> dict:
        for submission in submissions:
            engine.submit(engine.new_request(submission))
        tokens, ends = {}, {}
        while engine.request_ids:
            for output in engine.step():
                tokens.setdefault(output.request_id, []).extend(output.token_ids)
                if output.finish_reason:
                    ends[output.request_id] = (output.finish_reason, output.usage)
        return {request_id: (tokens[request_id], *end) for request_id, end in ends.items()}

    return until_empty


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Processes that the test starts heed SIGINT, though a shell that runs something in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Url(str):
    """A server's URL, which knows its process."""

    __slots__ = ("pid",)
    pid: int


@pytest.fixture(scope="session")
def serve():
    """`with serve(model, *flags) as url`: a real `unmask serve` process on a free port, ended by SIGTERM.

    `seconds`: how long it may take to be ready. `is_forked=False`: it starts by its command line, in seconds.
    """

    @contextmanager
    def running(*arguments: str, seconds: int = 60, is_forked: bool = True) -> Iterator[Url]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        asked = ["serve", *arguments, "--port", str(port)]
        url = Url(f"http://127.0.0.1:{port}")
        with NamedTemporaryFile("w") as file:  # a pipe that nobody reads would fill up and block the server
            log = Path(file.name)
            command = [sys.executable, "-m", "server.cli", *asked]
            process: Forked | subprocess.Popen[bytes] = (
                Forked("server.cli", *asked, log=log)
                if is_forked
                else subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            )
            url.pid = process.pid
            try:
                wait_until_ready(process, f"{url}/ready", log, seconds)
                yield url
                process.terminate()
                assert process.wait(timeout=40) == 0
            finally:
                process.kill()
                process.wait()

    return running


@pytest.fixture(scope="session")
def demo_server(serve) -> Iterator[str]:
    """The URL of a server with the bundled model and no flags, for tests that change nothing in it."""
    with serve("demo") as url:
        yield url


@pytest.fixture(scope="module")
def client(demo_server):
    """OpenAI's own, of that server."""
    import openai

    with openai.OpenAI(base_url=f"{demo_server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def golden_server(serve, llada_tiny) -> Iterator[str]:
    """The same over the golden checkpoint, which computes sixteen requests at once, and in which 24 may wait."""
    with serve(str(llada_tiny), "--max-running-requests", "16", "--max-queued-requests", "24") as url:
        yield url


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list]:
    """What torch's compiler is given from now on, graph by graph; each runs as it is, so that none needs C++."""
    import torch

    given = []

    def backend(graph, _inputs):
        given.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield given
    torch._dynamo.reset()
