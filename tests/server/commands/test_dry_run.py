"""`unmask serve --dry-run`: figures without weights, and its own mistakes."""

import json
import re

import pytest

from server.cli import main


@pytest.fixture
def dream_7b(published, tmp_path):
    """A folder with the published config.json of Dream-v0-Instruct-7B and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(published("dream-7b")))
    return str(tmp_path)


def test_a_plan_needs_no_weights(dream_7b, capsys):
    assert main(["serve", "--dry-run", dream_7b, "--max-model-len", "2048", "--memory", "24"]) == 0
    printed = capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert "7.62 B parameters, canvases of 2,048 tokens, steps of 4,160 rows" in printed
    assert "bfloat16 │ 14.2 GiB │ 2.2 GiB │ 56 KiB" in printed


def test_codes_take_half_and_are_named(dream_7b, capsys):
    asked = ["serve", "--dry-run", dream_7b, "--max-model-len", "2048", "--memory", "24", "--kv-dtype", "int8"]
    assert main(asked) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "steps of 4,160 rows, keys and values in int8" in printed
    assert len(re.findall(r"float\d+ │ [\d.]+ GiB │ [\d.]+ GiB │ 28.9 KiB", printed)) == 3


def test_weights_in_codes_are_planned_and_named(dream_7b, capsys):
    asked = ["serve", "--dry-run", dream_7b, "--max-model-len", "2048", "--memory", "24", "--quantization"]
    assert main([*asked, "int8"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "steps of 4,160 rows, weights of layers in int8" in printed
    assert "bfloat16 │ 8.1 GiB │" in printed
    assert main([*asked, "int4"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "bfloat16 │ 5.6 GiB │" in printed
    assert "float32" not in printed, "there is no such product"


def test_experts_that_a_token_does_not_go_through_are_told(published, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(published("sdar-30b-a3b")))
    assert main(["serve", "--dry-run", str(tmp_path), "--max-model-len", "4096", "--memory", "80"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(sdar_moe): 30.53 B parameters, 3.35 B of them for each token, canvases of 4,096 tokens" in printed
    assert "bfloat16 │ 56.9 GiB" in printed


def test_a_small_model_has_figures_too(llada_tiny, capsys):
    assert main(["serve", "--dry-run", str(llada_tiny), "--memory", "24"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "llada-tiny (llada): 184 K parameters" in printed
    assert "float32 │ 720 KiB │" in printed
    assert "MiB │ 1.5 KiB" in printed


def test_what_a_lookahead_saves(dream_7b, capsys):
    asked = ["serve", "--dry-run", dream_7b, "--max-model-len", "2048", "--memory", "24"]
    assert main(asked) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "blocks of 32 look 32 positions ahead" in printed
    canvases, bounded = re.search(r"bfloat16 .* ([\d,]+) \(([\d,]+)\)", printed).groups()
    assert int(bounded) > 1.7 * int(canvases)
    assert main([*asked, "--diffusion.lookahead", "null"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "see all of their canvas" in printed
    assert f"{canvases} ({canvases})" in printed


def test_without_a_memory_common_ones_are_shown(dream_7b, capsys):
    assert main(["serve", dream_7b, "--dry-run"]) == 0
    words = capsys.readouterr().out.replace("│", " ").replace("┃", " ").split()
    assert words.count("GiB") >= 4 + 3, "four memories, and weights in three dtypes"
    assert {"24", "48", "80", "141"} <= set(words)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--memory", "24"], "--memory goes with --dry-run"),
        (["--dry-run", "--memory", "lots"], "--memory lots: give GiB"),
        (["--dry-run", "--memory", "0"], "--memory 0: give GiB"),
        (["--dry-run", "/nowhere"], "no such folder"),
        (["--dry-run", "--prot", "1"], "did you mean --port?"),
    ],
)
def test_mistakes_are_one_line(argv, complaint, capsys):
    assert main(["serve", *argv]) == 2
    assert complaint in capsys.readouterr().err


def test_no_figure_is_cut(dream_7b, capsys):
    """Piped into a file, and on a narrow terminal."""
    assert main(["serve", "--dry-run", dream_7b, "--max-model-len", "128"]) == 0
    assert "…" not in capsys.readouterr().out
