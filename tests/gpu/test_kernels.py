"""Every kernel against its definition; attention in the heads of the models that are served."""

import pytest
import torch

from engine.bench.gpu.command import MODELS
from engine.bench.gpu.kernels import FORMATS, check, check_scoring, kernels_on
from engine.bench.gpu.report import Verdict
from engine.bench.roofline.prediction import geometry_of
from engine.kernels.kv import cuda

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("name", "dtype", "stored"), FORMATS)
@pytest.mark.parametrize("model", [*MODELS, "small", "tiny"])
@pytest.mark.parametrize("kernel", kernels_on(torch.device("cuda")))
def test_a_kernel_is_what_it_should_be(device, kernel, model, name, dtype, stored):
    outcome = check(kernels_on(device)[kernel], geometry_of(model), dtype, stored, device)
    assert outcome.verdict == Verdict.OK, outcome.said


def test_codes_are_made_by_triton(device):
    """Where that gives other bits than torch, torch makes them."""
    assert cuda.triton()


def test_scoring_is_what_torch_gives(device):
    assert check_scoring(device).verdict == Verdict.OK
