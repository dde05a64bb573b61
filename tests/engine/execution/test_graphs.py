"""Graphs of small steps, without CUDA: a batch that is padded to a graph's shape gives the same tokens."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import EngineConfig, load
from engine.execution.batch import FlatBatch, OpenIndices
from engine.execution.graphs import MOST_ROWS, ROWS_APART, Captured, Graph, Graphs, Replay, Shape, record, shapes_of
from engine.execution.runner import Runner
from engine.kernels.attention import TILE_ROWS, Span, attend_rows
from engine.kernels.kv.pool import KVPool
from engine.kernels.transfer import Upload
from engine.kernels.triton_available import has_triton
from engine.models.layers import Transformer
from tests.engine.eager_graphs import by_tables, rerun
from tests.engine.toys import TOY

CPU = torch.device("cpu")
LONGEST, PAGES = 40, 200


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Transformer(replace(TOY, num_kv_heads=2)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.1)
    model.fill_tables()
    return model


class World:
    """Sequences on scattered pages of a pool in which all other slots hold NaN, and batches of some of their rows."""

    def __init__(self, model, seed, page_size, sequences):
        self._rng = np.random.default_rng(seed)
        self.page_size, self.num_sequences = page_size, sequences
        torch.manual_seed(seed)
        self._kv = torch.full((2, 2, PAGES * page_size + 1, TOY.head_dim), torch.nan)
        pages = self._rng.permutation(PAGES)
        self._slots = []
        for _ in range(sequences):
            length = int(self._rng.integers(1, LONGEST + 1))
            own, pages = np.split(pages, [-(-length // page_size)])
            slots = (own[:, None] * page_size + np.arange(page_size)).flatten()[:length]
            self._kv[:, :, slots] = torch.randn(2, 2, length, TOY.head_dim)
            self._slots.append(slots)
        self._model = model

    def runner(self, kernel):
        """A runner whose pool is as it was in the beginning."""
        pool = KVPool(TOY.num_layers, PAGES * self.page_size, 2, TOY.head_dim, torch.float32, CPU)
        pool.keys.copy_(self._kv[None, 0])
        pool.values.copy_(self._kv[None, 1])
        return Runner(self._model, pool, CPU, kernel)

    def shape(self, rows):
        dump = PAGES * self.page_size
        return Shape(rows=rows, sequences=8, max_model_len=LONGEST, page_size=self.page_size, dump=dump)

    def batch(self, some, most):
        """At most so many of the last rows of each of some sequences. Every row sees its own part, some are targets."""
        spans, positions, horizons, slots, start = [], [], [], [], 0
        for number in some:
            length = len(self._slots[number])
            count = int(self._rng.integers(1, min(most, length) + 1))
            spans.append(Span(start, start + count, self._slots[number]))
            positions.append(np.arange(length - count, length))
            horizons.append(self._rng.integers(1, length + 1, count))
            slots.append(self._slots[number][length - count :])
            start += count
        return FlatBatch(
            ids=self._rng.integers(0, TOY.vocab_size, start),
            positions=np.concatenate(positions),
            write_slots=np.concatenate(slots),
            horizons=np.concatenate(horizons),
            logit_rows=np.sort(self._rng.integers(0, start, int(self._rng.integers(1, start + 1)))),
            spans=tuple(spans),
            watched=(),
            page_size=self.page_size,
        )


@torch.inference_mode()
def computed(batch_of, flat):
    """Hidden rows of the targets of a batch that `batch_of(flat, upload)` makes."""
    upload = Upload(CPU)
    batch = batch_of(flat, upload)
    upload.send()
    return batch()


def eagerly(runner, flat):
    return runner.hidden(computed(FlatBatch.add_to, flat))


def replayed(graph, flat):
    return computed(graph.add, flat).run().clone()


SHAPES = {
    "seed": st.integers(0, 2**32 - 1),
    "page_size": st.sampled_from([1, 5, 16]),
    "sequences": st.integers(1, 6),
    "padding": st.sampled_from([0, 1, 13]),
}


@torch.inference_mode()
def check_padded(model, kernel, seed, page_size, sequences, padding):
    world = World(model, seed, page_size, sequences)
    flat = world.batch(range(sequences), most=5)
    expected = eagerly(world.runner(attend_rows), flat)
    graph = Graph(world.shape(len(flat.ids) + padding), world.runner(kernel).hidden, CPU, rerun)
    torch.testing.assert_close(replayed(graph, flat), expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(**SHAPES)
def test_a_padded_batch_gives_the_same_hidden_rows(model, **shape):
    check_padded(model, by_tables(attend_rows), **shape)


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="torch's builds for CPUs bring no Triton")
@pytest.mark.parametrize(("page_size", "sequences", "padding"), [(5, 3, 13), (16, 6, 1)])
def test_and_so_it_does_by_tritons_kernel(model, page_size, sequences, padding):
    from engine.kernels.triton_attention import attend_pages

    check_padded(model, attend_pages, 7, page_size, sequences, padding)


@torch.inference_mode()
def test_what_an_earlier_and_larger_step_has_left_reaches_nobody(model):
    """Neither in the graph's buffers, nor in the dump, which holds no numbers then."""
    world = World(model, 0, 5, 8)
    large, small = world.batch(range(2, 8), most=LONGEST), world.batch(range(2), most=3)
    assert len(large.ids) > 2 * len(small.ids)
    runner = world.runner(by_tables(attend_rows))
    graph = Graph(world.shape(len(large.ids) + 1), runner.hidden, CPU, rerun)
    assert replayed(graph, large).isfinite().all()
    assert runner.pool.keys[-1, :, runner.pool.dump].isnan().all()
    expected = eagerly(world.runner(attend_rows), small)
    torch.testing.assert_close(replayed(graph, small), expected, atol=1e-4, rtol=1e-4)


