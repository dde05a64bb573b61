"""Scoring and batches of plans by themselves, as `engine.execution.step` puts them together."""

from dataclasses import dataclass

from torch import Tensor

from engine.core.steps.scores import Needs
from engine.execution.batch import lay_out
from engine.kernels.proposals import best_token
from engine.kernels.transfer import Upload
from engine.scoring.scores import Scoring


@dataclass
class StoredLogits:
    """`Logits` that are there already."""

    rows: Tensor
    proposed_at_once: int = 256

    def __getitem__(self, some):
        return self.rows[some]

    def propose(self, some, mask_id):
        return best_token(self.rows[some], mask_id)

    def part(self, indices):
        return StoredLogits(self.rows[indices])


def score(logits, plans, mask_id, needs=(), importance=(), retention=()):
    """logits [targets of all plans, vocab] -> one `Scores` for each plan; without `needs`, what none asks for."""
    logits = StoredLogits(logits) if isinstance(logits, Tensor) else logits
    rows = logits.rows if isinstance(logits, StoredLogits) else logits.hidden
    upload = Upload(rows.device)
    scoring = Scoring(plans, mask_id, needs or [Needs()] * len(plans), upload)
    upload.send()
    return scoring.read(scoring.launch(logits, importance, retention))


def build(plans, device, page_size):
    """The batch of these plans on the device."""
    upload = Upload(device)
    batch = lay_out(plans, page_size, dump=0).add_to(upload)
    upload.send()
    return batch()
