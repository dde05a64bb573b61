"""The command that trains: what it refuses before anything is written."""

import sys

import pytest

from engine.demo.train import main


def test_to_keep_weights_some_must_be_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "demo", "--keep"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--keep needs --weights" in capsys.readouterr().err
