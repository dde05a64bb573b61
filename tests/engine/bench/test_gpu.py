"""What a GPU is asked, as far as a CPU can tell: that every check finds what it is for, and what the report keeps."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import CapacityError, ConfigError
from engine.bench.gpu import golden, kernels, machine, report, speed, waits
from engine.bench.gpu.crowd import Crowd
from engine.bench.gpu.prediction import BLOCKS, METHODS, Block, predict_block, sample, table
from engine.bench.gpu.report import Outcome, Report, Verdict
from engine.bench.gpu.watch import Event, Profile
from engine.bench.gpu.watch import waits as watched
from engine.bench.hardware import HARDWARE
from engine.bench.roofline.prediction import geometry_of
from engine.bench.timed_run import Workload
from engine.kernels.attention import Layout, Span, attend_rows, attend_spans
from engine.kernels.kv.formats import Quantised
from engine.models.synthetic import SHIFTS
from tests.engine.eager_graphs import by_tables, rerun

CPU, H100 = torch.device("cpu"), HARDWARE["h100"]
SMALL = Workload(prompt=64, gen=256, batch=3)
OK = Outcome(Verdict.OK, "all is well", {"count": 3})


def too_few(q, keys, values, layout):
    return attend_rows(q, keys, values, Layout((layout.horizons - 1).clip(1), layout.spans, layout.device))


def beyond_the_horizon(q, keys, values, layout):
    horizons = layout.horizons.copy()
    for span in layout.spans:
        horizons[span.start : span.stop] = horizons[span.start : span.stop].max()
    return attend_rows(q, keys, values, Layout(horizons, layout.spans, layout.device))


def pages_in_order(q, keys, values, layout):
    spans = [Span(start, stop, np.sort(slots)) for start, stop, slots in layout.spans]
    return attend_rows(q, keys, values, Layout(layout.horizons, spans, layout.device))


def other_heads(q, keys, values, layout):
    keys, values = (
        Quantised(*(part.flip(0) for part in each)) if isinstance(each, Quantised) else each.flip(0)
        for each in (keys, values)
    )
    return attend_rows(q, keys, values, layout)


def no_number(q, keys, values, layout):
    out = attend_rows(q, keys, values, layout)
    out[5, 0, 0] = torch.nan
    return out


DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.int8)]


@pytest.mark.parametrize(("dtype", "stored"), [*DTYPES, (torch.bfloat16, torch.float8_e4m3fn)])
def test_a_right_kernel(dtype, stored):
    assert kernels.check(attend_spans, geometry_of("tiny"), dtype, stored, CPU).verdict == Verdict.OK


@pytest.mark.parametrize(
    ("kernel", "dtype", "stored"),
    [
        (kernel, *DTYPES[number % 3])
        for number, kernel in enumerate((too_few, beyond_the_horizon, pages_in_order, other_heads, no_number))
    ],
)
def test_a_wrong_kernel(kernel, dtype, stored):
    outcome = kernels.check(kernel, geometry_of("tiny"), dtype, stored, CPU)
    assert outcome.verdict == Verdict.FAILED
    assert "differs from its definition by" in outcome.said


def three_of(folder):
    """Golden rows of few forwards."""
    return sorted(json.loads((folder / golden.ROWS).read_text()), key=lambda row: row["nfe"])[20:50:10]


def test_golden_rows_that_differ(llada_tiny, tmp_path):
    folder = shutil.copytree(llada_tiny, tmp_path / "some")
    rows = three_of(folder)
    (folder / golden.ROWS).write_text(json.dumps(rows))
    assert golden.check(folder, "cpu") == Outcome(
        Verdict.OK, "3 of 3 rows of some token for token", {"rows": 3, "differ": []}
    )
    rows[1]["output"][-1] ^= 1
    (folder / golden.ROWS).write_text(json.dumps(rows))
    outcome = golden.check(folder, "cpu")
    assert (outcome.verdict, outcome.figures["differ"]) == (Verdict.FAILED, [1])
    assert outcome.said.endswith("the first that differs is row 1")
    (folder / golden.ROWS).write_text("[]")
    assert golden.check(folder, "cpu").verdict == Verdict.FAILED


def test_golden_rows_by_graphs(llada_tiny, tmp_path, monkeypatch):
    """They are left out where there is no kernel to capture, and have failed where it cannot be captured."""
    folder = shutil.copytree(llada_tiny, tmp_path / "some")
    (folder / golden.ROWS).write_text(json.dumps(three_of(folder)))
    assert golden.check_graphs(folder, "cpu").verdict == Verdict.LEFT_OUT
    monkeypatch.setattr("engine.execution.build.choose_kernel", lambda *_: by_tables())
    assert golden.check_graphs(folder, "cpu").verdict == Verdict.FAILED
    monkeypatch.setattr("engine.execution.graphs._on_cuda", lambda: rerun)
    assert golden.check_graphs(folder, "cpu").said == "3 of 3 rows of some token for token"


def test_a_profile_counts_what_a_gpu_did():
    events = [
        Event("cudaLaunchKernel", False, 1.0),
        Event("cudaLaunchKernelExC", False, 1.0),
        Event("cuLaunchKernel", False, 1.0),
        Event("cudaMemcpyAsync", False, 1.0),
        Event("aten::add", False, 1.0),
        Event("Memcpy HtoD (Pinned -> Device)", True, 0.25),
        Event("Memcpy DtoH (Device -> Pageable)", True, 0.25),
        Event("Memcpy DtoD (Device -> Device)", True, 0.5),
        Event("gemm", True, 2.0),
    ]
    assert Profile.of(events) == Profile(launches=3, copies_to_device=1, copies_to_host=1, busy_seconds=3.0)


@pytest.mark.parametrize(
    ("places", "profiled", "verdict"),
    [
        (["scores.py:1"], Profile(500, 1, 1, 0.1), Verdict.OK),
        ([], Profile(500, 1, 1, 0.1), Verdict.FAILED),
        (["scores.py:1", "edits.py:5"], Profile(500, 1, 1, 0.1), Verdict.FAILED),
        (["scores.py:1"], Profile(500, 2, 1, 0.1), Verdict.FAILED),
        (["scores.py:1"], Profile(500, 1, 2, 0.1), Verdict.FAILED),
        (["scores.py:1"], Profile(0, 1, 1, 0.1), Verdict.FAILED),
        (["scores.py:1"], Profile(900, 1, 1, 0.1), Verdict.OK),
        (["scores.py:1"], Profile(901, 1, 1, 0.1), Verdict.FAILED),
    ],
)
def test_a_step_waits_and_copies_once(places, profiled, verdict):
    outcome = waits.judge(places, profiled, most=900)
    assert outcome.verdict == verdict
    assert all(place in outcome.said for place in places)


def test_launches_grow_with_the_requests_only_where_attention_does():
    llada, sdar = geometry_of("llada-8b"), geometry_of("sdar-8b")
    assert waits.most_launches(llada, by_request=0) == 32 * (28 + 4) + 60
    assert waits.most_launches(llada, by_request=16) == 32 * (28 + 4 + 64 - 1) + 60 + 64
    assert waits.most_launches(sdar, by_request=0) == 36 * (28 + 5 + 4) + 60, "norms of queries and keys"
    assert waits.most_launches(replace(llada, num_layers=0), by_request=0) == 60


def test_where_the_host_waits(monkeypatch):
    """torch warns at each place, in this mode; here it is told to."""
    modes = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with watched() as places:
        for _ in range(2):  # one place, twice
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [place.rpartition(":")[0] for place in places] == ["bench/test_gpu.py"] * 2
    assert modes == ["warn", "default"]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("AMD EPYC", None),
    ],
)
def test_whose_data_sheet(name, known):
    assert machine.data_sheet({"name": name}) == (HARDWARE[known] if known else None)


def test_the_sample():
    """896 tokens of prompt, the block at 992 open, 32 positions behind it visible."""
    for model, own in (("llada-8b", 0), ("dream-7b", 1)):
        rows = {method: [step.rows for step in sample(model, method, Workload())[-1]] for method in METHODS}
        assert rows == {"engine/dual+32": [1056, *[32 + own] * 7], "engine/window+32": [96 + own, *[32 + own] * 7]}
    steps = [step for block in sample("llada-8b", METHODS[0], Workload()) for step in block]
    assert len(steps) == BLOCKS * 8
    assert (steps[-1].visible, steps[-1].scored) == (1056, 4)


def test_a_block_is_predicted_by_the_roofline():
    workload = Workload(batch=16)
    predicted = predict_block("llada-8b", H100, METHODS[1], workload)
    assert predicted.step.flops == pytest.approx(16 * 32 * 2 * 7.0e9, rel=0.2), "rows times weights, beside the head"
    assert predicted.step.bytes > 15e9, "all weights are read"
    seconds = predicted.refresh.seconds + 7 * predicted.step.seconds
    assert predicted.block.tokens_per_second == pytest.approx(16 * 32 / seconds)


def test_up_to_512_rows_graphs_start_the_kernels():
    few, many = (predict_block("small", H100, METHODS[0], Workload(batch=batch)) for batch in (16, 17))
    assert few.block.step_seconds == few.step.bound_seconds
    assert many.block.step_seconds == pytest.approx(8 * 28 * 5e-6)
    assert many.step.bound_seconds < 8 * 28 * 5e-6


def test_the_table_marks_what_does_not_fit():
    lines = table(["llada-8b"], HARDWARE["rtx4090"], [1, 64]).splitlines()
    assert "not run on a GPU" in lines[0]
    assert [line.split(" | ")[2] for line in lines[4:]] == ["1", "64 *", "1", "64 *"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "shift"), [(METHODS[1], 1), (METHODS[0], 0)])
def test_a_crowd_goes_as_planned(monkeypatch, method, shift):
    """Each step of the sample has the rows that were predicted, of all requests in one forward."""
    monkeypatch.setitem(SHIFTS, "tiny", shift)
    crowd = Crowd("tiny", CPU, method, SMALL)
    assert crowd.engine.info.spec.shift == shift
    block, profiled = speed.measure(crowd, SMALL)
    assert (block.steps, block.tokens) == (7, 3 * 32)
    assert block.refresh_seconds > 0 < block.step_seconds
    assert profiled.launches == 0, "on a CPU"


def test_a_step_that_was_not_planned():
    crowd = Crowd("tiny", CPU, METHODS[0], SMALL)
    with pytest.raises(RuntimeError, match="a step took 384 rows in 1 forwards, not 32 of each request in one"):
        crowd.step(crowd.blocks[0][1])


@pytest.mark.parametrize("pages", [12, 21])
def test_a_crowd_that_does_not_fit(monkeypatch, pages):
    """At the start, or once blocks have opened."""
    monkeypatch.setattr("engine.execution.build.kv_pool_pages", lambda *_: pages)
    crowd = Crowd("tiny", CPU, METHODS[0], SMALL)
    with pytest.raises(CapacityError, match=r"[12] of 3 requests fit"):
        speed.measure(crowd, SMALL)


def test_the_speed_is_held_against_the_prediction():
    predicted = predict_block("llada-8b", H100, METHODS[0], Workload())
    refresh, step = predicted.block.refresh_seconds, predicted.block.step_seconds
    busy = Profile(900, 1, 1, step)

    def judged(refresh_share, step_share):
        return speed.judge(Block(refresh / refresh_share, step / step_share, 7, 32), busy, predicted)

    fast = judged(0.5, 0.8)
    assert fast.verdict == Verdict.OK
    assert "80% and 50% of the predicted speed (at least 50%)" in fast.said
    assert fast.figures["share_of_prediction"] == pytest.approx({"step": 0.8, "refresh": 0.5})
    assert fast.figures["share_of_roofline"]["step"] <= 0.8
    assert fast.figures["host_share"] == pytest.approx(0.2)
    assert fast.figures["tokens_per_second"] < fast.figures["predicted_tokens_per_second"]
    assert judged(0.49, 1.0).verdict == judged(1.0, 0.49).verdict == Verdict.SLOWER
    assert speed.judge(Block(1.0, 1.0, 7, 32), busy, None).verdict == Verdict.UNPREDICTED


def test_a_report_goes_on(tmp_path, capsys):
    def fails():
        raise ValueError("no such thing\nat line 5")

    def is_short():
        raise CapacityError("2 of 9 fit")

    path = tmp_path / "out.json"
    told = Report({"name": "this"}, 10, path)
    for name, work in (("a", lambda: OK), ("b", fails), ("c", is_short)):
        told.run("part", name, work)
        assert json.loads(path.read_text())["cases"][-1]["name"] == name, "after each case"
    kept = json.loads(path.read_text())
    assert [case["verdict"] for case in kept["cases"]] == ["ok", "FAILED", "left out"]
    assert kept["cases"][0]["figures"] == {"count": 3}
    assert (kept["machine"], kept["verdict"]) == ({"name": "this"}, "1 ok, 1 FAILED, 1 left out")
    assert capsys.readouterr().out.splitlines() == [
        "part: a: all is well: ok",
        "part: b: ValueError: no such thing: FAILED",
        "part: c: 2 of 9 fit: left out",
    ]
    assert told.has_failed


def test_a_report_ends_in_time(monkeypatch):
    clock = iter([0.0, 30.0, 31.0, 61.0, 61.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    told = Report({}, 1)
    told.run("part", "early", lambda: OK)
    told.run("part", "late", lambda: OK)
    assert [(case.verdict, case.seconds) for case in told.cases] == [(Verdict.OK, 1.0), (Verdict.LEFT_OUT, 0.0)]
    assert told.cases[1].said == "the 1 minutes are over"
    assert not told.has_failed


def test_nothing_more_is_asked_of_a_device_that_has_failed(monkeypatch):
    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(report, "is_device_lost", lambda: True)
    told = Report({}, 1)
    told.run("part", "a", fails)
    told.run("part", "b", lambda: OK)
    assert [case.verdict for case in told.cases] == [Verdict.FAILED, Verdict.LEFT_OUT]


def test_a_report_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Report({}, 1, tmp_path / "nowhere" / "out.json").write()
