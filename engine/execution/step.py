"""One step's device work: rows and scoring of some plans, uploaded together, then one forward and its scores.

Knows plans and what policies need of their scores, but not what becomes of these.
"""

from collections.abc import Callable, Sequence

import torch

from engine.core.steps.plan import StepPlan
from engine.core.steps.scores import Needs, Scores
from engine.execution.batch import Batch, lay_out
from engine.execution.clock import DeviceClock
from engine.execution.graphs import Graphs, Replay
from engine.execution.runner import Runner
from engine.kernels.transfer import Upload
from engine.scoring.constrained.tables import TableStore
from engine.scoring.scores import Launched, Scoring


class PreparedStep:
    """A forward whose arrays are on their way to the device."""

    def __init__(self, batch: Callable[[], Batch | Replay], scoring: Scoring, device: torch.device) -> None:
        self._batch, self._scoring = batch, scoring
        self._clock = DeviceClock(device)
        self._launched: Launched | None = None

    def launch(self, runner: Runner) -> None:
        """Queues the forward and its scoring. On CUDA it does not wait for them."""
        with self._clock:
            self._launched = self._scoring.launch(*runner.forward(self._batch()))

    def read(self) -> list[Scores]:
        """The scores of each plan, on the host: waits for the device, the only time in a step."""
        assert self._launched is not None, "`launch` comes first"
        return self._scoring.read(self._launched)

    @property
    def device_seconds(self) -> float:
        """Time on the device from the forward's first kernel to the scores. Valid after `read`."""
        return self._clock.seconds


def prepare(
    plans: Sequence[StepPlan],
    needs: Sequence[Needs],
    *,
    mask_id: int | None,
    page_size: int,
    dump: int,
    device: torch.device,
    graphs: Graphs | None = None,
    tables: TableStore | None = None,
) -> PreparedStep:
    """Host work only, but for the copy to the device, which it does not wait for. `needs` are of each plan's policy.

    `dump` is the slot of the pool that no row reads. `tables` are those of the steps before. A batch that one of the
    `graphs` takes goes through the smallest of them.
    """
    upload = Upload(device)
    flat = lay_out(plans, page_size, dump)
    graph = graphs.taking(flat) if graphs else None
    batch = graph.add(flat, upload) if graph else flat.add_to(upload)
    scoring = Scoring(plans, mask_id, needs, upload, tables)
    upload.send()
    return PreparedStep(batch, scoring, device)
