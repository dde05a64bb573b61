"""`unmask bench gpu` where there is none, and that docs/gpu.md shows what it predicts."""

import re
import shlex
from pathlib import Path

import pytest

from server.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"
GENERATED = re.compile(r"<!-- generated: unmask (.*?) -->\n\n(.*?)\n<!-- end -->", re.DOTALL)


@pytest.mark.parametrize(("command", "shown"), GENERATED.findall(PAGE.read_text()))
def test_the_page_shows_what_is_predicted(capsys, command, shown):
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == shown


def test_the_page_has_all_machines():
    [(command, shown)] = GENERATED.findall(PAGE.read_text())
    assert command == "bench gpu --predict"
    assert all(name in shown for name in ("H100", "H200", "A100", "RTX 4090", "llada-8b", "dream-7b", "sdar-8b"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "the device cuda is not here: torch"),
        (("--device", "cuda:7"), "the device cuda:7 is not here: torch"),
        (("--device", "tpu"), "it must be auto, cpu, cuda"),
        (("--requests", "0"), "above 0"),
        (("--models", "gpt"), "gpt"),
        (("--hardware", "v100"), "v100"),
        (("--device", "cpu", "--golden", "/nowhere"), "there is no generations.json"),
        (("--device", "cpu", "--json", "/nowhere/out.json"), "No such file"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, flags, message):
    assert main(["bench", "gpu", *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_the_command_runs_what_the_engine_asks(capsys, monkeypatch):
    """Each part has its cases, in an order in which a run that is cut short has proved most. None of them has time."""
    assert main(["bench", "gpu", "--device", "cpu", "--models", "tiny", "--requests", "1", "2", "--minutes", "0"]) == 0
    lines = [line.split(": ")[:2] for line in capsys.readouterr().out.splitlines() if line.endswith("left out")]
    assert lines[:-1] == [
        ["kernels", "sdpa, float32, heads of tiny"],
        ["kernels", "sdpa, bfloat16, heads of tiny"],
        ["kernels", "sdpa, bfloat16, KV in int8, heads of tiny"],
        ["kernels", "sdpa, bfloat16, KV in fp8, heads of tiny"],
        ["kernels", "scoring"],
        ["golden", "llada-tiny"],
        ["golden", "llada-tiny, CUDA graphs"],
        ["waits", "tiny, 1 request"],
        ["waits", "tiny, 2 requests"],
        ["speed", "tiny, dual+32, 1 request"],
        ["speed", "tiny, window+32, 1 request"],
        ["speed", "tiny, dual+32, 2 requests"],
        ["speed", "tiny, window+32, 2 requests"],
    ]
