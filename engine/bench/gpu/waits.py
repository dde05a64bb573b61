"""A block step sends one upload, reads its scores once, waits for nothing else, and launches no more than predicted."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from engine.bench.gpu.crowd import Crowd
from engine.bench.gpu.prediction import METHODS
from engine.bench.gpu.report import Outcome, Verdict
from engine.bench.gpu.watch import Profile, profile_of, waits
from engine.bench.roofline.operators import launches
from engine.bench.timed_run import Workload
from engine.kernels.attention import attend_spans
from engine.models.layers import TransformerConfig

BESIDE_LAYERS = 60
"""Launches of a step for embedding, head, scoring and copies, and of its graph, at most."""
SPLIT = 4
"""Kernels of a layer beside those that the roofline counts: a second one for each product, which cuBLAS may split."""
BY_REQUEST = 4
"""Kernels for each request, in each layer and once beside them, where attention goes request by request: its keys and
its values are gathered, attended to, and the result is copied. In the place of the one for all requests."""


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
    runner = crowd.engine.runner
    by_request = requests if runner.kernel is attend_spans else 0
    is_graph = runner.graphs is not None and counted.rows * requests <= runner.graphs.shapes[-1].rows
    layers = 0 if is_graph else runner.model.config.num_layers
    return judge(places, profiled, most_launches(replace(runner.model.config, num_layers=layers), by_request))


def most_launches(geometry: TransformerConfig, by_request: int) -> int:
    """`geometry` has the layers that no graph launches; `by_request` requests have kernels of their own."""
    own = BY_REQUEST * by_request
    return launches(geometry) + geometry.num_layers * (SPLIT + max(own - 1, 0)) + BESIDE_LAYERS + own


def judge(places: Sequence[str], profiled: Profile, most: int) -> Outcome:
    """`places` are where the host waited, `most` the launches that a step may have."""
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
