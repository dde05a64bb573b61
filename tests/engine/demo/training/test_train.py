"""The command that trains: what it refuses before a step."""

import sys

import pytest

from engine.demo.train import main


def test_what_it_begins_with_must_be_a_checkpoint(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "nothing"
    monkeypatch.setattr(
        sys,
        "argv",
        ["train", "demo", "--weights", str(folder), "--export", str(tmp_path), "--state", str(tmp_path / "s")],
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"--weights: {folder}" in capsys.readouterr().err
