"""A CUDA device that is not there: whole steps of an engine over tensors without data, on torch's own fakes.

Finds what a CPU forgives: tensors on two devices, dtypes that do not go together, a hidden wait, a second copy. Counts
what would be launched. What a step reads back is made up, of the right shape.
"""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import ModelSpec
from engine.core.config import EngineConfig
from engine.engine import Engine, EngineInfo
from engine.execution import step
from engine.execution.clock import DeviceClock
from engine.execution.graphs import Capture, Captured, Graph, Graphs, shapes_of
from engine.execution.runner import Runner, make_pool
from engine.kernels import proposals, transfer
from engine.kernels.attention import Layout, attend_spans
from engine.models.layers import Transformer, TransformerConfig
from engine.models.noised import NoisedTransformer
from engine.scoring import scores
from tests.engine.test_waits import Waits

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class Launches(TorchDispatchMode):
    """Counts the operators that launch something on the device: those that write, or whose result is no view.

    Copies from the host are none of them.
    """

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        outs = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        inputs = [each for each in tree_leaves(args) if isinstance(each, Tensor)]
        is_view = all(any(torch._C._is_alias_of(one, other) for other in inputs) for one in outs)
        is_idle = is_view or name.startswith(("empty", "new_empty"))
        if any(each.device.type == "cuda" for each in inputs) and (function._schema.is_mutable or not is_idle):
            self.count[name] += 1
        return out


class Stand(TorchFunctionMode):
    """Indexing by tensors, `~`, `contiguous`, `copy_` and SDPA, for which torch would look for a real device."""

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "__getitem__" and args[0].device.type == "cuda":
            target, tensors = _view(args[0], args[1])
            return aten.index(target, tensors) if tensors else target
        if name == "__setitem__" and args[0].device.type == "cuda":
            return _write(*args)
        if name == "__invert__":
            return torch.logical_not(args[0])
        if name == "contiguous":
            return aten.clone(args[0], memory_format=torch.contiguous_format)
        if name == "copy_":
            return aten.copy_(*args)
        if function is F.scaled_dot_product_attention:
            q, keys, values = args[:3]
            assert q.device == keys.device == values.device
            assert q.dtype == keys.dtype == values.dtype
            return q.new_empty(q.shape).fill_(0)  # one launch
        return function(*args, **(kwargs or {}))


