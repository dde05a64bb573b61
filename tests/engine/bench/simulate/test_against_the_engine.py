"""The simulator and the real engine on the same small traces: step for step, request for request, row for row.

Seconds of the simulator are steps of the engine here: each takes one. The engine gets what has arrived by then.
"""

from dataclasses import replace
from functools import partial

import pytest

from engine import DiffusionParams, EngineConfig, SamplingParams, Submission, load
from engine.bench.simulate.arrivals import Arrival
from engine.bench.simulate.fleet import Fleet
from engine.bench.simulate.replica import Limits, Replica
from engine.bench.simulate.routers import LeastLoaded
from engine.bench.simulate.work import Decoding

LIMITS = {"max_running_requests": 4, "max_batch_rows": 256, "page_size": 32, "kv_cache_tokens": 1024}


class OneSecond:
    """Of every step, whose rows it writes down."""

    def __init__(self):
        self.rows = []

    def seconds(self, rows, scored, read, pairs):
        self.rows.append(rows)
        return 1.0


def simulated(arrivals, decoding, limits):
    timer = OneSecond()
    limits = Limits(
        max_running=limits["max_running_requests"],
        max_batch_rows=limits["max_batch_rows"],
        kv_tokens=limits["kv_cache_tokens"],
        page_size=limits["page_size"],
    )
    run = Fleet(partial(Replica, decoding, limits, timer), 1, LeastLoaded(0)).serve(arrivals)
    ended = {f"r{job.arrival.conversation}": (job.first_block, job.ended, job.steps) for job in run.jobs}
    return ended, timer.rows, run.most_running


def decoded(folder, arrivals, limits, diffusion):
    """The same of the engine: its clock goes on by 1 with each step, and to the next arrival where nobody is there."""
    engine = load(EngineConfig(model=str(folder), max_model_len=256, prefix_caching=False, **limits))
    left, ended, rows, most, clock, computed = list(arrivals), {}, [], 0, 0.0, 0
    first = {}
    while left or engine.request_ids:
        if not engine.request_ids:
            clock = max(clock, left[0].seconds)
        while left and left[0].seconds <= clock:
            arrival = left.pop(0)
            engine.submit(engine.new_request(submission(arrival, diffusion(arrival))))
        outputs = engine.step()
        clock += 1.0
        stats = engine.stats()
        rows.append(stats.rows_computed - computed)
        computed = stats.rows_computed
        most = max(most, stats.running + sum(output.finish_reason is not None for output in outputs))
        for output in outputs:
            first.setdefault(output.request_id, clock)
            if output.finish_reason:
                ended[output.request_id] = first[output.request_id], clock, output.usage.forwards
    return ended, rows, most


def submission(arrival, diffusion):
    return Submission(
        request_id=f"r{arrival.conversation}",
        prompt_ids=[(7 * arrival.conversation + place) % 200 for place in range(arrival.prompt)],
        sampling=SamplingParams(max_tokens=arrival.output, ignore_eos=True),
        diffusion=diffusion,
    )


def trace(*asked):
    return [Arrival(at, prompt, output, number) for number, (at, prompt, output) in enumerate(asked)]


CROWD = trace(
    (0.0, 40, 32), (0.5, 100, 16), (0.5, 128, 48), (1.5, 20, 64), (2.5, 90, 32), (2.5, 60, 32), (9.5, 110, 16),
    (9.5, 128, 32), (10.5, 124, 16), (11.5, 30, 32), (60.5, 128, 16), (60.6, 16, 16), (60.7, 77, 48),
)  # fmt: skip


@pytest.mark.parametrize(("cache", "max_batch_rows"), [("dual", 1024), ("dual", 384)])
def test_models_that_attend_in_both_directions(llada_tiny, cache, max_batch_rows):
    """A budget for all refreshes at once, and one that makes them wait."""
    limits = {**LIMITS, "max_batch_rows": max_batch_rows, "kv_cache_tokens": 2048}
    decoding = Decoding(cache=f"{cache}+32", block=16, tokens_per_forward=4)

    def diffusion(arrival):
        return DiffusionParams(
            cache=cache, lookahead=32, unmask="fixed", block_length=16, steps=-(-arrival.output // 16) * 4
        )

    assert simulated(CROWD, decoding, limits) == decoded(llada_tiny, CROWD, limits, diffusion)


@pytest.mark.slow
@pytest.mark.parametrize("max_batch_rows", [512, 64])
def test_block_causal_models(sdar_tiny, max_batch_rows):
    """A budget for prompts at once, and one in which they are computed in parts. Answers end with a block."""
    limits = {**LIMITS, "max_batch_rows": max_batch_rows}
    decoding = Decoding(cache="block", block=4, tokens_per_forward=2)

    def diffusion(arrival):
        return DiffusionParams(unmask="low_confidence_static", denoising_steps=2)

    arrivals = [replace(each, output=each.output + -(each.prompt + each.output) % 4) for each in CROWD]
    assert simulated(arrivals, decoding, limits) == decoded(sdar_tiny, arrivals, limits, diffusion)
