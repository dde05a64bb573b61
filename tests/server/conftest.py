"""A server around a fake engine: a byte tokenizer, an engine that answers from a script, httpx on top."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from engine import DEMO_MODEL, Constraint, EngineLoop
from server.http import lifecycle
from server.http.app import create_app
from server.http.lifecycle import Server
from server.settings.tree import build
from server.text.tokenizer import Tokenizer

from .fake_engine import FakeEngine

CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<' + message.role + '>' + message.content }}{% endfor %}\
{% if shout is defined %}{{ shout }}{% endif %}{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}\
{% if messages[0].content == 'refuse' %}{{ raise_exception('refused') }}{% endif %}\
{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""


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
def tokenizer(tokenizer_folder: Path) -> Iterator[Tokenizer]:
    with closing(Tokenizer.load(tokenizer_folder)) as tokenizer:
        asyncio.run(tokenizer.start())  # or the first test of a time limit would wait for it
        yield tokenizer


@pytest.fixture(scope="session")
def demo_tokenizer() -> Iterator[Tokenizer]:
    """That of the bundled model: its own process takes a second to start."""
    with closing(Tokenizer.load(Path(DEMO_MODEL))) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="session")
def make_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def engine(make_engine: type[FakeEngine]) -> FakeEngine:
    return make_engine()


@pytest.fixture(scope="session")
def accepts() -> Callable[[Constraint, str], bool]:
    """`accepts(constraint, text)`: whether the answer may be this text, whose bytes are its token ids."""

    def accepts(constraint: Constraint, text: str) -> bool:
        state = constraint.advanced(0, np.frombuffer(text.encode(), np.uint8).astype(np.int64))
        return state < constraint.num_states and bool(constraint.accepts[state])

    return accepts


@pytest.fixture
def app(engine: FakeEngine, tokenizer: Tokenizer) -> FastAPI:
    settings = build({"served_model_name": ["fake", "org/fake"], "max_body_bytes": 4096, "diffusion.threshold": 0.8})
    return create_app(cast(EngineLoop, engine), tokenizer, settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
def listening(monkeypatch):
    """Runs the app around an engine on a real socket: `async with listening(engine) as (url, task)`."""
    monkeypatch.setattr(lifecycle, "LINGER_SECONDS", 0.02)  # no other server follows, to which clients could turn

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


@pytest.fixture
async def connect():
    """`await connect(url)`: a raw connection, as (reader, writer)."""
    writers = []

    async def connect(url: str, receive_buffer: int | None = None):
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        host, port = url.removeprefix("http://").split(":")
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.01)


@pytest.fixture
def answer():
    """`await answer(reader)`: (status line, headers, JSON body) of all that comes until the connection is closed."""

    async def read(reader: asyncio.StreamReader):
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        status, *headers = head.decode().split("\r\n")
        return status, dict(line.split(": ", 1) for line in headers), json.loads(body)

    return read


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


@pytest.fixture(params=["completions", "chat"])
def ask(api: Api, request: pytest.FixtureRequest) -> Callable[..., Awaitable[httpx.Response]]:
    """Posts to either route: what they share works alike."""
    return api.complete if request.param == "completions" else api.chat


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
