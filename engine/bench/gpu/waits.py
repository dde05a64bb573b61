"""A block step sends one upload, reads its scores once, waits for nothing else, and launches no more than predicted."""

from collections.abc import Sequence

import torch

from engine.bench.gpu.crowd import Crowd
from engine.bench.gpu.prediction import METHODS
from engine.bench.gpu.report import Outcome, Verdict
from engine.bench.gpu.watch import Profile, profile_of, waits
from engine.bench.roofline import LAUNCHES_PER_LAYER, LAUNCHES_PER_REQUEST
from engine.bench.timed_run import Workload

LAUNCHES_BESIDE_LAYERS = 60
"""Kernels of a step for embedding, head, scoring and copies, at most."""


def check(model: str, device: torch.device, requests: int) -> Outcome:
    """Two block steps of a crowd after its second refresh: the first is watched, the second profiled."""
    crowd = Crowd(model, device, METHODS[0], Workload(batch=requests))
    first, (refresh, watched, counted, *_) = crowd.blocks[:2]
    for step in (*first, refresh):
        crowd.step(step)
    with waits() as places:
        crowd.step_unwatched(watched)
    profiled = profile_of(device, lambda: crowd.step(counted))
    if device.type != "cuda":
        return Outcome(Verdict.LEFT_OUT, "a CPU waits for no device", {})
    return judge(places, profiled, requests, crowd.engine.runner.model.config.num_layers)


def judge(places: Sequence[str], profiled: Profile, requests: int, layers: int) -> Outcome:
    """`places` are where the host waited."""
    most = layers * (LAUNCHES_PER_LAYER + LAUNCHES_PER_REQUEST * requests) + LAUNCHES_BESIDE_LAYERS
    said = (
        f"{len(places)} waits ({', '.join(places) or 'nowhere'}), {profiled.launches} launches (at most {most}), "
        f"{profiled.copies_to_device} copies to the device and {profiled.copies_to_host} back"
    )
    is_once = len(places) == profiled.copies_to_device == profiled.copies_to_host == 1
    # Without any launches the profiler has seen nothing.
    fits = is_once and 0 < profiled.launches <= most
    figures = {
        "waits": list(places),
        "launches": profiled.launches,
        "launches_at_most": most,
        "copies_to_device": profiled.copies_to_device,
        "copies_to_host": profiled.copies_to_host,
    }
    return Outcome(Verdict.OK if fits else Verdict.FAILED, said, figures)