def test_all_batches_of_a_graph_have_its_shapes_and_its_dtypes(model):
    world = World(model, 0, 5, 8)
    shape = world.shape(96)
    seen = {
        tuple((array.shape, array.dtype) for array in shape.arrays(world.batch(some, most=12)))
        for some in ((0,), (3, 1), range(8))
    }
    [arrays] = seen
    assert [shape for shape, _ in arrays] == [(96,)] * 4 + [(8 + 1, 3), (96,), (8, 8)]


def of_spans(counts, targets=1, watched=()):
    """A batch whose sequences have so many rows each."""
    stops = np.cumsum(counts).tolist()
    zeros = np.zeros(stops[-1], np.int64)
    return FlatBatch(
        ids=zeros,
        positions=zeros,
        write_slots=zeros,
        horizons=zeros,
        logit_rows=np.zeros(targets, np.int64),
        spans=tuple(Span(start, stop, np.arange(5)) for start, stop in zip([0, *stops], stops, strict=False)),
        watched=watched,
        page_size=5,
    )


def test_there_is_room_for_the_tiles_of_sequences_that_all_need_one_more(model):
    flat = of_spans([TILE_ROWS + 1] * 8)
    tiles = World(model, 0, 5, 1).shape(len(flat.ids)).arrays(flat)[4]
    assert tiles[:, 1].tolist() == [TILE_ROWS, 1] * 8


def test_which_batches_take_a_graph(model):
    """The smallest that has room for rows, targets and sequences; none if attention weights are asked for."""
    world = World(model, 0, 5, 1)
    runner = world.runner(by_tables())
    graphs = Graphs([Graph(world.shape(rows), runner.hidden, CPU, rerun) for rows in (64, 32)])

    def taken(*batch, **asked):
        graph = graphs.taking(of_spans(*batch, **asked))
        return graph and graph.shape.rows

    assert [taken([rows]) for rows in (1, 32, 33, 64, 65)] == [32, 32, 64, 64, None]
    assert [taken([1], targets=targets) for targets in (32, 33, 65)] == [32, 64, None]
    assert [taken([1] * sequences) for sequences in (8, 9)] == [32, None]
    assert taken([1], watched=(Span(0, 1, np.arange(5)),)) is None


def test_the_shapes_of_an_engine():
    config = EngineConfig(model="m", max_running_requests=40, page_size=16)
    shapes = shapes_of(config, 100, 2048, 1600)
    assert [shape.rows for shape in shapes] == list(range(ROWS_APART, MOST_ROWS + 1, ROWS_APART))
    assert [shape.sequences for shape in shapes[:3]] == [32, 40, 40]
    assert {(shape.max_model_len, shape.page_size, shape.dump) for shape in shapes} == {(100, 16, 1600)}
    assert [shape.rows for shape in shapes_of(config, 10, 70, 1600)] == [32, 64], "as far as batches go"


