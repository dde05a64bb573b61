"""`unmask bench serve`: what it asks, when it asks it, and its arithmetic."""

import asyncio
import random
from itertools import pairwise

import pytest

from engine import ConfigError
from server.bench.serve import prompts
from server.bench.serve.client import Failure, Sample
from server.bench.serve.figures import summarise
from server.bench.serve.prompts import Lengths, LoadRequest
from server.bench.serve.run import LoadResult, arrivals, closed_loop, open_loop


def test_lengths():
    rng = random.Random(0)
    assert {Lengths.parse("2-4").draw(rng) for _ in range(100)} == {2, 3, 4}
    assert Lengths.parse("7") == Lengths(7, 7)


def test_the_same_seed_asks_the_same():
    shape = (Lengths(3, 9), Lengths(1, 5))
    assert prompts.random_requests(20, *shape, seed=1) == prompts.random_requests(20, *shape, seed=1)
    assert prompts.random_requests(20, *shape, seed=1) != prompts.random_requests(20, *shape, seed=2)
    assert all(3 <= len(request.prompt.split()) <= 9 for request in prompts.random_requests(20, *shape, seed=1))
    with_ids = prompts.random_requests(50, *shape, seed=1, vocab_size=4)
    assert {token for request in with_ids for token in request.prompt} == {0, 1, 2, 3}


def test_arrivals_are_poisson():
    """Exponential gaps: mean and deviation are both 1 / rate; 20,000 of them give 3 % at most."""
    times = [at for at, _ in zip(arrivals(4.0, seed=3), range(20_001), strict=False)]
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert times[0] == 0
    assert mean == pytest.approx(0.25, rel=0.03)
    assert deviation == pytest.approx(0.25, rel=0.03)
    assert times[:9] == [at for at, _ in zip(arrivals(4.0, seed=3), range(9), strict=False)]


def sample(sent=0.0, blocks=(1.0, 2.0), ended=3.0, **changes):
    tokens = {"prompt_tokens": 4, "completion_tokens": 64, "first_tokens": 32, "forwards": 8, "rows": 640}
    return Sample(sent=sent, blocks=blocks, ended=ended, **{**tokens, **changes})


def run_of(*samples, failures=(), seconds=4.0):
    return LoadResult(samples=list(samples), failures=list(failures), seconds=seconds, interrupted=False)


def test_the_arithmetic():
    figures = summarise(run_of(sample(), sample(sent=0.5, blocks=(2.5,), ended=2.5), failures=[Failure("x")]))
    assert figures.time_to_first_block.p50 == pytest.approx(1.5)
    assert figures.time_to_first_block.p90 == pytest.approx(1.9)
    assert figures.time_per_output_token.p99 == pytest.approx(2 / 32)  # the answer of one block says nothing of it
    assert figures.inter_block_latency.mean == pytest.approx(1.0)
    assert figures.end_to_end.mean == pytest.approx(2.5)
    assert (figures.tokens_per_second, figures.requests_per_second) == (32, 0.5)
    assert (figures.forwards_per_token, figures.rows_per_token) == (16 / 128, 1280 / 128)
    assert (figures.blocks_per_request, figures.failures) == (1.5, {"x": 1})


def test_where_the_first_block_is_of_unknown_length_it_is_one_token():
    figures = summarise(run_of(sample(first_tokens=None, completion_tokens=3)))
    assert figures.time_per_output_token.p50 == pytest.approx(1.0)


def test_usage_that_some_answers_lack_is_not_summed():
    figures = summarise(run_of(sample(), sample(completion_tokens=None, forwards=None)))
    assert (figures.tokens_from, figures.completion_tokens, figures.forwards_per_token) == ("chunks", 4, None)


async def test_open_loop_does_not_wait_for_answers():
    sent, release = [], asyncio.Event()

    async def send(request):
        sent.append(request.max_tokens)
        if len(sent) == 5:
            release.set()
        await release.wait()
        return sample()

    requests = [LoadRequest(prompt="a", max_tokens=i) for i in range(5)]
    run = await asyncio.wait_for(open_loop(send, requests, 200.0, 0, lambda: None), 5)
    assert sent == [0, 1, 2, 3, 4]
    assert len(run.samples) == 5


async def test_cancelling_keeps_what_was_answered():
    done = []

    async def send(request):
        if request.max_tokens > 2:
            await asyncio.sleep(60)
        return sample()

    requests = [LoadRequest(prompt="a", max_tokens=i) for i in range(10)]
    task = asyncio.create_task(closed_loop(send, requests, 2, lambda: done.append(1)))
    while len(done) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    run = await task
    assert (len(run.samples), run.interrupted) == (3, True)


def test_lengths_refuse_zero():
    with pytest.raises(ConfigError, match="positive"):
        Lengths.parse("0")
