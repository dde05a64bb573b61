"""The house rules a machine can check. If one of these fails, move the code, not the floor."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = [  # a module may import only from floors above it in this list
    {"engine.library"},
    {"engine.native"},
    {"engine.errors", "engine.transfer", "engine.kernels", "engine.output", "engine.histogram"},
    {"engine.config", "engine.params", "engine.compiled"},
    {"engine.request"},
    {"engine.plan", "engine.noise", "engine.faults", "engine.ranking"},
    {
        "engine.pages",
        "engine.safe_state",
        "engine.parts",
        "engine.attention",
        "engine.rollout",
        "engine.sampling",
        "engine.density",
        "engine.vocabulary",
        "engine.bans",
    },
    {
        "engine.cad",
        "engine.dream_sampler",
        "engine.d2cache",
        "engine.edits",
        "engine.logprobs",
        "engine.sampling_checks",
    },
    {"engine.scores", "engine.cache", "engine.unmask", "engine.batch", "engine.models"},
    {
        "engine.scheduler",
        "engine.checks",
        "engine.isolate",
        "engine.reference",
        "engine.flex",
        "engine.hardware",
        "engine.method",
        "engine.tally",
    },
    {"engine.runner", "engine.budget"},
    {"engine.warmup"},
    {"engine.engine", "engine.memory"},
    {"engine.loop", "engine.turn"},
    {"engine.benchmark"},
    {"engine.roofline"},
    {"engine.demo"},  # data and the scripts that make it; they may use the engine, which never uses them
    {"engine"},  # the public face: engine/__init__.py
    {"server"},  # sees `engine`, never `engine.*`
]
NO_TORCH = {
    "engine.library",
    "engine.errors",
    "engine.config",
    "engine.params",
    "engine.output",
    "engine.request",
    "engine.plan",
    "engine.faults",
    "engine.pages",
    "engine.safe_state",
    "engine.method",
    "engine.noise",
    "engine.density",
    "engine.bans",
    "engine.cad",
    "engine.dream_sampler",
    "engine.ranking",
    "engine.d2cache",
    "engine.cache",
    "engine.unmask",
    "engine.scheduler",
    "engine.checks",
    "engine.sampling_checks",
    "engine.histogram",
    "engine.tally",
    "server",
}


def modules():
    for path in sorted([*ROOT.glob("engine/**/*.py"), *ROOT.glob("server/**/*.py")]):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imports(path):
    """Module-level names only: what is under `if TYPE_CHECKING:` or inside a function does not count."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            yield node.module


def floor(name):
    """(floor number, the entry that matched); the longest matching entry wins."""
    hits = [(len(key), i, key) for i, keys in enumerate(FLOORS) for key in keys if f"{name}.".startswith(f"{key}.")]
    return max(hits)[1:] if hits else None


def test_every_module_lives_on_a_floor():
    homeless = [name for name, _ in modules() if name != "engine" and floor(name)[1] == "engine"]
    assert not homeless, f"give these a floor: {homeless}"


def test_imports_only_point_down():
    for name, path in modules():
        here, home = floor(name)
        for target in imports(path):
            if (hit := floor(target)) and hit[1] != home:
                assert hit[0] < here, f"{name} (floor {here}) imports {target} (floor {hit[0]})"
            if home == "server" and target.startswith("engine."):
                raise AssertionError(f"{name} imports {target}: the server sees only `engine`")
            if home in NO_TORCH:
                assert target.split(".")[0] != "torch", f"{name} must stay importable without torch"


def test_the_top_level_is_what_it_should_be():
    names = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not path.name.endswith("egg-info")
    }
    allowed = {"server", "engine", "configs", "docker", "tests", "docs", "Dockerfile", "pyproject.toml", "README.md"}
    assert names <= allowed | {"Makefile", "constraints.txt", "build"}
