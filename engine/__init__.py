"""The batching engine: token ids in, token ids out; no strings, no HTTP. This is all that `server` sees of it."""

from engine.assemble import check_settings, load
from engine.bench.benchmark import MODEL_SIZES, DecodeFigures, bench_decode
from engine.bench.constraints import CONSTRAINT_PARTS, ConstraintFigures, bench_constraints
from engine.bench.gpu.command import add_arguments as add_gpu_arguments
from engine.bench.gpu.command import run as bench_gpu
from engine.bench.hardware import HARDWARE, Hardware, measure_hardware, with_fp8, with_graphs, with_ranks
from engine.bench.host import HOST_PARTS, HostFigures, bench_host
from engine.bench.method import METHODS, Method
from engine.bench.roofline.operators import Cost
from engine.bench.roofline.prediction import GEOMETRIES, Prediction, forward_cost, geometry_of, predict
from engine.bench.roofline.steps import Step, steps
from engine.bench.simulate.arrivals import Arrival, Lengths, Traffic
from engine.bench.simulate.figures import FleetFigures, Goal, Waits
from engine.bench.simulate.fleet import Scaling
from engine.bench.simulate.plan import FleetPlan
from engine.bench.simulate.routers import ROUTERS
from engine.bench.simulate.served import decoding_of, replica_of
from engine.bench.simulate.work import Decoding
from engine.bench.timed_run import Workload
from engine.cache.policies import CACHES
from engine.core.config import EngineConfig, KVDtype, ModelSpec, Quantization
from engine.core.constraint import Constraint
from engine.core.errors import (
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
from engine.core.histogram import Distribution
from engine.core.output import Canvas, FinishReason, Output, Range, Relayed, TokenLogprobs, TracedStep, Usage
from engine.core.params import MAX_LOGPROBS, DiffusionParams, SamplingParams, resolved
from engine.core.requests.submission import Hole, Submission
from engine.demo import FOLDERS
from engine.demo.families.problem import Problem as DemoProblem
from engine.demo.families.problem import written_calls as demo_calls
from engine.demo.tasks import BASIC as BASIC_TASKS
from engine.demo.tasks import TASKS as DEMO_TASKS
from engine.demo.tasks import problems as demo_problems
from engine.demo.tasks import solved as demo_solved
from engine.engine import Engine, EngineInfo, EngineStats
from engine.execution.memory import Footprint, MemoryPlan, plan_memory
from engine.loop import EngineLoop, OutputStream
from engine.models import find as find_model
from engine.scheduling.checks.policies import check_constrained
from engine.scheduling.tally import DecodingStats, Discard, RowKind
from engine.unmask.policies import UNMASKS

BUNDLED = {name: str(folder) for name, folder in FOLDERS.items()}
"""The folder of each bundled model, by the name that it is served under."""
DEMO_MODEL = BUNDLED["demo"]
"""The folder of the bundled model that is served without a word."""

__all__ = [
    "BASIC_TASKS",
    "BUNDLED",
    "CACHES",
    "CONSTRAINT_PARTS",
    "DEMO_MODEL",
    "DEMO_TASKS",
    "GEOMETRIES",
    "HARDWARE",
    "HOST_PARTS",
    "MAX_LOGPROBS",
    "METHODS",
    "MODEL_SIZES",
    "ROUTERS",
    "UNMASKS",
    "Arrival",
    "Canvas",
    "CapacityError",
    "ConfigError",
    "Constraint",
    "ConstraintFigures",
    "ContextLengthExceeded",
    "Cost",
    "DecodeFigures",
    "Decoding",
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
    "FleetFigures",
    "FleetPlan",
    "Footprint",
    "Goal",
    "Hardware",
    "Hole",
    "HostFigures",
    "InvalidRequest",
    "KVDtype",
    "Lengths",
    "LoadError",
    "MemoryPlan",
    "Method",
    "ModelSpec",
    "Output",
    "OutputStream",
    "Prediction",
    "Quantization",
    "QueueFull",
    "Range",
    "Relayed",
    "RequestFailed",
    "RowKind",
    "SamplingParams",
    "Scaling",
    "Step",
    "Submission",
    "TokenLogprobs",
    "TracedStep",
    "Traffic",
    "UnmaskError",
    "Usage",
    "Waits",
    "Workload",
    "add_gpu_arguments",
    "bench_constraints",
    "bench_decode",
    "bench_gpu",
    "bench_host",
    "check_constrained",
    "check_settings",
    "decoding_of",
    "demo_calls",
    "demo_problems",
    "demo_solved",
    "find_model",
    "forward_cost",
    "geometry_of",
    "load",
    "measure_hardware",
    "plan_memory",
    "predict",
    "replica_of",
    "resolved",
    "steps",
    "with_fp8",
    "with_graphs",
    "with_ranks",
]
