"""What tests of a GPU share. They need the engine's packages and pytest, and no conftest but this one."""

import pytest
import torch

from engine.execution.choices import enter_device


@pytest.fixture(scope="session")
def device():
    """The first CUDA device. Whoever asks for these tests wants to know: without one they fail."""
    if not torch.cuda.is_available():
        pytest.fail(f"there is no CUDA device: torch {torch.__version__} sees none")
    device = torch.device("cuda", 0)
    enter_device(device)
    return device
