"""The engine on its thread: streams, aborts, bounds, faults and shutdown."""

import asyncio
import threading
import time

import pytest
import torch

from engine import (
    EngineConfig,
    EngineLoop,
    EngineUnavailable,
    FinishReason,
    InvalidRequest,
    QueueFull,
    RequestFailed,
    load,
)

from .faulty import rows_of


@pytest.fixture
async def loop(engine):
    loop = EngineLoop(engine)
    loop.start()
    yield loop
    await loop.stop(0)


async def settled(loop, condition):
    """Waits until the engine thread has seen to it."""
    async with asyncio.timeout(5):
        while not condition(loop.stats):
            await asyncio.sleep(0.005)


async def collect(stream):
    return [token async for output in stream for token in output.token_ids]


async def test_streams_give_what_the_engine_gives(loop, golden, submission):
    streams = loop.submit([submission(number, **row) for number, row in enumerate(golden[::15])])
    answers = await asyncio.gather(*map(collect, streams))
    assert answers == [row["output"] for row in golden[::15]]
    assert loop.stats.finished[FinishReason.LENGTH] == len(answers) == 12


async def test_abort_ends_the_stream_and_frees_the_pages(loop, submission):
    stream, other = loop.submit([submission("a", gen_length=512, unmask="fixed"), submission("b")])
    await settled(loop, lambda stats: stats.running == 2)
    stream.abort()
    last = [output async for output in stream][-1]
    assert last.finish_reason is FinishReason.ABORT
    await collect(other)
    await settled(loop, lambda stats: stats.kv_pages_used == 0)
    stream.abort()  # harmless


async def test_a_request_can_be_aborted_before_it_runs(loop, submission):
    streams = loop.submit([submission(number, gen_length=512, unmask="fixed") for number in range(80)])
    for stream in streams:
        stream.abort()
    await settled(loop, lambda stats: stats.finished[FinishReason.ABORT] == 80)
    assert (loop.stats.running, loop.stats.waiting, loop.stats.kv_pages_used) == (0, 0, 0)


async def test_the_queue_is_bounded_and_all_or_none(llada_tiny, submission):
    config = EngineConfig(model=str(llada_tiny), max_running_requests=1, max_queued_requests=2)
    loop = EngineLoop(load(config))
    loop.start()
    row = {"gen_length": 512, "unmask": "fixed"}
    streams = loop.submit([submission(0, **row)])
    await settled(loop, lambda stats: stats.running == 1)
    with pytest.raises(QueueFull):
        loop.submit([submission(number, **row) for number in (1, 2, 3)])
    streams += loop.submit([submission(1, **row), submission(2, **row)])
    with pytest.raises(QueueFull):
        loop.submit([submission(4, **row)])
    assert loop.stats.rejected == 4
    for stream in streams:
        stream.abort()
    await loop.stop(0)


async def test_one_bad_request_refuses_the_whole_submission(loop, submission):
    with pytest.raises(InvalidRequest):
        loop.submit([submission("good"), submission("bad", cache="lru")])
    assert loop.stats.waiting == 0
    assert not loop._engine.request_ids


async def test_of_two_requests_with_one_id_the_second_is_refused(loop, submission):
    with pytest.raises(InvalidRequest, match="'twice'") as caught:
        loop.submit([submission("twice"), submission("other"), submission("twice")])
    assert caught.value.param == "request_id"
    [first] = loop.submit([submission("one", gen_length=512, unmask="fixed")])
    with pytest.raises(InvalidRequest, match="'one'"):
        loop.submit([submission("two"), submission("one")])
    first.abort()
    assert [output async for output in first][-1].finish_reason is FinishReason.ABORT
    [again] = loop.submit([submission("one")])
    assert len(await collect(again)) == 32, "once the first has ended, its id is free"


