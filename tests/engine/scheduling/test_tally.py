"""What the counters say of runs whose cost is known."""

import time

import numpy as np
import pytest

from engine import Discard, FinishReason, RowKind
from engine.core.histogram import Histogram
from engine.scheduling.tally import Tally


@pytest.fixture
def decoding(engine, submission, run):
    """Runs rows of options to their end: (reading, request id -> (tokens, reason, usage), engine's statistics)."""

    def after(*rows):
        ends = run(engine, *(submission(index, **row) for index, row in enumerate(rows)))
        stats = engine.stats()
        return stats.decoding, ends, stats

    return after


def test_nothing_is_counted_before_the_first_step():
    reading = Tally().read()
    assert reading.denoising_steps == reading.blocks == reading.confidence.count == 0
    assert set(reading.rows) == set(RowKind)
    assert set(reading.tokens_discarded) == set(Discard)


def test_the_dual_cache_refreshes_once_a_block(decoding):
    reading, _, _ = decoding(
        {"prompt": [5] * 10, "gen_length": 64, "block_length": 32, "unmask": "fixed", "steps": 16, "ignore_eos": True}
    )
    steps, blocks, canvas = 16, 2, 74
    assert reading.denoising_steps == steps
    assert reading.full_refreshes == reading.blocks == blocks
    assert reading.rows == {RowKind.BLOCK: steps * 32, RowKind.REFRESH: blocks * (canvas - 32)}
    assert reading.cache_lookups == steps * canvas
    assert reading.cache_hits == (steps - blocks) * (canvas - 32)
    assert reading.open_block_positions == steps * 32
    assert reading.block_positions == 64
    assert (reading.steps_per_block.count, reading.steps_per_block.total) == (2, 16)
    assert (reading.tokens_per_forward.count, reading.tokens_per_forward.total) == (16, 64)
    assert reading.tokens_forced == 0


def test_shifted_logits_count_their_row_among_the_blocks(dream_tiny, submission, run):
    from engine import EngineConfig, load

    engine = load(EngineConfig(model=str(dream_tiny)))
    run(engine, submission(prompt=[5] * 10, gen_length=32, unmask="fixed", steps=8, ignore_eos=True))
    reading = engine.stats().decoding
    assert reading.rows == {RowKind.BLOCK: 8 * 33, RowKind.REFRESH: 9}


MIXED = [
    {"cache": "none", "unmask": "threshold", "gen_length": 20, "threshold": 0.0, "ignore_eos": True},
    {"cache": "prefix", "unmask": "factor", "gen_length": 64, "block_length": 16},
    {"cache": "dual", "unmask": "cad", "gen_length": 48},
    {"cache": "window", "unmask": "certainty_threshold", "gen_length": 64, "threshold": 0.5},
    {"cache": "d2", "unmask": "threshold", "gen_length": 64, "stop_ids": frozenset(range(20))},
    {"cache": "dual", "unmask": "dream", "gen_length": 30, "steps": 10},
]


def test_what_is_counted_twice_agrees(decoding):
    """Over every policy at once: the sums that two counters or a counter and the requests' own usage share."""
    reading, ends, stats = decoding(*MIXED)
    usages = [usage for _, _, usage in ends.values()]
    assert reading.denoising_steps == sum(usage.forwards for usage in usages)
    assert sum(reading.rows.values()) == stats.rows_computed == sum(usage.rows_computed for usage in usages)
    assert reading.cache_lookups - reading.cache_hits == stats.rows_computed
    stops = sum(reason is FinishReason.STOP for _, reason, _ in ends.values())
    assert stops, "one of them should end at a stop token"
    discarded = sum(reading.tokens_discarded.values())
    completed = sum(usage.completion_tokens for usage in usages)
    assert reading.tokens_decoded == completed + discarded + stops
    prompts = sum(usage.prompt_tokens for usage in usages)
    assert reading.step_tokens.total == reading.tokens_decoded + prompts
    assert reading.step_tokens.count == stats.forwards
    assert reading.tokens_discarded[Discard.AFTER_STOP] > 0
    assert reading.tokens_discarded[Discard.OVER_LENGTH] == 12, "of the first one, whose canvas is 32"
    assert reading.tokens_discarded[Discard.WITHDRAWN] == 0
    assert reading.confidence.count == reading.tokens_decoded == reading.tokens_per_forward.total
    assert reading.tokens_per_forward.count == reading.steps_per_block.total == reading.denoising_steps
    assert reading.steps_per_block.count == reading.blocks
    assert reading.batch_requests.total == reading.denoising_steps
    assert reading.batch_rows.total == stats.rows_computed
    assert reading.batch_requests.count == reading.forward_seconds.count == stats.forwards


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"cache": "d2", "unmask": "threshold", "threshold": 1.0}, 1),
        ({"cache": "d2", "unmask": "factor", "factor": 1e9}, 0),
        ({"unmask": "threshold", "threshold": 1.0}, 1),
        ({"unmask": "threshold", "threshold": 0.0}, 0),
        ({"unmask": "certainty_threshold", "threshold": 1.0}, 1),
        ({"unmask": "certainty_threshold", "threshold": 0.0}, 0),
        ({"unmask": "factor", "factor": 1e-9}, 1),
        ({"unmask": "factor", "factor": 1e9}, 0),
        ({"unmask": "fixed"}, 0),
    ],
)
def test_tokens_are_forced_where_none_reaches_the_bar(decoding, options, share):
    reading, _, _ = decoding({"ignore_eos": True, **options})
    assert reading.tokens_forced == share * reading.tokens_decoded


def test_an_aborted_requests_open_block_is_discarded(engine, submission):
    engine.submit(engine.new_request(submission("runs", unmask="fixed", gen_length=64)))
    for _ in range(32 + 5):
        engine.step()
    engine.submit(engine.new_request(submission("waits")))
    engine.abort("runs")
    engine.abort("waits")
    reading = engine.stats().decoding
    assert reading.tokens_discarded == {**dict.fromkeys(Discard, 0), Discard.WITHDRAWN: 5}
    assert reading.blocks == 1
    assert engine.tally._open == {}


def test_a_steps_time_is_split(engine, submission, run, monkeypatch):
    forward = engine.runner.forward

    def slow(batch):
        time.sleep(0.02)
        return forward(batch)

    monkeypatch.setattr(engine.runner, "forward", slow)
    begun = time.perf_counter()
    run(engine, submission(unmask="fixed", steps=4, ignore_eos=True))
    elapsed = time.perf_counter() - begun
    engine.step()  # with nobody here
    reading = engine.stats().decoding
    assert reading.forward_seconds.count == reading.device_seconds.count == reading.host_seconds.count == 4
    assert 4 * 0.02 <= reading.device_seconds.total <= reading.forward_seconds.total, "a CPU is the device"
    assert reading.forward_seconds.total >= 4 * 0.02
    assert 0 < reading.host_seconds.total < elapsed - reading.forward_seconds.total


def test_bins_are_closed_above_as_prometheus_has_them():
    histogram = Histogram((1.0, 2.0))
    histogram.add([0.5, 1.0, 1.5, 2.0, 3.0])
    histogram.add(np.array([7.0]))
    reading = histogram.read()
    assert (reading.counts, reading.total) == ((2, 2, 2), 15.0)
    assert reading.count == 6
