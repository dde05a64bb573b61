"""The flat batch: where rows of a page table go, and what they see."""

import pytest

from engine import DiffusionParams, EngineConfig, ModelSpec, SamplingParams, Submission, load
from engine.cache.policies import CACHES
from engine.core.requests.request import Request
from engine.execution import step
from engine.execution.batch import _table, lay_out, tiles_of
from engine.kernels.attention import Span
from engine.scheduling.pages import PagePool
from tests.engine.scored import build

SPEC = ModelSpec(family="toy", vocab_size=50, mask_id=49, eos_ids=frozenset(), max_model_len=96)


def placed(pages):
    """A canvas of 4 pages of 4 tokens that holds these."""
    request = Request.new(
        Submission(
            request_id="r",
            prompt_ids=[1] * 8,
            sampling=SamplingParams(max_tokens=8),
            diffusion=DiffusionParams(block_length=8),
        ),
        SPEC,
    )
    request.pages = pages
    request.slots = PagePool(8, 4).slots(pages, request.canvas_end)
    return request


@pytest.mark.parametrize("pages", [(1, 2, 3, 4), (1, 3, 2, 4), (2, 1, 4, 3), (4, 3, 2, 1), (0, 2, 4, 6)])
def test_rows_see_the_slots_of_their_own_table_in_any_order_of_pages(engine, pages):
    request = placed(pages)
    batch = build([CACHES["none"].plan(request)], engine.runner.device, 4)
    [segment] = batch.layout.segments
    every_slot = range(64)
    for slots in (batch.slots, segment.visible):
        seen = list(every_slot[slots]) if isinstance(slots, slice) else slots.tolist()
        assert seen == request.slots.tolist()
        assert isinstance(slots, slice) == (pages == (1, 2, 3, 4)), "neighbours, and only they, are read in place"


def test_pages_out_of_order_whose_ends_are_in_order_change_no_token(llada_tiny, submission, run, monkeypatch):
    engine = load(EngineConfig(model=str(llada_tiny), page_size=8))
    asked = submission(prompt=[5, 6, 7], gen_length=40, block_length=8, cache="dual", unmask="fixed")
    expected = run(engine, asked)
    allocate = PagePool.allocate

    def shuffled(pool, count, table):
        first, *middle, last = allocate(pool, count, table)
        return (first, *reversed(middle), last)

    monkeypatch.setattr(PagePool, "allocate", shuffled)
    assert run(engine, asked) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows_of", "some"),
    [(lambda rows: rows + 1, slice(0, None, 12)), (lambda rows: -(-rows // 64) * 64, slice(3, None, 12))],
)
def test_rows_of_padding_change_no_token(llada_tiny, golden, submission, run, monkeypatch, rows_of, some):
    """They stand in no sequence and write where nobody reads, as a batch of a fixed size needs them."""
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu"))
    lay_out = step.lay_out

    def padded(plans, page_size, dump):
        flat = lay_out(plans, page_size, dump)
        return flat.padded(rows_of(len(flat.ids)), dump)

    monkeypatch.setattr(step, "lay_out", padded)
    rows = golden[some]
    ends = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    assert [ends[str(number)][0] for number in range(len(rows))] == [row["output"] for row in rows]


def test_tables_and_tiles_say_on_the_device_what_spans_say_on_the_host(engine):
    """For kernels that walk page tables: each row is in one tile of its own sequence, each page in its place."""
    requests = [placed(pages) for pages in ((1, 3, 2, 4), (7, 5, 6, 0))]
    flat = lay_out([CACHES["none"].plan(request) for request in requests], 4, 32)
    tiles, table = tiles_of(flat.spans, 6), _table(flat.spans, 4)
    assert tiles.tolist() == [[0, 6, 0], [6, 6, 0], [12, 4, 0], [16, 6, 1], [22, 6, 1], [28, 4, 1]]
    assert table.tolist() == [list(request.pages) for request in requests]
    uneven = [Span(3, 3 + 13, None), Span(20, 20, None), Span(21, 27, None)]
    assert tiles_of(uneven, 6).tolist() == [[3, 6, 0], [9, 6, 0], [15, 1, 0], [21, 6, 2]]
    assert tiles_of([], 6).shape == (0, 3)
