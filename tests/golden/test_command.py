"""`python -m tests.golden`: it counts what is reproduced, and does not pass over what is not."""

import json
import shutil
import sys

import pytest

from engine import ConfigError
from tests.golden.__main__ import main
from tests.golden.checkpoint import Checkpoint


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command over folders: (exit code, what it printed)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tests.golden", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().out

    return run


@pytest.fixture
def shortened(tmp_path):
    """A copy of a folder with only two rows of each of its files, the shortest."""

    def copy(folder):
        copied = shutil.copytree(folder, tmp_path / folder.name)
        for path in copied.glob("generations*.json"):
            rows = sorted(json.loads(path.read_text()), key=lambda row: len(row["prompt"]) + len(row["output"]))
            path.write_text(json.dumps(rows[:2]))
        return copied

    return copy


@pytest.mark.parametrize(
    "name",
    [
        "llada_tiny",
        "sdar_tiny",
        "fast_dllm_tiny",
        "sdar_moe_tiny",
        "nemotron_tiny",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "dream_tiny",
                "llada_moe_tiny",
                "llada2_tiny",
                "llada22_tiny",
                "nemotron_spec_tiny",
                "diffusion_gemma_tiny",
            )
        ),
    ],
)
def test_what_is_reproduced(command, shortened, request, name):
    code, printed = command(shortened(request.getfixturevalue(name)))
    assert code == 0
    for way in ("plain loop", "engine, one by one", "engine, one batch"):
        assert f"generations.json, {way}: 2 of 2 rows" in printed


def test_settings_are_the_engines(command, shortened, sdar_tiny):
    with pytest.raises(ConfigError, match="dtype is 'int3'"):
        command(shortened(sdar_tiny), "--settings", '{"dtype": "int3"}')


def test_the_pad_is_the_checkpoints(fast_dllm_tiny, tmp_path):
    folder = shutil.copytree(fast_dllm_tiny, tmp_path / "copy")
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "pad_token": "t180"}))
    assert Checkpoint.load(folder).pad_id == 180
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "pad_token"}))
    (folder / "generation_config.json").write_text('{"pad_token_id": 7}')
    assert Checkpoint.load(folder).pad_id == 7


def test_a_token_that_differs(command, shortened, sdar_tiny):
    folder = shortened(sdar_tiny)
    rows = json.loads((folder / "generations.json").read_text())
    rows[1]["output"][-1] += 1
    (folder / "generations.json").write_text(json.dumps(rows))
    code, printed = command(folder)
    assert code == 1
    for way in ("plain loop", "engine, one by one", "engine, one batch"):
        assert f"{way}: 1 of 2 rows" in printed
    assert printed.count(f"row {rows[1]['id']}: output") == 3


def test_a_folder_of_no_known_family(command, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    code, printed = command(tmp_path)
    assert code == 1
    assert "unknown architecture GPT2LMHeadModel" in printed


def test_a_folder_without_rows(command, shortened, sdar_tiny):
    folder = shortened(sdar_tiny)
    (folder / "generations.json").unlink()
    assert command(folder)[0] == 1