def test_an_event_loop_that_closes_while_it_is_told_ends_nobody_else(engine, submission, monkeypatch):
    """The engine's thread has looked whether it is closed; then it closes."""
    loop, closed = EngineLoop(engine), asyncio.new_event_loop()

    async def submit():
        return loop.submit([submission("unheard", gen_length=64, block_length=8, unmask="fixed")])

    loop.start()
    closed.run_until_complete(submit())
    monkeypatch.setattr(closed, "is_closed", lambda: False)
    closed.close()

    async def served():
        [stream] = loop.submit([submission("heard", gen_length=64, block_length=8, unmask="fixed")])
        tokens = await asyncio.wait_for(collect(stream), 30)
        assert loop.healthy
        await loop.stop(0)
        return tokens

    assert len(asyncio.run(served())) == 64


async def test_a_failing_step_fails_its_requests_and_no_more(loop, submission, monkeypatch, caplog):
    forward = loop._engine.runner.forward

    def broken(batch):
        monkeypatch.setattr(loop._engine.runner, "forward", forward)
        raise ValueError("a fault from outside")

    monkeypatch.setattr(loop._engine.runner, "forward", broken)
    [stream] = loop.submit([submission("unlucky")])
    with pytest.raises(RequestFailed, match="unlucky"):
        await collect(stream)
    assert "a fault from outside" in caplog.text
    [stream] = loop.submit([submission("lucky")])
    assert len(await collect(stream)) == 32
    assert loop.healthy
    assert loop.stats.finished[FinishReason.ERROR] == 1


async def test_nobody_waits_for_a_dead_engine(loop, submission, monkeypatch):
    def broken(*_):
        raise MemoryError

    [stream] = loop.submit([submission(gen_length=512, unmask="fixed")])
    await settled(loop, lambda stats: stats.running == 1)
    monkeypatch.setattr(loop._engine, "abort", broken)
    stream.abort()
    with pytest.raises(RequestFailed):
        await collect(stream)
    loop._thread.join(timeout=5)
    assert (loop.healthy, loop.died) == (False, True)
    with pytest.raises(EngineUnavailable):
        loop.submit([submission()])


async def test_stop_lets_running_requests_finish(loop, submission):
    [stream] = loop.submit([submission(gen_length=64)])
    await loop.stop(drain_seconds=20)
    assert len(await collect(stream)) == 64
    assert not loop.accepting
    assert not loop.healthy
    with pytest.raises(EngineUnavailable):
        loop.submit([submission()])


async def test_stop_aborts_what_does_not_finish_in_time(loop, submission):
    [stream] = loop.submit([submission(gen_length=960, unmask="fixed")])
    await loop.stop(drain_seconds=0.05)
    assert [output.finish_reason async for output in stream][-1] is FinishReason.ABORT


async def test_nothing_is_taken_before_start(engine, submission):
    with pytest.raises(EngineUnavailable):
        EngineLoop(engine).submit([submission()])


@pytest.fixture
def blocked(monkeypatch, engine):
    """A model whose forward blocks until this event is set; it never is longer than the test."""
    release, forward = threading.Event(), engine.runner.forward

    def blocking(batch):
        release.wait(30)
        return forward(batch)

    monkeypatch.setattr(engine.runner, "forward", blocking)
    yield release
    release.set()


async def test_a_stuck_step_shows_in_the_heartbeat(engine, blocked, submission, monkeypatch):
    loop = EngineLoop(engine, stuck_after=0.3)
    monkeypatch.setattr("engine.loop.IDLE_BEAT_SECONDS", 0.05)
    loop.start()
    await asyncio.sleep(0.5)
    assert loop.healthy, "idle is not stuck"
    [stream] = loop.submit([submission()])
    await asyncio.sleep(0.5)
    assert not loop.healthy
    assert not loop.died, "it may come back"
    blocked.set()
    await collect(stream)
    await settled(loop, lambda _: loop.healthy)
    await loop.stop(1)


