"""A model of random weights decoding a sample (`prediction`), timed and held against what was predicted.

All requests go in step. The block that counts is the last of the sample, when libraries and allocator have settled. Its
last step is profiled and not timed.
"""

from dataclasses import asdict
from statistics import median

import torch

from engine.bench.gpu.crowd import Crowd
from engine.bench.gpu.prediction import Block, Predicted, predict_block
from engine.bench.gpu.report import Outcome, Verdict
from engine.bench.gpu.watch import Profile, profile_of
from engine.bench.hardware import Hardware
from engine.bench.timed_run import Workload

LEAST_SHARE = 0.5
"""Of the predicted speed: a block step or a refresh below it refutes the prediction."""


def check(model: str, device: torch.device, method: str, requests: int, hardware: Hardware | None) -> Outcome:
    """`model` is a name in `engine.models.synthetic.SIZES`."""
    workload = Workload(batch=requests)
    measured, profiled = measure(Crowd(model, device, method, workload), workload)
    return judge(measured, profiled, predict_block(model, hardware, method, workload) if hardware else None)


def measure(crowd: Crowd, workload: Workload) -> tuple[Block, Profile]:
    """Decodes the sample: its last block, and what its last step did to the device."""
    *others, (opening, *rest) = crowd.blocks
    for block in others:
        for step in block:
            crowd.step(step)
    refresh = crowd.step(opening)
    timed = [crowd.step(step) for step in rest[:-1]]
    profiled = profile_of(crowd.engine.runner.device, lambda: crowd.step(rest[-1]))
    return Block(refresh, median(timed), len(rest), workload.batch * workload.block), profiled


def judge(measured: Block, profiled: Profile, predicted: Predicted | None) -> Outcome:
    """Whether a block step and the refresh have at least `LEAST_SHARE` of the predicted speed."""
    step, refresh = measured.step_seconds, measured.refresh_seconds
    figures: dict[str, object] = {"measured": asdict(measured), "tokens_per_second": measured.tokens_per_second}
    said = f"{measured.tokens_per_second:,.0f} tokens/s, block step {_ms(step)}, refresh {_ms(refresh)}"
    if profiled.launches:  # on a CPU there are none
        idle = max(1 - profiled.busy_seconds / step, 0.0)
        figures |= {"profiled": asdict(profiled), "host_share": idle}
        said += f", the host {idle:.0%} of a step"
    if predicted is None:
        return Outcome(Verdict.UNPREDICTED, said, figures)
    shares = {"step": predicted.block.step_seconds / step, "refresh": predicted.block.refresh_seconds / refresh}
    roofline = {"step": predicted.step.bound_seconds / step, "refresh": predicted.refresh.bound_seconds / refresh}
    figures |= {
        "predicted": asdict(predicted.block),
        "predicted_tokens_per_second": predicted.block.tokens_per_second,
        "share_of_prediction": shares,
        "share_of_roofline": roofline,
    }
    said += (
        f"; {shares['step']:.0%} and {shares['refresh']:.0%} of the predicted speed (at least {LEAST_SHARE:.0%}), "
        f"{roofline['step']:.0%} and {roofline['refresh']:.0%} of the roofline"
    )
    return Outcome(Verdict.OK if min(shares.values()) >= LEAST_SHARE else Verdict.SLOWER, said, figures)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms"
