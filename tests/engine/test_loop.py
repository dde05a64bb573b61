"""The engine on its thread: streams, aborts, bounds, faults and shutdown."""

import asyncio

import pytest

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
    streams = loop.submit([submission(number, **row) for number, row in enumerate(golden[:40])])
    answers = await asyncio.gather(*map(collect, streams))
    assert answers == [row["output"] for row in golden[:40]]
    assert loop.stats.finished[FinishReason.LENGTH] == 40


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
    assert loop.stats.prompt_tokens == 0


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
    assert not loop.healthy
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


async def test_a_stuck_step_shows_in_the_heartbeat(engine, submission, monkeypatch):
    loop = EngineLoop(engine, stuck_after=0.2)
    monkeypatch.setattr("engine.loop.IDLE_BEAT_SECONDS", 0.05)
    loop.start()
    await asyncio.sleep(0.4)
    assert loop.healthy, "idle is not stuck"
    step, release = engine.step, asyncio.Event()
    running = asyncio.get_running_loop()

    def stuck():
        asyncio.run_coroutine_threadsafe(release.wait(), running).result()
        return step()

    monkeypatch.setattr(engine, "step", stuck)
    [stream] = loop.submit([submission()])
    await asyncio.sleep(0.4)
    assert not loop.healthy
    release.set()
    await collect(stream)
    assert loop.healthy
    await loop.stop(1)
