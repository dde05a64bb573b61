"""A server around a fake engine: a byte tokenizer, an engine that answers from a script, httpx on top."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from engine import (
    ContextLengthExceeded,
    EngineInfo,
    EngineLoop,
    EngineStats,
    EngineUnavailable,
    FinishReason,
    InvalidRequest,
    ModelSpec,
    Output,
    QueueFull,
    Submission,
    TokenLogprobs,
    Usage,
)
from engine.tally import Tally
from server.app import create_app
from server.lifecycle import Server
from server.settings import build
from server.text import Tokenizer

EOS = 256
MAX_LEN = 128

CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<' + message.role + '>' + message.content }}{% endfor %}\
{% if shout is defined %}{{ shout }}{% endif %}{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}\
{% if messages[0].content == 'refuse' %}{{ raise_exception('refused') }}{% endif %}\
{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

Step = str | bytes | Sequence[int] | FinishReason | Exception
Script = Callable[[Submission], Sequence[Step]]
"""How the engine answers a submission: blocks, at last the reason for the end (LENGTH if none is given) or an error."""


def said_of(ids: Sequence[int], count: int | None) -> tuple[TokenLogprobs, ...] | None:
    """Log-probabilities that follow from the token: token t has -t/256, and the best ones are 0, 1, 2, ..."""
    if count is None:
        return None
    return tuple(TokenLogprobs(-id_ / 256, tuple((best, -best / 256) for best in range(count))) for id_ in ids)


class FakeStream:
    """An OutputStream that the test feeds."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.request_id = submission.request_id
        self.aborted = asyncio.Event()
        self._queue: asyncio.Queue[Output | Exception] = asyncio.Queue()
        self._usage = Usage(prompt_tokens=len(submission.prompt_ids), completion_tokens=0, forwards=0, rows_computed=0)

    def put(
        self, block: str | bytes | Sequence[int], finish: FinishReason | None = None, stop_id: int | None = None
    ) -> None:
        ids = tuple(block.encode() if isinstance(block, str) else block)
        self._usage = replace(
            self._usage,
            completion_tokens=self._usage.completion_tokens + len(ids),
            forwards=self._usage.forwards + 2,
            rows_computed=self._usage.rows_computed + 10,
        )
        output = Output(
            request_id=self.request_id,
            token_ids=ids,
            finish_reason=finish,
            usage=self._usage,
            logprobs=said_of(ids, self.submission.sampling.logprobs),
            stop_id=stop_id,
        )
        self._queue.put_nowait(output)

    def play(self, steps: Sequence[Step]) -> None:
        *blocks, end = steps if isinstance(steps[-1], FinishReason | Exception) else [*steps, FinishReason.LENGTH]
        for block in blocks[:-1]:
            self.put(block)
        if isinstance(end, FinishReason):
            self.put(blocks[-1], end)
        else:
            self.put(blocks[-1])
            self._queue.put_nowait(end)

    def abort(self) -> None:
        self.aborted.set()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while True:
            output = await self._queue.get()
            if isinstance(output, Exception):
                raise output
            yield output
            if output.finish_reason:
                return