@pytest.fixture
def graphed(llada_tiny, monkeypatch):
    """An engine with graphs, and how many of its steps took one."""
    config = EngineConfig(model=str(llada_tiny), device="cpu")
    engine = load(config)
    runner, info = engine.runner, engine.info
    runner.kernel = by_tables()
    shapes = shapes_of(config, info.max_model_len, info.max_batch_rows, runner.pool.dump)
    runner.graphs = record(shapes, runner.hidden, CPU, rerun)
    replays, run = [], Replay.run
    monkeypatch.setattr(Replay, "run", lambda replay: replays.append(replay) or run(replay))
    return engine, replays


@pytest.mark.slow
def test_golden_rows_in_one_batch_whose_small_steps_take_graphs(graphed, golden, submission, run):
    engine, replays = graphed
    rows = golden[::20]
    ends = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    assert [ends[str(number)][0] for number in range(len(rows))] == [row["output"] for row in rows]
    assert 0 < len(replays) < engine.stats().forwards


def test_golden_rows_alone(graphed, golden, submission, run):
    engine, replays = graphed
    for row in sorted(golden, key=lambda row: row["nfe"])[:20:7]:
        assert run(engine, submission(**row))["r"][0] == row["output"]
    assert len(replays) == engine.stats().forwards, "these are small altogether"


def test_sampling_and_edits_are_scored_from_a_graphs_rows(graphed, everybody, undisturbed, run):
    """The crowd has draws, entropies and a rollout, which alone keeps its steps from the graphs."""
    engine, replays = graphed
    ends = run(engine, *everybody)
    assert {name: end[0] for name, end in ends.items()} == {
        name: [token for output in outputs for token in output.token_ids] for name, outputs in undisturbed.items()
    }
    assert 0 < len(replays) < engine.stats().forwards


def stale(work):
    """A capture that forgets where it reads: every replay gives the rows of the first."""
    hidden = work().nan_to_num()
    return Captured(lambda: None, hidden)


def refused(_work):
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("capture", "cause"),
    [(stale, "those of [64, 32] rows compute something else"), (refused, "RuntimeError: operation not permitted")],
)
def test_graphs_that_cannot_be_captured_or_replay_something_else_are_left_out(model, capture, cause, caplog):
    world = World(model, 0, 5, 1)
    shapes = [world.shape(rows) for rows in (64, 32)]
    assert record(shapes, world.runner(by_tables()).hidden, CPU, capture) is None
    [line] = caplog.messages
    assert cause in line
    assert line.endswith("all kernels are launched one by one")


def test_the_largest_graph_is_captured_first(model, caplog):
    caplog.set_level(logging.INFO)
    world, rows = World(model, 0, 5, 1), []

    def capture(work):
        captured = rerun(work)
        rows.append(len(captured.hidden))
        return captured

    graphs = record([world.shape(rows) for rows in (32, 96, 64)], world.runner(by_tables()).hidden, CPU, capture)
    assert rows == [96, 64, 32]
    assert [shape.rows for shape in graphs.shapes] == [32, 64, 96]
    assert caplog.messages[0].startswith("captured 3 CUDA graphs in ")


@pytest.mark.parametrize("wanted", [True, False])
def test_an_engine_has_graphs_if_its_kernel_reads_page_tables_and_they_are_wanted(llada_tiny, monkeypatch, wanted):
    config = EngineConfig(model=str(llada_tiny), device="cpu", cuda_graphs=wanted)
    assert load(config).runner.graphs is None, "a CPU's kernel reads the spans"
    monkeypatch.setattr("engine.execution.build.choose_kernel", lambda *_: by_tables())
    monkeypatch.setattr("engine.execution.graphs._on_cuda", lambda: rerun)
    assert (load(config).runner.graphs is not None) == wanted


def test_no_graph_takes_rows_that_read_what_it_has_no_buffer_for(model):
    world = World(model, 0, 16, 2)
    flat, shape = world.batch([0, 1], 10), world.shape(32)
    every = np.arange(len(flat.ids))
    assert shape.takes(flat)
    assert not shape.takes(replace(flat, firsts=0 * every))
    assert not shape.takes(replace(flat, open_rows=OpenIndices(every >= 0, every, flat.logit_rows)))
    assert not shape.takes(replace(flat, adapted=every >= 0))
    assert not shape.takes(replace(flat, watched=flat.spans))
