"""Deciders by real engines: tiny models of each kind, and a tokenizer whose tokens are bytes."""

import shutil
from contextlib import asynccontextmanager, closing

import pytest

from engine import EngineConfig, EngineLoop, load
from server.decisions.decider import Decider
from server.observe.observer import Observers
from server.prompts.prompts import PromptReader
from server.replies.forwards import Forwards
from server.text.tokenizer import Tokenizer
from tests.server.decisions.decider.asking import INPUT, TEMPLATE


@pytest.fixture(scope="module", params=["llada-tiny", "dream-tiny", "sdar-tiny", "fast-dllm-v2-tiny", "nemotron-tiny"])
def folder(request, llada_tiny):
    return llada_tiny.with_name(request.param)


@pytest.fixture(scope="module")
def engine(folder):
    return load(EngineConfig(model=str(folder), page_size=8, max_running_requests=16, max_queued_requests=32))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder, tmp_path_factory):
    """Its tokens are bytes; turns have an end."""
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with closing(Tokenizer.load(folder)) as tokenizer:
        yield tokenizer


@pytest.fixture
def deciding(engine, tokenizer, monkeypatch):
    """`async with deciding() as decide`: a decider around an engine loop; `decide.submitted` are its requests."""

    @asynccontextmanager
    async def running():
        loop = EngineLoop(engine)
        submitted, prepare = [], loop.prepare
        monkeypatch.setattr(loop, "prepare", lambda some: submitted.extend(some) or prepare(some))
        prompts = PromptReader(tokenizer, max_model_len=loop.info.max_model_len, vocab_size=loop.info.spec.vocab_size)
        decider = Decider(loop, tokenizer, prompts, Forwards(loop), Observers().tokens)

        async def decide(questions, turns=INPUT, **how):
            return await decider.decide(turns, questions, **how)

        decide.submitted = submitted
        loop.start()
        yield decide
        await loop.stop(drain_seconds=1)

    return running