class FakeEngine:
    """An EngineLoop that answers each submission from a script, or waits for the test to feed its stream."""

    def __init__(self) -> None:
        self.info = EngineInfo(
            model="/models/fake",
            folder=Path("/models/fake"),
            spec=ModelSpec(
                family="llada", vocab_size=257, mask_id=EOS, eos_ids=frozenset({EOS}), max_model_len=MAX_LEN
            ),
            device="cpu",
            dtype="float32",
            num_parameters=1_000_000,
            weight_bytes=4_000_000,
            kv_tokens=4096,
            kv_bytes=1 << 20,
            page_size=32,
            max_model_len=MAX_LEN,
            max_batch_rows=2048,
            max_running_requests=4,
            max_queued_requests=4,
        )
        self.stats = EngineStats(
            running=2,
            waiting=3,
            kv_pages_used=5,
            kv_pages_total=128,
            forwards=70,
            rows_computed=1100,
            prompt_tokens=13,
            generated_tokens=17,
            finished={FinishReason.STOP: 19},
            rejected=23,
            decoding=Tally().read(),
        )
        self.heartbeat_age = 0.25
        self.healthy = True
        self.accepting = True
        self.died = False
        self.script: Script | None = lambda _: ["one ", "two"]
        self.play: Callable[[FakeStream], None] | None = None
        """For what a script cannot say."""
        self.places = 8
        self.can_fill = True
        self.streams: list[FakeStream] = []
        self.submitted = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        return self.stats.waiting

    def start(self) -> None:
        self.accepting = True

    async def stop(self, drain_seconds: float) -> None:
        self.accepting = False

    def submit(self, submissions: Sequence[Submission]) -> list[FakeStream]:
        for submission in submissions:
            self._check(submission)
        if not self.accepting:
            raise EngineUnavailable("not accepting requests")
        if len(submissions) > self.places:
            raise QueueFull("the queue is full")
        streams = [FakeStream(submission) for submission in submissions]
        self.streams += streams
        for stream in streams:
            allowed = stream.submission.sampling.allowed_ids
            if self.play:
                self.play(stream)
            elif self.script and stream.submission.holes and allowed and len(allowed) == 1:
                stream.put(tuple(allowed), FinishReason.LENGTH)  # a prompt's token is scored
            elif self.script:
                stream.play(self.script(stream.submission))
        self.submitted.set()
        return streams

    @property
    def submissions(self) -> list[Submission]:
        return [stream.submission for stream in self.streams]

    def _check(self, submission: Submission) -> None:
        if any(id_ > EOS for id_ in submission.sampling.allowed_ids or ()):
            raise InvalidRequest("out of vocabulary", param="allowed_ids")
        if submission.holes and not self.can_fill:
            raise InvalidRequest("this family cannot fill holes", param="holes")
        if not submission.prompt_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if submission.diffusion.cache not in ("none", "prefix", "dual"):
            raise InvalidRequest(f"unknown cache {submission.diffusion.cache}", param="diffusion.cache")
        if len(submission.prompt_ids) + submission.sampling.max_tokens > MAX_LEN:
            raise ContextLengthExceeded("the context is 128 tokens", param="max_tokens")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose ids are the bytes of the text; 256 is a special token."""
    alphabet = _byte_alphabet()
    backend = Backend(BPE(vocab={letter: byte for byte, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def app(engine: FakeEngine, tokenizer: Tokenizer) -> FastAPI:
    settings = build({"served_model_name": ["fake", "org/fake"], "max_body_bytes": 4096, "diffusion.threshold": 0.8})
    return create_app(cast(EngineLoop, engine), tokenizer, settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
def listening():
    """Runs the app around an engine on a real socket: `async with listening(engine) as (url, task)`."""

    @asynccontextmanager
    async def serve(
        engine: Any, tokenizer: Tokenizer, **values: object
    ) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
        up = asyncio.Event()
        settings = build({"shutdown_timeout": 5.0, **values})
        server = Server(create_app(engine, tokenizer, settings), engine, settings.server, up.set)
        with socket.create_server(("127.0.0.1", 0)) as sock:
            task = asyncio.create_task(server.serve(sockets=[sock]))
            await asyncio.wait_for(up.wait(), 5)
            yield f"http://127.0.0.1:{sock.getsockname()[1]}", task
            server.should_exit = True
            await task

    return serve


class Api:
    """The server as tests use it; checks what every answer has in common on the way."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"prompt": "ab", **body})

    async def chat(self, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "hi"}]
        return await self.client.post("/v1/chat/completions", json={"messages": messages, **body})

    async def error(self, status: int, **body: Any) -> dict[str, str | None]:
        """The error object of a completion that is expected to fail."""
        return self.error_of(await self.complete(**body), status)

    async def stream(self, **body: Any) -> list[dict[str, Any]]:
        """The events of a streamed completion."""
        response = await self.complete(stream=True, **body)
        assert response.status_code == 200, response.text
        return self.events_of(response.text)

    @staticmethod
    def error_of(response: httpx.Response, status: int) -> dict[str, str | None]:
        assert response.status_code == status, response.text
        assert response.headers["x-request-id"]
        (name, error), *others = response.json().items()
        assert name == "error"
        assert not others
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["type"]
        return dict(error)

    @staticmethod
    def events_of(text: str) -> list[dict[str, Any]]:
        *frames, end = text.split("\n\n")
        assert end == ""
        assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
        assert frames.pop() == "data: [DONE]"
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]


@pytest.fixture
def api(client: httpx.AsyncClient) -> Api:
    return Api(client)


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
