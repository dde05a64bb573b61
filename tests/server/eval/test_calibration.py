"""Brier score and expected calibration error, by hand and as the command tells them."""

import asyncio
import json

import pytest

from engine import ConfigError
from server.cli import main
from server.eval import calibration, questions


@pytest.mark.parametrize(
    ("probabilities", "truths", "brier", "error"),
    [
        ([1.0, 0.0], [True, False], 0.0, 0.0),
        ([1.0, 0.0], [False, True], 1.0, 1.0),
        ([0.5] * 4, [True, False, True, False], 0.25, 0.0),
        ([0.75] * 4, [True, True, True, False], 0.1875, 0.0),
        ([0.9, 0.9, 0.1], [True, False, False], (0.01 + 0.81 + 0.01) / 3, (2 * 0.4 + 0.1) / 3),
    ],
)
def test_brier_score_and_calibration_error(probabilities, truths, brier, error):
    found = calibration.figures(probabilities, truths)
    assert found.brier == pytest.approx(brier)
    assert found.calibration_error == pytest.approx(error)
    assert sum(one.n for one in found.bins) == found.n == len(truths)


def test_yes_is_weighed_against_no_alone():
    assert calibration.yes({"Yes": 0.6, " yes": 0.1, "No": 0.1, "Maybe": 0.2}) == pytest.approx(0.875)
    assert calibration.yes({"Maybe": 1.0}) == 0.5


@pytest.mark.slow
def test_calibration_is_told_in_json_and_markdown(capsys):
    flags = ["--tasks", "yesno", "--limit", "4", "--calibration"]
    assert main(["eval", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["calibration"]
    assert found["n"] == 4
    assert 0 <= found["brier"] <= 1
    assert main(["eval", *flags, "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == f"| 4 | {found['brier']:.4f} | {found['calibration_error']:.4f} |"


async def test_the_first_error_ends_a_calibration():
    class Answerer:
        cancelled = 0

        async def judge(self, question):
            if question is first:
                raise ConfigError("no such server")
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1

    first, *others = questions.from_tasks(["yesno"], 1, 3, 0)
    answerer = Answerer()
    with pytest.raises(ConfigError, match="no such server"):
        await calibration.calibrate(answerer, [*others, first], concurrency=3)
    assert answerer.cancelled == 2