def _view(target, index):
    """The view that an index makes of a tensor, and the tensors in it by dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(number for number, part in enumerate(parts) if part is Ellipsis)
        missing = target.dim() - sum(part is not None for part in parts) + 1
        parts[at : at + 1] = [slice(None)] * missing
    dim, tensors = 0, {}
    for part in parts:
        if part is None:
            target = aten.unsqueeze(target, dim)
        elif isinstance(part, Tensor):
            assert part.device == target.device, "an index on another device"
            tensors[dim] = part
        elif isinstance(part, slice):
            start, stop, step = part.indices(target.shape[dim])
            if (start, stop, step) != (0, target.shape[dim], 1):
                target = aten.slice(target, dim, start, max(stop, start), step)
        else:
            target, dim = aten.select(target, dim, int(part)), dim - 1
        dim += 1
    return target, [tensors.get(number) for number in range(max(tensors) + 1)] if tensors else None


def _write(target, index, value):
    target, tensors = _view(target, index)
    if tensors:
        value = value if isinstance(value, Tensor) else target.new_full((), value)
        aten.index_put_(target, tensors, value)
    elif isinstance(value, Tensor):
        aten.copy_(target, value)
    else:
        aten.fill_(target, value)


class FakeCuda:
    """Engines on the fake device, and how many copies went to it and came back."""

    def __init__(self, mode):
        self._mode = mode
        self.copies = Counter()
        self._rng = np.random.default_rng(0)

    def to_devices(self, arrays, device):
        assert device.type == "cuda"
        self.copies["to the device"] += 1
        return [self._mode.from_tensor(torch.from_numpy(np.ascontiguousarray(array))).to(device) for array in arrays]

    def to_host(self, columns):
        self.copies["to the host"] += 1
        joined = torch.cat([part.double().flatten() for parts in columns for part in parts])
        assert joined.device.type == "cuda"
        shapes = [(sum(len(part) for part in parts), *parts[0].shape[1:]) for parts in columns]
        return [self._rng.uniform(0.5, 3.0, shape) for shape in shapes]

    def engine(
        self,
        geometry: TransformerConfig,
        spec: ModelSpec,
        *,
        dtype=torch.bfloat16,
        stored: torch.dtype | None = None,
        requests=64,
        kernel=attend_spans,
        capture: Capture | None = None,
        relay_tokens=0,
    ) -> Engine:
        """With a `capture`, small steps go through what it makes of them.

        `stored`: the dtype of keys and values, if it is not `dtype`.
        """
        with unset_fake_temporarily(), torch.device("meta"):
            model = (NoisedTransformer if geometry.sandwich else Transformer)(geometry)
        for module in model.modules():  # `Module.to` cannot put fakes in the place of parameters
            kept = getattr(module, "dtype", None) or dtype
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    own = torch.empty(parameter.shape, dtype=kept, device=CUDA)
                    module._parameters[name] = torch.nn.Parameter(own, requires_grad=False)
        for name, table in list(model.named_buffers()):
            setattr(model, name, torch.empty(table.shape, device=CUDA))
        slots = requests * spec.max_model_len
        pool = make_pool(geometry, slots, stored or dtype, CUDA)
        runner, config = Runner(model, pool, CUDA, kernel), EngineConfig(model="fake", max_running_requests=requests)
        if capture:  # not `record`, which compares numbers; every fourth shape, which takes what the three before it do
            shapes = shapes_of(config, spec.max_model_len, slots, pool.dump)[::-4]
            runner.graphs = Graphs([Graph(shape, runner.hidden, CUDA, capture) for shape in shapes])
        info = EngineInfo(
            model="fake",
            folder=Path(),
            spec=spec,
            device=str(CUDA),
            dtype=str(dtype),
            kv_dtype=str(dtype),
            kv_prune=0.0,
            relay_tokens=relay_tokens,
            num_parameters=geometry.num_parameters,
            weight_bytes=0,
            kv_tokens=slots,
            kv_bytes=0,
            page_size=config.page_size,
            max_batch_rows=requests * spec.max_model_len,
            max_running_requests=requests,
            max_queued_requests=requests,
            shares_prefixes=spec.is_block_causal,
        )
        return Engine(runner, info)

    @contextmanager
    def step(self):
        """What happens inside is watched: (waits, launches). Copies are counted from here."""
        self.copies.clear()
        with Waits() as waits, Launches() as launches:  # it sees an index before `Stand` does
            yield waits.found, launches.count


def paged_kernel(q: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """In the place of a kernel for page tables: one launch, and a look at what it is given."""
    assert q.device == keys.device == values.device == CUDA
    assert q.dtype == keys.dtype == values.dtype
    assert layout.paged is not None
    for tensor in layout.paged[:3]:
        assert (tensor.device, tensor.dtype) == (CUDA, torch.int32)
    return q.new_empty(q.shape).fill_(0)


def launched_at_once(work):
    """In the place of a capture: a replay starts nothing but the graph itself, which is counted as one launch."""
    hidden = work()
    return Captured(lambda: hidden.fill_(0), hidden)


class FakeProposals:
    """In the place of Triton's kernels for scoring: two launches each."""

    def best_token(self, logits, mask_id):
        return self._launched(logits, torch.int64), self._launched(logits, torch.float32)

    def log_odds(self, logits, tokens):
        assert (tokens.device, tokens.dtype) == (CUDA, torch.int64)
        return self._launched(self._launched(logits, torch.float32)[:, None], torch.float32)

    def draw(self, logits, temperature, *counters):
        *counters, _mask_id = counters
        assert temperature.dtype == torch.float32
        assert {counter.dtype for counter in counters} == {torch.int64}
        assert {each.device for each in (temperature, *counters)} == {CUDA}
        return self._launched(self._launched(logits, torch.int64)[:, None], torch.int64)

    @staticmethod
    def _launched(logits, dtype):
        assert logits.device == CUDA
        return logits.new_empty(len(logits), dtype=dtype).fill_(0)


@contextmanager
def fake_cuda(monkeypatch):
    with FakeTensorMode() as mode, torch.inference_mode(), Stand():
        fake = FakeCuda(mode)
        monkeypatch.setattr(transfer, "to_devices", fake.to_devices)
        monkeypatch.setattr(scores, "_to_host", fake.to_host)
        monkeypatch.setattr(proposals, "triton", lambda: FakeProposals())
        monkeypatch.setattr(step, "DeviceClock", lambda _: DeviceClock(torch.device("cpu")))
        yield fake
