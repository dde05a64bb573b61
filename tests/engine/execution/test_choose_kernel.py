"""Which attention kernel an engine takes: Triton's only on CUDA, and only if a trial there says that it works."""

from dataclasses import replace

import pytest
import torch

from engine import ConfigError, EngineConfig
from engine.execution import choices
from engine.execution.choices import choose_kernel
from engine.kernels.attention import Heads, attend_spans
from engine.kernels.triton_available import has_triton
from engine.models import describe
from tests.engine.toys import TOY

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(not has_triton(), reason="torch's builds for CPUs bring no Triton")


@pytest.fixture
def agrees(monkeypatch):
    """`agrees(said)`: what the trial says, or raises; returns what it was asked."""

    def tell(said):
        asked = []

        def told(*arguments):
            asked.append(arguments)
            if isinstance(said, Exception):
                raise said
            return said

        monkeypatch.setattr(choices, "agrees", told)
        return asked

    return tell


def choose(attention, device, geometry=TOY):
    return choose_kernel(EngineConfig(model="m", attention=attention, page_size=48), geometry, torch.bfloat16, device)


def test_triton_is_tried_with_the_models_heads_and_pages_and_taken(agrees):
    from engine.kernels.triton_attention import attend_pages

    asked = agrees(True)
    assert choose("auto", CUDA) is choose("triton", CUDA) is attend_pages
    assert asked == [(attend_pages, Heads(4, 1, 32), 48, torch.bfloat16, torch.bfloat16, CUDA)] * 2


def test_the_heads_are_those_that_layers_have(agrees, diffusion_gemma_tiny):
    """Where all layers see all, none has the heads of those with a window."""
    geometry, asked = describe(diffusion_gemma_tiny).geometry, agrees(True)
    every = replace(geometry.sandwich, full_layers=frozenset(range(geometry.num_layers)))
    choose("triton", CUDA, replace(geometry, sandwich=every))
    assert [heads for _, heads, *_ in asked] == [Heads(1, 4, 32)]


@pytest.mark.parametrize(
    ("said", "cause"), [(False, "computes something else than torch"), (OSError("no compiler"), "OSError: no compiler")]
)
def test_where_it_does_not_work_torch_does_it_or_the_start_ends(agrees, caplog, said, cause):
    agrees(said)
    assert choose("auto", CUDA) is attend_spans
    assert cause in caplog.text
    with pytest.raises(ConfigError, match=rf"attention is 'triton', which does not work here \(.*{cause}\)"):
        choose("triton", CUDA)


def test_nothing_is_tried_where_it_is_not_wanted(agrees):
    asked = agrees(True)
    assert choose("sdpa", CUDA) is choose("sdpa", CPU) is choose("auto", CPU) is attend_spans
    with pytest.raises(ConfigError, match="which needs a CUDA device; this is cpu"):
        choose("triton", CPU)
    assert not asked
