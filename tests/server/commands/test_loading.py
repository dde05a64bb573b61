"""What is told of a start: a bar on a terminal, lines of the log elsewhere."""

import logging
import re

import pytest

from server.commands import loading


class Terminal:
    """Standard error as a terminal that keeps what is written."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_a_line_of_the_log_every_ten_seconds_and_where_compiling_begins(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = iter([0.0, 4.0, 11.0, 15.0, 16.0, 17.0])
    monkeypatch.setattr(loading.time, "monotonic", lambda: next(clock))
    with loading.progress_of("a-model") as told:
        for done in (1, 2, 3):
            told("loading", done * 2**30, 200 * 2**30)
        told("compiling", 0, 3)
        told("compiling", 1, 3)
    assert caplog.messages == [
        "loading a-model",
        "loading a-model: 2.0 GiB of 200.0 GiB",
        "compiling a-model: 0 of 3 forwards",
    ]


@pytest.mark.parametrize(
    ("stage", "shown"), [("loading", "1.0 GiB of 2.0 GiB"), ("compiling", f"{2**30} of {2**31} forwards")]
)
def test_a_bar_on_a_terminal(monkeypatch, stage, shown):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with loading.progress_of("a-model") as told:
        told(stage, 2**30, 2**31)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.text)
    assert f"{stage} a-model" in plain
    assert shown in plain
