"""Requests over a model of random weights that are decoded in step, and each step checked for what was planned."""

import gc
from dataclasses import replace
from pathlib import Path

import torch

from engine.assemble import assemble
from engine.bench.gpu.prediction import sample
from engine.bench.method import Method
from engine.bench.roofline.steps import Step
from engine.bench.timed_run import Workload, now, random_prompts, submission_of
from engine.core.config import EngineConfig
from engine.core.errors import CapacityError
from engine.execution.choices import choose_dtype
from engine.models.synthetic import random_model


class Crowd:
    """An engine, and requests that it takes all at once, in one forward a step.

    Raises CapacityError, at the start or later, if they do not all fit beside the weights.
    """

    def __init__(self, name: str, device: torch.device, method: str, workload: Workload) -> None:
        self.blocks = sample(name, method, workload)
        """The steps to come."""
        self._requests = workload.batch
        gc.collect()  # the crowd before has taken most of the device's memory
        torch.cuda.empty_cache()
        plain = EngineConfig(model=name, device=str(device), max_running_requests=workload.batch)
        model, spec = random_model(name, workload.length, choose_dtype(plain, device), device)
        rows = max(step.rows for block in self.blocks for step in block)
        least = spec.max_model_len + workload.batch * (workload.block + spec.shift)
        config = replace(plain, max_batch_rows=max(rows * workload.batch, least))
        self.engine = assemble(config, model, spec, Path())
        steps = workload.gen // workload.tokens_per_step
        for number, prompt in enumerate(random_prompts(workload, spec.vocab_size)):
            submission = submission_of(str(number), prompt, Method.named(method), steps, workload)
            self.engine.submit(self.engine.new_request(submission))

    def step(self, planned: Step) -> float:
        """Seconds of the next step. Raises RuntimeError if it is not what was planned."""
        device = self.engine.runner.device
        begun = now(device)
        self.step_unwatched(planned)
        return now(device) - begun

    def step_unwatched(self, planned: Step) -> None:
        """The same without waiting for the device."""
        before = self.engine.stats()
        self.engine.step()
        after = self.engine.stats()
        if after.running != self._requests or after.stalled:
            fit = after.running - after.stalled
            raise CapacityError(f"{fit} of {self._requests} requests fit beside the weights")
        rows, forwards = after.rows_computed - before.rows_computed, after.forwards - before.forwards
        if (rows, forwards) != (planned.rows * self._requests, 1):
            raise RuntimeError(
                f"a {planned.kind} took {rows} rows in {forwards} forwards, not {planned.rows} of each request in one"
            )