async def test_stop_leaves_a_stuck_thread_behind(engine, blocked, submission, monkeypatch, caplog):
    monkeypatch.setattr("engine.loop.JOIN_SECONDS", 0.2)
    loop = EngineLoop(engine)
    loop.start()
    streams = loop.submit([submission(1), submission(2)])
    await settled(loop, lambda stats: stats.running == 2)
    started = time.monotonic()
    await loop.stop(drain_seconds=0.1)
    assert time.monotonic() - started < 2
    assert "left behind" in caplog.text
    for stream in streams:
        with pytest.raises(RequestFailed):
            await collect(stream)
    assert not loop.accepting
    caplog.clear()
    blocked.set()
    loop._thread.join(5)
    assert not loop._thread.is_alive()
    assert (loop.died, caplog.text) == (False, ""), "late is not dead"


@pytest.mark.parametrize("error", [torch.AcceleratorError("CUDA error: an illegal memory access"), SystemExit()])
async def test_a_lost_device_ends_the_thread_and_everything_with_it(
    loop, submission, monkeypatch, device, caplog, error
):
    running = loop.submit([submission(number, gen_length=512, unmask="fixed") for number in range(70)])
    await settled(loop, lambda stats: stats.running == 64)
    assert not loop.died
    calls = []

    def lost(batch):
        calls.append(len(batch.ids))
        device.lost = True
        raise error

    monkeypatch.setattr(loop._engine.runner, "forward", lost)
    for stream in running:
        with pytest.raises(RequestFailed):
            await asyncio.wait_for(collect(stream), 5)
    loop._thread.join(5)
    assert (loop.died, loop.healthy, loop.accepting) == (True, False, False)
    assert len(calls) == 1, "it is not asked again"
    assert str(error) in caplog.text
    with pytest.raises(EngineUnavailable):
        loop.submit([submission()])
    await loop.stop(0)
    assert loop.died


async def test_a_thread_that_was_stopped_has_not_died(engine):
    loop = EngineLoop(engine)
    assert not loop.died
    loop.start()
    assert (loop.died, loop.healthy) == (False, True)
    await loop.stop(0)
    assert (loop.died, loop.healthy) == (False, False)


async def test_a_defect_of_the_scheduler_fails_who_is_here_and_ends(loop, submission, monkeypatch, caplog):
    """Nobody's fault that could be told: not retried for ever, and the loop goes on."""
    admit = loop._engine.scheduler._admit

    def broken():
        monkeypatch.setattr(loop._engine.scheduler, "_admit", admit)
        raise RuntimeError("a defect")

    monkeypatch.setattr(loop._engine.scheduler, "_admit", broken)
    [stream] = loop.submit([submission()])
    with pytest.raises(RequestFailed):
        await collect(stream)
    assert "a defect" in caplog.text
    [stream] = loop.submit([submission("next")])
    assert len(await collect(stream)) == 32
    assert loop.healthy


async def test_one_faulty_request_leaves_the_other_streams_alone(loop, submission, golden, monkeypatch, caplog):
    """As in `test_isolate`, through the thread: every other stream gets its answer, and the log names who failed."""
    forward, engine = loop._engine.runner.forward, loop._engine

    def faulty(batch):
        if rows_of(engine, batch, "culprit").any():
            raise ValueError("a fault in the forward")
        return forward(batch)

    monkeypatch.setattr(loop._engine.runner, "forward", faulty)
    asked = [submission(number, **row) for number, row in enumerate(golden[:12])]
    *streams, culprit = loop.submit([*asked, submission("culprit")])
    with pytest.raises(RequestFailed, match="culprit"):
        await collect(culprit)
    assert await asyncio.gather(*map(collect, streams)) == [row["output"] for row in golden[:12]]
    await settled(loop, lambda stats: stats.kv_pages_used == 0)
    assert loop.stats.finished[FinishReason.ERROR] == 1
    assert [record.getMessage().splitlines()[0] for record in caplog.records] == [
        "failed: request culprit: ValueError: a fault in the forward"
    ]
