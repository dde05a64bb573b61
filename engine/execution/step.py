"""One step's device work: rows and scoring of some plans, uploaded together, then one forward and its scores.

Knows plans and what policies need of their scores, but not what becomes of these.
"""

from collections.abc import Callable, Sequence

import torch

from engine.core.plan import Needs, Scores, StepPlan
from engine.execution.batch import Batch, lay_out
from engine.execution.runner import Runner
from engine.kernels.transfer import Upload
from engine.scoring.scores import Scoring


class PreparedStep:
    """A forward whose arrays are on their way to the device."""

    def __init__(self, batch: Callable[[], Batch], scoring: Scoring) -> None:
        self._batch, self._scoring = batch, scoring

    def run(self, runner: Runner) -> list[Scores]:
        """The scores of each plan, on the host: waits for the device once."""
        logits, importance = runner.forward(self._batch())
        return self._scoring(logits, importance)


def prepare(
    plans: Sequence[StepPlan], needs: Sequence[Needs], *, mask_id: int, page_size: int, device: torch.device
) -> PreparedStep:
    """Host work only, but for the copy to the device, which it does not wait for. `needs` are of each plan's policy."""
    upload = Upload(device)
    batch = lay_out(plans, page_size).add_to(upload)
    scoring = Scoring(plans, mask_id, needs, upload)
    upload.send()
    return PreparedStep(batch, scoring)
