"""The house rules a machine can check. If one of these fails, move the code, not the floor."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [  # whatever is in an entry may import from the entries above it, and from itself
    "engine.core",
    "engine.kernels",
    "engine.models",
    "engine.scoring",
    "engine.cache",
    "engine.unmask",
    "engine.scheduling",
    "engine.execution",
    "engine.engine",
    "engine.assemble",
    "engine.loop",
    "engine.bench",
    "engine.demo",  # data and the scripts that make it; they may use the engine, which never uses them
    "engine",  # the public face: engine/__init__.py; the server sees nothing else
    "server.units",
    "server.aside",
    "server.arguments",
    "server.errors",
    "server.settings",
    "server.schemas",
    "server.text",
    "server.guards",
    "server.observe",
    "server.prompts",
    "server.replies",
    "server.protocols",
    "server.http",
    "server.remote",
    "server.commands",
    "server.bench",
    "server.eval",
    "server.cli",
    "server",
]
NO_TORCH = ("engine.core", "engine.cache", "engine.unmask", "engine.scheduling", "server")
"""They import no torch themselves: what they decide, they decide in numpy. (The engine's face brings it along.)"""
NO_ENGINE = (
    "server.text.encoder",
    "server.text.worker",
    "server.text.marks",
    "server.text.turns",
    "server.http.health",
)
"""They run in small processes of their own."""
MOST_MODULES = 12


def modules():
    for path in sorted([*ROOT.glob("engine/**/*.py"), *ROOT.glob("server/**/*.py")]):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(path):
    """Module-level names only: what is under `if TYPE_CHECKING:` or inside a function does not count.

    `from package import module` is an import of that module.
    """
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def is_in(name, entries):
    return any(f"{name}.".startswith(f"{entry}.") for entry in entries)


def floor(name):
    """The number of the longest entry that the name is in; None of what is not ours."""
    hits = [(len(entry), number) for number, entry in enumerate(FLOORS) if is_in(name, [entry])]
    return max(hits)[1] if hits else None


def test_every_module_has_a_floor():
    faces = {"engine", "server"}
    homeless = [name for name in MODULES if name not in faces and FLOORS[floor(name)] in faces]
    assert not homeless, f"give these a floor: {homeless}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_point_down(name):
    for target in imports(MODULES[name]):
        there = floor(target)
        assert there is None or there <= floor(name), f"{name} imports {target}, which is above it"
        if is_in(name, ["server"]) and target.startswith("engine."):
            raise AssertionError(f"{name} imports {target}: the server sees only `engine`")
        if is_in(name, NO_TORCH):
            assert target.split(".")[0] != "torch", f"{name} decides without tensors"
        if is_in(name, NO_ENGINE):
            assert target.split(".")[0] != "engine", f"{name} runs without the engine"


def test_no_module_imports_itself_through_others():
    """A cycle within a room; between rooms there can be none."""
    needs = {name: {target for target in imports(path) if target in MODULES} for name, path in MODULES.items()}
    while free := [name for name, targets in needs.items() if not targets & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"in a cycle, or above one: {sorted(needs)}"


@pytest.mark.parametrize("name", MODULES)
def test_private_modules_stay_in_their_room(name):
    for target in imports(MODULES[name]):
        *room, last = target.split(".")
        if target in MODULES and last.startswith("_"):
            assert is_in(name, [".".join(room)]), f"{name} imports {target}"


def test_a_room_can_be_surveyed():
    sizes = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    crowded = [
        str(folder) for folder, size in sizes.items() if size > MOST_MODULES and folder.name not in ("server", "engine")
    ]
    assert not crowded


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_room_says_what_it_is_for(name):
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


def test_the_top_level_is_what_it_should_be():
    names = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not path.name.endswith("egg-info")
    }
    allowed = {"server", "engine", "configs", "docker", "tests", "docs", "Dockerfile", "pyproject.toml", "README.md"}
    assert names <= allowed | {"Makefile", "LICENSE", "constraints.txt", "build"}
