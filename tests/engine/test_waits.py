"""A step waits for its device once, whoever takes part in it: what a GPU would wait for is told apart on a CPU."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from engine import EngineConfig, SamplingParams, load
from engine.kernels import proposals
from engine.kernels.transfer import fill
from tests.engine.toys import FULL_ATTENTION_CACHES, FULL_ATTENTION_UNMASKS

READS = {"item", "tolist", "numpy", "cpu", "nonzero", "unique", "masked_select", "__bool__", "__int__", "__float__"}
"""Of tensors: each needs their values on the host, or as many places as they turn out to take."""

EDITS = (
    {},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.05},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "logit_bias": ((3, 1.0),)},
    {"allowed_ids": frozenset(range(50))},
    {"bad_words": ((1,), (2, 3))},
    {"min_tokens": 5},
    {"logprobs": 5},
    {"logprobs": 0, "logprob_ids": (3, 7, 5)},
    {"temperature": 1.0, "logprobs": 0, "allowed_ids": frozenset(range(9)), "min_tokens": 1, "bad_words": ((4, 4),)},
)


class Waits(TorchFunctionMode):
    """Counts what would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS and isinstance(args[0], torch.Tensor):
            self.found[name] += 1
        if name in ("__getitem__", "__setitem__"):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            tensors = [place for place in places if isinstance(place, torch.Tensor)]
            if any(place.dtype == torch.bool for place in tensors):
                self.found["mask as an index"] += 1
            if name == "__setitem__" and tensors and not isinstance(args[2], torch.Tensor):
                self.found["number through indices"] += 1
        return function(*args, **(kwargs or {}))


def everything(submission, stride=1):
    """Each cache with each unmask policy, or one in `stride` of these pairs, and all edits among them."""
    pairs = [(cache, unmask) for cache in FULL_ATTENTION_CACHES for unmask in FULL_ATTENTION_UNMASKS][::stride]
    for number, (cache, unmask) in enumerate(pairs):
        asked = submission(number, prompt=[5] * (3 + number % 9), cache=cache, unmask=unmask, block_length=16)
        yield replace(asked, sampling=SamplingParams(max_tokens=32, seed=number, **EDITS[number % len(EDITS)]))


@pytest.mark.parametrize("fixture", ["llada_tiny", "dream_tiny"])
def test_a_step_reads_its_scores_and_nothing_else(fixture, request, submission, monkeypatch):
    monkeypatch.setattr(proposals, "kernel", lambda: None)  # a CPU's own, which may read as it likes
    engine = load(EngineConfig(model=str(request.getfixturevalue(fixture)), max_running_requests=100))
    for asked in everything(submission):
        engine.submit(engine.new_request(asked))
    for _ in range(3):
        with Waits() as waits:
            engine.step()
        assert waits.found == {"cpu": 1, "numpy": 1}


def test_what_it_would_find():
    """That it sees them: or the test above could not fail."""
    tensor, places = torch.zeros(3, 4), torch.tensor([0, 2])
    with Waits() as waits:
        tensor[places] = 1.0
        tensor[places, 1] = 2.0
        tensor[tensor > 1]
        tensor.sum().item()
        fill(tensor, (places,), 3.0)
        tensor[:, 1] = 4.0
    assert waits.found == {"number through indices": 2, "mask as an index": 1, "item": 1}
    assert tensor.tolist() == [[3, 4, 3, 3], [0, 4, 0, 0], [3, 4, 3, 3]]


def test_a_faulty_requests_slots_are_cleared_without_waiting(engine):
    pool, slots = engine.runner.pool, torch.tensor([3, 5])
    pool.values[:, :, :8] = 1.0
    with Waits() as waits:
        pool.clear(slots)
    assert not waits.found
    assert pool.values[0, 0, :8, 0].tolist() == [1, 1, 1, 0, 1, 0, 1, 1]
