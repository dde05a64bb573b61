"""What goes on under a forward where the host has time for it: blocks go out, requests come in, and nothing is lost."""

import asyncio
import threading
from contextlib import suppress

import pytest

from engine import EngineLoop, RequestFailed
from engine.core.errors import DeviceLost

from .test_loop import collect


@pytest.fixture
async def overlapping(engine, monkeypatch):
    """A loop whose engine takes its device for a GPU: the host has time while it computes."""
    monkeypatch.setattr(type(engine), "is_async", True)
    loop = EngineLoop(engine)
    loop.start()
    yield loop
    await loop.stop(0)


async def test_outputs_that_go_out_under_the_next_forward_are_the_same(overlapping, golden, submission):
    streams = overlapping.submit([submission(number, **row) for number, row in enumerate(golden[::15])])
    answers = await asyncio.gather(*map(collect, streams))
    assert answers == [row["output"] for row in golden[::15]]


async def test_a_block_goes_out_and_a_request_comes_in_while_the_device_computes(overlapping, submission, monkeypatch):
    """The step that follows a block is stopped in its midst: by then the block is there, and a newcomer is queued."""
    [stream] = overlapping.submit([submission("a", gen_length=64, block_length=8, unmask="threshold", threshold=0.0)])
    held, waiting = threading.Event(), threading.Event()
    use = overlapping._use_the_wait

    def used_and_held():
        is_first = not overlapping._undelivered
        use()
        if not is_first:
            waiting.set()
            held.wait(5)

    monkeypatch.setattr(overlapping, "_use_the_wait", used_and_held)
    assert len((await anext(stream)).token_ids) == 8, "though the step under way has not ended"
    await asyncio.to_thread(waiting.wait, 5)
    [other] = overlapping.submit([submission("b")])
    use()
    assert [request.id for request in overlapping._engine.scheduler.waiting] == ["b"]
    held.set()
    monkeypatch.undo()
    await asyncio.gather(collect(stream), collect(other))


@pytest.mark.parametrize("end", ["abort", "lost device"])
async def test_a_block_that_has_not_gone_out_yet_comes_before_the_end(overlapping, submission, monkeypatch, end):
    """Each step completes a block; the one before the end is still here when that comes."""
    asked = {"gen_length": 512, "block_length": 8, "unmask": "threshold", "threshold": 0.0}
    [stream] = overlapping.submit([submission("a", **asked)])
    step, blocks = overlapping._engine.step, []

    def watched(meanwhile):
        if len(blocks) == 3:
            if end == "abort":
                stream.abort()
            else:
                raise DeviceLost("its context is gone")
        outputs = step(meanwhile)
        blocks.extend(outputs)
        return outputs

    monkeypatch.setattr(overlapping._engine, "step", watched)
    received = []
    with suppress(RequestFailed):
        async for output in stream:
            received.append(output)
    assert len(blocks) >= 3
    assert [output for output in received if output.token_ids] == blocks
