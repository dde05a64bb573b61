"""The constraints of one model: each is compiled once and kept, for those who wait for it and no other tenant."""

import asyncio
import gc
import os
import signal
import weakref
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from engine import EngineUnavailable, QueueFull
from server import constraints as kept
from server.constraints import Constraints
from server.jobs.workers import Failed
from server.structured import spec
from server.structured.refusals import Refused, TooLarge, Unsupported
from server.text.tokenizer import Tokenizer

from .fake_engine import EOS, FakeEngine

MODEL = FakeEngine().info.spec
HOSTILE = "(a|b)*a(a|b){14}(c|d)*c(c|d){14}"


class Told:
    """A `CompileObserver` that counts."""

    def __init__(self):
        self.compiled = self.cached = self.refused = 0

    def on_compiled(self, seconds):
        self.compiled += 1

    def on_cached(self):
        self.cached += 1

    def on_refused(self, reason, keyword):
        self.refused += 1


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def make(tokenizer, told):
    """Constraints of the byte tokenizer."""
    made = []

    def make(of=tokenizer, model=MODEL, **options):
        options = {"is_enabled": True, "cache_bytes": 2**20, **options}
        made.append(Constraints(of, model, told, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def test_those_who_ask_at_once_wait_for_one_compilation(make, told):
    constraints = make()
    asked = spec.of_regex("a{3}")
    made = await asyncio.gather(*(constraints.compiled(asked) for _ in range(5)))
    assert len({id(one.constraint) for one in made}) == 1
    assert sorted(one.is_cached for one in made) == [False, True, True, True, True]
    assert (told.compiled, told.cached) == (1, 4)


async def test_one_that_leaves_does_not_take_it_from_the_others(make, accepts):
    constraints = make()
    asked = spec.of_regex("a{3}")
    first = asyncio.create_task(constraints.compiled(asked))
    await asyncio.sleep(0)
    second = asyncio.create_task(constraints.compiled(asked))
    await asyncio.sleep(0)
    first.cancel()
    assert accepts((await second).constraint, "aaa")
    with suppress(asyncio.CancelledError):
        await first


async def test_what_was_used_last_is_kept(make, told):
    constraints = make(cache_bytes=15_000)
    specs = [spec.of_regex(f"a{{{count}}}") for count in range(1, 9)]
    for one in specs:
        _ = (await constraints.compiled(one)).constraint.edge_start  # as the engine makes it, once it decodes
        await constraints.compiled(specs[0])
    assert told.compiled == 8, "the first one was always used just before"
    assert not (await constraints.compiled(specs[1])).is_cached
    assert constraints._kept_bytes <= 15_000
    assert constraints._kept_bytes == sum(kept._size(*item) for item in constraints._kept.items())


async def test_a_refusal_is_kept(make, told):
    constraints = make()
    for _ in range(2):
        with pytest.raises(Unsupported, match="look-behind"):
            await constraints.compiled(spec.of_regex("(?<=a)"))
    assert told.refused == 2
    assert told.compiled == 0


async def test_one_that_takes_too_long_is_refused_and_the_next_one_compiled(make, monkeypatch, accepts):
    constraints = make()
    await constraints.compiled(spec.of_regex("b"))
    monkeypatch.setattr(kept, "SECONDS", 0.2)
    with pytest.raises(TooLarge, match=r"more than 0\.2 s"):
        await constraints.compiled(spec.of_regex(HOSTILE))
    assert accepts((await constraints.compiled(spec.of_regex("a"))).constraint, "a")
    assert ("", spec.of_regex(HOSTILE)) not in constraints._kept, "a less busy machine may be fast enough"


async def test_one_that_nobody_waits_for_is_not_begun(make, told):
    constraints = make()
    async with constraints._turn:
        asked = [asyncio.create_task(constraints.compiled(spec.of_regex("a"))) for _ in range(2)]
        await asyncio.sleep(0)
        asked[0].cancel()
        await asyncio.sleep(0.01)
        assert len(constraints._running) == 1
        asked[1].cancel()
        await asyncio.sleep(0.01)
        assert not constraints._running
    await asyncio.sleep(0.05)
    assert told.compiled == 0
    assert constraints._workers._process is None


async def test_one_asked_for_again_as_it_is_given_up_is_compiled(make, told, accepts):
    """The first one ends a turn of the event loop after the other has taken its place."""
    constraints = make()
    asked = spec.of_regex("a")
    async with constraints._turn:
        first = asyncio.create_task(constraints.compiled(asked))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)
        again = asyncio.create_task(constraints.compiled(asked))
        await asyncio.sleep(0.01)
        assert len(constraints._running) == 1
    assert accepts((await again).constraint, "a")
    assert told.compiled == 1
    assert not constraints._running


async def test_no_more_than_so_many_wait(make, monkeypatch):
    monkeypatch.setattr(kept, "MAX_RUNNING", 1)
    constraints = make()
    first = asyncio.create_task(constraints.compiled(spec.of_regex("a")))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await constraints.compiled(spec.of_regex("b"))
    await first
    await constraints.compiled(spec.of_regex("b"))


async def test_two_tenants_share_nothing(make, told):
    constraints = make()
    for tenant in ("one", "other"):
        assert not (await constraints.compiled(spec.of_regex("a"), tenant)).is_cached
        assert (await constraints.compiled(spec.of_regex("a"), tenant)).is_cached
    assert told.compiled == 2


async def test_a_refusal_keeps_nothing_of_its_request(make):
    class Body:
        pass

    async def ask():
        body = Body()
        with suppress(Refused):
            await constraints.compiled(spec.of_regex("(?<=a)"))
        return weakref.ref(body)

    constraints = make()
    bodies = [await ask() for _ in range(2)]
    gc.collect()
    assert [body() for body in bodies] == [None, None]
    assert constraints._kept


async def test_a_defect_of_the_compiler_is_not_the_clients_fault(make, monkeypatch):
    constraints = make()

    async def ask(*_, **__):
        raise Failed("has a defect")

    monkeypatch.setattr(constraints._workers, "ask", ask)
    with pytest.raises(Failed):
        await constraints.compiled(spec.of_regex("a"))
    assert not constraints._kept
    assert not constraints._running


async def test_after_its_end_no_process_is_started(make):
    constraints = make()
    constraints.close()
    with pytest.raises(EngineUnavailable):
        await constraints.compiled(spec.of_regex("a"))
    assert constraints._workers._process is None


async def test_a_process_that_died_is_a_503_and_replaced(make, accepts):
    constraints = make()
    await constraints.compiled(spec.of_regex("a"))
    os.killpg(constraints._workers._process.pid, signal.SIGKILL)
    with suppress(EngineUnavailable):  # unless its end is seen first
        await constraints.compiled(spec.of_regex("b"))
    assert accepts((await constraints.compiled(spec.of_regex("c"))).constraint, "c")


async def test_it_can_be_switched_off(make):
    with pytest.raises(Refused, match="`structured` is false"):
        await make(is_enabled=False).compiled(spec.of_regex("a"))


async def test_a_tokenizer_whose_tokens_have_no_bytes_of_their_own_is_refused(make):
    plain = PreTrainedTokenizerFast(tokenizer_object=Backend(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with closing(Tokenizer(plain)) as tokenizer, pytest.raises(Refused, match="byte-level tokenizer"):
        await make(tokenizer).compiled(spec.of_regex("a"))


async def test_the_mask_is_no_token_of_an_answer(make, accepts):
    """Even if the vocabulary spells it."""
    made = await make(model=replace(MODEL, mask_id=ord("m"))).compiled(spec.of_regex("[a-z]*"))
    assert accepts(made.constraint, "lan")
    assert not accepts(made.constraint, "man")
    assert made.constraint.classes[EOS] == made.constraint.num_classes - 1
