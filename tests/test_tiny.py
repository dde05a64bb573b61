"""The tour: one request from token ids to an answer, floor by floor. Read this first, then `engine/engine.py`."""

import torch

from engine import DiffusionParams, EngineConfig, EngineLoop, FinishReason, SamplingParams, Submission, load
from engine.cache.policies import CACHES
from engine.core.steps.choice import Choice
from engine.execution.step import prepare
from engine.unmask.policies import UNMASKS, needs


def test_a_step_by_hand(llada_tiny):
    """What `Engine.step` does, one line at a time."""
    engine = load(EngineConfig(model=str(llada_tiny)))
    request = engine.new_request(
        Submission(
            request_id="tour",
            prompt_ids=[95, 11, 81],
            sampling=SamplingParams(max_tokens=16),
            diffusion=DiffusionParams(cache="dual", unmask="threshold", threshold=0.9, block_length=8),
        )
    )
    # A request is a canvas: the prompt, then masks, in blocks.
    assert request.canvas_end == 3 + 16
    assert request.masked.sum() == 16
    assert (request.block.start, request.block.end) == (3, 11)

    # The scheduler gives it KV pages and asks its cache policy which rows to compute: the first time, all of them.
    engine.submit(request)
    [plan] = engine.scheduler.schedule()
    assert request.pages == (0,)
    assert plan.rows.tolist() == list(range(19))
    assert plan.targets.tolist() == list(range(3, 11)), "only the open block's masks are scored"

    # The host lays out rows and what their scoring needs, and sends all of it to the device at once.
    runner, page_size = engine.runner, engine.info.page_size
    dump, device = runner.pool.dump, runner.device
    step = prepare([plan], needs([plan]), mask_id=256, page_size=page_size, dump=dump, device=device)

    # One forward writes keys and values in place; the targets' logits become proposed tokens and their confidence.
    with torch.inference_mode():
        step.launch(runner)
        [scores] = step.read()
    assert scores.positions is plan.targets
    assert all(0 <= token < 256 for token in scores.tokens), "the mask, 256, is never proposed"

    # The unmask policy says which proposals become tokens; the scheduler writes them.
    chosen = UNMASKS["threshold"].select(request, scores)
    assert 1 <= chosen.sum() < 8
    assert engine.scheduler.commit([Choice(plan, scores, chosen)]) == [], "no block is complete yet"
    assert request.masked.sum() == 16 - chosen.sum()

    # From now on the dual cache computes the block alone.
    assert CACHES["dual"].plan(request).rows.tolist() == list(range(3, 11))

    # The rest is the same step again; each completed block comes out once.
    outputs = []
    while engine.request_ids:
        outputs += engine.step()
    assert [len(output.token_ids) for output in outputs] == [8, 8]
    assert [output.finish_reason for output in outputs] == [None, FinishReason.LENGTH]
    assert engine.stats().kv_pages_used == 0


async def test_the_same_from_asyncio(llada_tiny):
    """How the server uses it: the engine steps on its own thread, blocks come out as an async iterator."""
    loop = EngineLoop(load(EngineConfig(model=str(llada_tiny))))
    loop.start()
    [stream] = loop.submit(
        [
            Submission(
                request_id="tour",
                prompt_ids=[95, 11, 81],
                sampling=SamplingParams(max_tokens=16),
                diffusion=DiffusionParams(block_length=8),
            )
        ]
    )
    blocks = [output.token_ids async for output in stream]
    await loop.stop(drain_seconds=1)
    assert [len(block) for block in blocks] == [8, 8]
