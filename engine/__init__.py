"""The batching engine: token ids in, token ids out; no strings, no HTTP. This is all that `server` sees of it."""

from pathlib import Path

from engine.benchmark import METHODS, MODEL_SIZES, DecodeFigures, bench_decode
from engine.cache import CACHES
from engine.config import EngineConfig, ModelSpec
from engine.demo.tasks import TASKS as DEMO_TASKS
from engine.demo.tasks import Problem as DemoProblem
from engine.demo.tasks import problems as demo_problems
from engine.engine import Engine, EngineInfo, EngineStats, load
from engine.errors import (
    CapacityError,
    ConfigError,
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    LoadError,
    QueueFull,
    RequestFailed,
    UnmaskError,
)
from engine.loop import EngineLoop, OutputStream
from engine.memory import Footprint, MemoryPlan, plan_memory
from engine.params import MAX_LOGPROBS, DiffusionParams, SamplingParams
from engine.request import FinishReason, Hole, Output, Submission, TokenLogprobs, Usage
from engine.tally import DecodingStats, Discard, Distribution, RowKind
from engine.turn import Workload
from engine.unmask import UNMASKS

DEMO_MODEL = str(Path(__file__).parent / "demo")
"""The folder of the bundled demo model."""

__all__ = [
    "CACHES",
    "DEMO_MODEL",
    "DEMO_TASKS",
    "MAX_LOGPROBS",
    "METHODS",
    "MODEL_SIZES",
    "UNMASKS",
    "CapacityError",
    "ConfigError",
    "ContextLengthExceeded",
    "DecodeFigures",
    "DecodingStats",
    "DemoProblem",
    "DiffusionParams",
    "Discard",
    "Distribution",
    "Engine",
    "EngineConfig",
    "EngineInfo",
    "EngineLoop",
    "EngineStats",
    "EngineUnavailable",
    "FinishReason",
    "Footprint",
    "Hole",
    "InvalidRequest",
    "LoadError",
    "MemoryPlan",
    "ModelSpec",
    "Output",
    "OutputStream",
    "QueueFull",
    "RequestFailed",
    "RowKind",
    "SamplingParams",
    "Submission",
    "TokenLogprobs",
    "UnmaskError",
    "Usage",
    "Workload",
    "bench_decode",
    "demo_problems",
    "load",
    "plan_memory",
]
