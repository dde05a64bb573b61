"""A runner that fails when it is told to, and what comes out of an engine that has it."""

import torch

from engine.execution.runner import Runner


class FaultyRunner(Runner):
    """Asks `fault` before each forward, which may raise or return a bool [rows] of those whose logits are NaN."""

    def __init__(self, runner, fault):
        super().__init__(runner.model, runner.pool, runner.device, runner.kernel)
        self.fault = fault
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        spoilt = self.fault(batch)
        answer = super().forward(batch)
        if spoilt is not None:
            answer.logits.hidden[spoilt[batch.logit_rows]] = torch.nan
        return answer


def outputs(engine, *asked):
    """Request id -> its outputs, with everything that was counted."""
    for one in asked:
        engine.submit(engine.new_request(one))
    by_id = {one.request_id: [] for one in asked}
    while engine.request_ids:
        for output in engine.step():
            by_id[output.request_id].append(output)
    return by_id


def find(engine, request_id):
    return next((request for request in engine.scheduler.running if request.id == request_id), None)


def rows_of(engine, batch, request_id):
    """bool [rows] of the batch that are this request's, by the slots that it holds."""
    request = find(engine, request_id)
    held = torch.from_numpy(request.slots) if request else torch.empty(0)
    return torch.isin(torch.arange(engine.info.kv_tokens)[batch.slots], held)
