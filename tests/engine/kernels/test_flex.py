"""The kernel for CUDA, compiled for this CPU, against the one that runs here."""

import random

import pytest
import torch

from engine import EngineConfig, FinishReason, load
from engine.core.errors import ConfigError
from engine.execution.batch import _neighbours
from engine.execution.runner import choose_kernel
from engine.kernels.attention import KVPool, Segment, attend_segments
from engine.kernels.flex import ROWS, FlexKernel, _lay_out, largest_tile
from engine.scheduling.pages import PagePool

CPU = torch.device("cpu")


def batch(seed, page_size, pages):
    """Some requests on neighbouring pages, others on scattered ones in no order, each with up to three horizons."""
    rng, pool = random.Random(seed), PagePool(pages, page_size)
    scattered = rng.sample(range(pages // 2, pages), pages // 2)
    segments, first, at = [], 0, 0
    for number in range(rng.randint(2, 5)):
        length = rng.randint(page_size + 1, pages // 10 * page_size)
        count = pool.pages_for(length)
        table = tuple(scattered[at : at + count]) if number % 2 else tuple(range(at, at + count))
        at += count
        for horizon in sorted(rng.sample(range(1, length + 1), rng.randint(1, 3))):
            rows = rng.choice([1, 5, ROWS, ROWS + 1, 3 * ROWS])
            segments.append(Segment(first, first + rows, _neighbours(pool.slots(table, length)[:horizon], CPU)))
            first += rows
    return segments, first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's compiler calls it itself
@pytest.mark.parametrize("kv_heads", [2, 4])
@torch.inference_mode()
def test_flex_equals_segments(kv_heads):
    page_size, pages = 16, 64
    kernel, kinds = FlexKernel(page_size, 1024), set()
    for seed in range(6):
        torch.manual_seed(seed)
        segments, rows = batch(seed, page_size, pages)
        kinds |= {type(segment.visible) for segment in segments}
        pool = KVPool(1, pages * page_size, kv_heads, 16, torch.float32, CPU)
        keys, values, q = pool.keys[0].normal_(), pool.values[0].normal_(), torch.randn(rows, 4, 16)
        expected = attend_segments(q, keys, values, segments)
        torch.testing.assert_close(kernel(q, keys, values, segments), expected, atol=2e-6, rtol=1e-5)
    assert kinds == {slice, torch.Tensor}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_every_third_golden_row_in_one_batch(llada_tiny, golden, submission, run):
    engine = load(EngineConfig(model=str(llada_tiny), device="cpu", attention="flex"))
    rows = golden[::3]
    results = run(engine, *(submission(number, **row) for number, row in enumerate(rows)))
    for number, row in enumerate(rows):
        assert results[str(number)][0] == row["output"], f"row {3 * number}"


class Unwritten(KVPool):
    """What memory holds by chance."""

    def __init__(self, *geometry):
        super().__init__(*geometry)
        self.values.fill_(torch.nan)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_stands_in_a_page_behind_the_horizon_is_not_seen(llada_tiny, engine, submission, run, monkeypatch):
    """Neither what memory held by chance, nor what a request has left there that failed."""
    monkeypatch.setattr("engine.assemble.KVPool", Unwritten)
    paged = load(EngineConfig(model=str(llada_tiny), device="cpu", attention="flex", kv_cache_tokens=1024))
    row = {"gen_length": 32, "unmask": "fixed", "steps": 8}
    asked = [submission(length, prompt=[6] * length, **row) for length in (3, 35)]
    expected = run(engine, *asked)
    assert run(paged, *asked) == expected
    paged.submit(paged.new_request(submission("bad", prompt=[5] * 90, **row)))
    paged.step()
    [bad] = paged.scheduler.running
    paged.runner.pool.values[:, :, bad.slots[:90]] = torch.nan
    [output] = paged.step()
    assert output.finish_reason is FinishReason.ERROR
    assert run(paged, *asked) == expected


def test_pages_must_be_made_of_tiles():
    config = EngineConfig(model="m", attention="flex", page_size=24)
    with pytest.raises(ConfigError, match="page_size of whole 16s; it is 24"):
        choose_kernel(config, torch.device("cuda"), 64)
    assert isinstance(choose_kernel(config, CPU, 64), FlexKernel)
    assert choose_kernel(EngineConfig(model="m"), torch.device("cuda"), 64) is attend_segments


def test_every_row_has_one_place_and_every_place_a_row():
    segments = [
        Segment(3, 8, slice(0, 20)),
        Segment(8, 8 + ROWS, torch.arange(64, 128)),
        Segment(40, 41, slice(32, 64)),
    ]
    layout = _lay_out(segments, 128, 16, 64, CPU)
    assert layout.rows.tolist() == list(range(3, 41))
    assert torch.equal(layout.padded[layout.places], layout.rows)
    assert layout.padded.view(3, ROWS).amin(1).tolist() == [3, 8, 40]
    assert layout.padded.view(3, ROWS).amax(1).tolist() == [7, 7 + ROWS, 40]


def test_pages_are_whole_or_one_is_cut():
    segments = [Segment(0, 5, slice(16, 36)), Segment(5, 6, torch.tensor([*range(48, 64), *range(16)]))]
    mask = _lay_out(segments, 128, 16, 64, CPU).mask
    assert mask.full_kv_num_blocks.tolist() == [[[1, 2]]]
    assert mask.kv_num_blocks.tolist() == [[[1, 0]]]
    assert mask.full_kv_indices[0, 0, 0, :1].tolist() == [1]
    assert mask.full_kv_indices[0, 0, 1, :2].tolist() == [3, 0]
    assert mask.kv_indices[0, 0, 0, 0] == 2
    seen = [bool(mask.mask_mod(0, 0, torch.tensor(0), torch.tensor(slot))) for slot in range(32, 48)]
    assert seen == [slot < 4 for slot in range(16)]


def test_tiles_divide_pages():
    assert [largest_tile(size) for size in (16, 32, 48, 256, 24)] == [16, 32, 16, 128, 8]


def test_nothing_to_attend():
    q = torch.randn(3, 4, 16)
    assert FlexKernel(16, 8)(q, torch.empty(2, 64, 16), torch.empty(2, 64, 16), ()).shape == q.shape
