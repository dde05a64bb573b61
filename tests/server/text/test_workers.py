"""The process that reads texts: what hangs in it is ended, others are served meanwhile, and nothing of it is left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine import EngineUnavailable, InvalidRequest, LoadError
from server.jobs import workers
from server.text import tokenizer as texts
from server.text.tokenizer import Tokenizer

HANGING = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{% set n = 9 %}{{ n ** (n ** n) }}",  # within one call of C that lets no other thread run
}
OUTGROWING = {
    "text": "{% set n = 10 ** 9 %}{{ ('a' * n) | length }}",
    "list": "{% set n = 10 ** 9 %}{{ ([1] * n) | length }}",
    "doubling": "{% set all = namespace(t='a') %}{% for a in range(60) %}{% set all.t = all.t + all.t %}{% endfor %}",
}
TEMPLATE = "{% set said = messages[0].content %}" + "".join(
    f"{{% if said == '{name}' %}}{program}{{% endif %}}" for name, program in {**HANGING, **OUTGROWING}.items()
)


def tokenizer_of(folder, template=TEMPLATE + "{{ messages[0].content }}", pattern=None):
    plain = PreTrainedTokenizerFast.from_pretrained(folder)
    plain.chat_template = template
    if pattern:
        backend = plain.backend_tokenizer
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
    return Tokenizer(plain)


@pytest.fixture(scope="module")
def hostile(tokenizer_folder):
    """A tokenizer whose template does what it is asked to, and whose pattern is slow on many an `a`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("UNMASK_API_KEY", "secret")
        with closing(tokenizer_of(tokenizer_folder, pattern="(a|a)+b")) as tokenizer:
            yield tokenizer


@pytest.fixture(autouse=True)
def _little_time(monkeypatch):
    monkeypatch.setattr(texts, "SECONDS", 0.3)


async def say(tokenizer, content, **options):
    return bytes(await tokenizer.converse([{"role": "user", "content": content}], max_characters=1000, **options))


def pids(tokenizer):
    """Of the process, and of its children."""
    pid = tokenizer._workers._process.pid
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def gone(pid):
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


async def all_gone(of):
    async with asyncio.timeout(30):
        while not all(map(gone, of)):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("mischief", HANGING)
async def test_a_template_that_hangs_is_ended_and_the_next_one_served(hostile, mischief):
    with pytest.raises(InvalidRequest, match="chat template takes too long") as told:
        await say(hostile, mischief)
    assert told.value.param == "messages"
    assert await say(hostile, "hi") == b"hi"


@pytest.mark.parametrize("mischief", OUTGROWING)
async def test_one_that_outgrows_its_memory_is_refused(hostile, mischief):
    with pytest.raises(InvalidRequest, match="chat template") as told:
        await say(hostile, mischief)
    assert told.value.param == "messages"
    assert await say(hostile, "hi") == b"hi"


@pytest.mark.slow
async def test_one_that_hangs_while_it_is_compiled(tokenizer_folder):
    """Jinja computes what is constant."""
    with closing(tokenizer_of(tokenizer_folder, "{{ 9 ** (9 ** 9) }}")) as tokenizer:
        with pytest.raises(InvalidRequest, match="takes too long"):
            await say(tokenizer, "hi")
        assert await tokenizer.encode(["hi"]) == [list(b"hi")]


async def test_texts_are_read_while_a_conversation_hangs(hostile, monkeypatch):
    monkeypatch.setattr(texts, "SECONDS", 1.0)
    hanging = asyncio.create_task(say(hostile, "power"))
    await asyncio.sleep(0)
    for _ in range(5):
        assert await hostile.encode(["hi"]) == [list(b"hi")]
    assert not hanging.done()
    with pytest.raises(InvalidRequest):
        await hanging


@pytest.mark.slow
async def test_a_pattern_that_hangs_is_ended(hostile, monkeypatch):
    with pytest.raises(InvalidRequest, match="tokenizer takes too long") as told:
        await hostile.encode([("a" * 18 + " ") * 3000], param="suffix")
    assert told.value.param == "suffix"
    # The library of patterns has a limit of its own, which it may reach late on a busy machine.
    monkeypatch.setattr(texts, "SECONDS", 30.0)
    with pytest.raises(InvalidRequest, match="ran out of memory, or crashed"):
        await hostile.encode(["a" * 300])
    assert await hostile.encode(["hi"]) == [list(b"hi")]


def test_a_decoder_with_a_pattern_is_refused(tokenizer_folder):
    """Tokens become text in the server's own process."""
    plain = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    plain.backend_tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("(a+)+b"), "")])
    with pytest.raises(LoadError, match="regular expression"):
        Tokenizer(plain)


async def test_a_process_that_died_is_replaced(hostile):
    await say(hostile, "hi")
    before = pids(hostile)
    os.killpg(before[0], signal.SIGKILL)
    await all_gone(before[1:])
    with pytest.raises(EngineUnavailable):
        await say(hostile, "hi")
    assert await say(hostile, "hi") == b"hi"
    assert await hostile.encode(["hi"]) == [list(b"hi")]
    assert not {*before} & {*pids(hostile)}


async def test_a_child_that_died_is_replaced(hostile):
    await say(hostile, "hi")
    before = pids(hostile)
    for pid in before[1:]:
        os.kill(pid, signal.SIGKILL)
    await all_gone(before[1:])
    with suppress(InvalidRequest):  # the first may be told of it; nobody gets another's answer
        await say(hostile, "hi")
    for text in ("a", "b", "c"):
        assert await say(hostile, text) == text.encode()
    assert pids(hostile)[0] == before[0]


async def test_one_that_waits_too_long_is_a_503(hostile, monkeypatch):
    monkeypatch.setattr(texts, "SECONDS", 1.0)
    hanging = asyncio.create_task(say(hostile, "power"))
    await asyncio.sleep(0)
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(EngineUnavailable, match="try again"):
        await say(hostile, "hi")
    with pytest.raises(InvalidRequest):
        await hanging


async def test_it_has_neither_torch_nor_keys(hostile):
    await say(hostile, "hi")
    for pid in pids(hostile):
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_close_ends_it_whatever_it_does(tokenizer_folder, monkeypatch):
    monkeypatch.setattr(texts, "SECONDS", 100.0)
    tokenizer = tokenizer_of(tokenizer_folder)
    await tokenizer.start()
    of = pids(tokenizer)
    hanging = asyncio.create_task(say(tokenizer, "loops"))
    await asyncio.sleep(0.05)
    tokenizer.close()
    with pytest.raises(EngineUnavailable):
        await hanging
    await all_gone(of)


ORPHAN = """
import asyncio, sys
from server.text import tokenizer as texts
from tests.server.text.test_workers import pids, say, tokenizer_of

async def main(seconds):
    tokenizer = tokenizer_of(sys.argv[1])
    await tokenizer.start()
    print(*pids(tokenizer), flush=True)
    await say(tokenizer, "loops")

texts.SECONDS = 1.0
asyncio.run(main(1.0))
"""


@pytest.mark.slow
async def test_it_does_not_outlive_a_server_that_is_killed(tokenizer_folder):
    """Its idle children see that the connection is closed, and a hanging one has no more time than ever."""
    command = [sys.executable, "-c", ORPHAN, str(tokenizer_folder)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as server:
        of = [int(pid) for pid in server.stdout.readline().split()]
        time.sleep(0.1)
        server.kill()
    assert len(of) == 3
    await all_gone(of)
