"""The batching engine: token ids in, token ids out; no strings, no HTTP. This is all that `server` sees of it."""

from pathlib import Path

from engine.benchmark import MODEL_SIZES, DecodeFigures, bench_decode
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
from engine.hardware import HARDWARE, Hardware, measure_hardware, with_fp8, with_graphs
from engine.histogram import Distribution
from engine.loop import EngineLoop, OutputStream
from engine.memory import Footprint, MemoryPlan, plan_memory
from engine.method import METHODS, Method
from engine.output import FinishReason, Output, TokenLogprobs, Usage
from engine.params import MAX_LOGPROBS, DiffusionParams, SamplingParams
from engine.request import Hole, Submission
from engine.roofline import (
    GEOMETRIES,
    Cost,
    Prediction,
    Step,
    forward_cost,
    geometry_of,
    predict,
    steps,
)
from engine.tally import DecodingStats, Discard, RowKind
from engine.turn import Workload
from engine.unmask import UNMASKS

DEMO_MODEL = str(Path(__file__).parent / "demo")
"""The folder of the bundled demo model."""

__all__ = [
    "CACHES",
    "DEMO_MODEL",
    "DEMO_TASKS",
    "GEOMETRIES",
    "HARDWARE",
    "MAX_LOGPROBS",
    "METHODS",
    "MODEL_SIZES",
    "UNMASKS",
    "CapacityError",
    "ConfigError",
    "ContextLengthExceeded",
    "Cost",
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
    "Hardware",
    "Hole",
    "InvalidRequest",
    "LoadError",
    "MemoryPlan",
    "Method",
    "ModelSpec",
    "Output",
    "OutputStream",
    "Prediction",
    "QueueFull",
    "RequestFailed",
    "RowKind",
    "SamplingParams",
    "Step",
    "Submission",
    "TokenLogprobs",
    "UnmaskError",
    "Usage",
    "Workload",
    "bench_decode",
    "demo_problems",
    "forward_cost",
    "geometry_of",
    "load",
    "measure_hardware",
    "plan_memory",
    "predict",
    "steps",
    "with_fp8",
    "with_graphs",
]
