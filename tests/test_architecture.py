"""The house rules a machine can check. If one of these fails, move the code, not the wall."""

import ast
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
BELOW_THE_STEP = "core kernels models scoring cache unmask scheduling execution"
ENGINE = {  # a room, and the rooms that it may import from
    "core": "",
    "kernels": "core",
    "models": "core kernels",
    "scoring": "core kernels",
    "cache": "core",
    "unmask": "core scoring",
    "scheduling": "core scoring cache unmask",
    "execution": "core kernels models scoring unmask scheduling",
    "engine": BELOW_THE_STEP,
    "assemble": f"{BELOW_THE_STEP} engine",
    "loop": "core engine",
    "bench": f"{BELOW_THE_STEP} engine assemble",
    "demo": "core models",  # data and the scripts that make it
}
SERVER = {  # all of them may import from `engine`, its public face, and from nothing within
    "units": "",
    "threads": "",
    "arguments": "",
    "console": "",
    "errors": "",
    "settings": "arguments",
    "schemas": "settings",
    "jobs": "",
    "text": "jobs",
    "structured": "text",
    "guards": "errors",
    "observe": "errors settings text guards",
    "constraints": "jobs structured text",
    "prompts": "schemas text structured constraints",
    "replies": "threads errors schemas text observe prompts",
    "decisions": "schemas text observe prompts replies",
    "protocols": "threads errors settings schemas text structured observe constraints prompts replies decisions",
    "page": "",
    "http": "errors settings schemas text guards observe prompts replies protocols page",
    "ray": "errors settings schemas text guards observe protocols page http",
    "remote": "",
    "commands": "units arguments console settings schemas text guards observe protocols http ray",
    "bench": "arguments console text structured remote",
    "chat": "arguments schemas remote",
    "trace": "arguments",
    "eval": "arguments settings text structured constraints observe prompts replies decisions remote",
    "cli": "arguments",
}
SEES = {
    **{f"engine.{room}": {f"engine.{seen}" for seen in rooms.split()} for room, rooms in ENGINE.items()},
    "engine": {f"engine.{room}" for room in ENGINE},
    **{f"server.{room}": {"engine", *(f"server.{seen}" for seen in rooms.split())} for room, rooms in SERVER.items()},
    "server": set(),
}
NO_TORCH = ("engine.core", "engine.cache", "engine.unmask", "engine.scheduling", "server")
"""They import no torch themselves: what they decide, they decide in numpy. (The engine's face brings it along.)"""
ENGINE_PACKAGES = {"torch", "transformers", "safetensors", "numpy", "huggingface_hub", "tokenizers"}
"""All that the engine may import when it is imported: what it needs on a rented machine (docs/adr/022), and what comes
with these. tests/test_bare_machine.py runs it there."""
NO_ENGINE = (
    "server.text.encoder",
    "server.jobs.worker",
    "server.text.hermes",
    "server.text.marks",
    "server.text.turns",
    "server.http.health",
    "server.structured",
)
"""They run in small processes of their own."""
SCRIPTS = ("engine.demo.plot", "engine.demo.evaluate", "engine.demo.train")
"""They make the bundled model, and need what makes it."""
MOST_MODULES = 12


def modules():
    for path in sorted([*ROOT.glob("engine/**/*.py"), *ROOT.glob("server/**/*.py")]):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


MODULES = dict(modules())


@cache
def imports(path):
    """Module-level names only: what is under `if TYPE_CHECKING:` or inside a function does not count.

    `from package import module` is an import of that module.
    """
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(inner if inner in MODULES else node.module)
    return found


def is_in(name, entries):
    return any(f"{name}.".startswith(f"{entry}.") for entry in entries)


@cache
def room(name):
    """The room that a module is in; None of what is not ours."""
    return max((entry for entry in SEES if is_in(name, [entry])), key=len, default=None)


def test_every_module_has_a_room():
    faces = {"engine", "server"}
    homeless = [name for name in MODULES if name not in faces and room(name) in faces]
    assert not homeless, f"give these a room: {homeless}"


def test_rooms_see_only_what_is_above_them_in_the_list():
    for number, (here, seen) in enumerate(SEES.items()):
        assert seen <= set(list(SEES)[:number]), here


def faults(name, target):
    """What is wrong with a module's import of a target."""
    here, there, package = room(name), room(target), target.split(".")[0]
    if there not in {None, here, *SEES[here]}:
        yield f"{here} does not see {there}: {name} imports {target}"
    if is_in(name, NO_TORCH) and package == "torch":
        yield f"{name} decides without tensors"
    if here != "server.ray" and package == "ray":
        yield f"{name} is imported where nobody asks for Ray"
    if is_in(name, NO_ENGINE) and package == "engine":
        yield f"{name} runs without the engine"
    if is_in(name, ["engine"]) and not is_in(name, SCRIPTS):
        is_triton = is_in(name, ["engine.kernels"]) and name.rpartition(".")[2].startswith("triton_")
        own = {"triton"} if is_triton else set()  # only CUDA imports these
        if package not in {"engine", *ENGINE_PACKAGES, *own, *sys.stdlib_module_names}:
            yield f"{name} needs {package}"


def test_a_module_imports_from_its_room_and_those_that_it_sees():
    wrong = [fault for name, path in MODULES.items() for target in imports(path) for fault in faults(name, target)]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others():
    """A cycle within a room; between rooms there can be none."""
    needs = {name: {target for target in imports(path) if target in MODULES} for name, path in MODULES.items()}
    while free := [name for name, targets in needs.items() if not targets & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"in a cycle, or above one: {sorted(needs)}"


def test_private_modules_stay_in_their_room():
    wrong = []
    for name, path in MODULES.items():
        for target in imports(path):
            folder, _, last = target.rpartition(".")
            if target in MODULES and last.startswith("_") and not is_in(name, [folder]):
                wrong.append(f"{name} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_a_room_can_be_surveyed():
    sizes = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    crowded = [str(folder) for folder, size in sizes.items() if size > MOST_MODULES]
    assert not crowded


def test_a_room_says_what_it_is_for():
    faces = [path for path in MODULES.values() if path.name == "__init__.py"]
    assert [str(path) for path in faces if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_top_level_is_what_it_should_be():
    names = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not path.name.endswith("egg-info")
    }
    allowed = {"server", "engine", "configs", "docker", "tests", "docs", "Dockerfile", "pyproject.toml", "README.md"}
    assert names <= allowed | {"Makefile", "LICENSE", "constraints.txt", "build"}


PAGES = sorted(
    {ROOT / "README.md", *ROOT.glob("docs/*.md")} - {ROOT / "docs" / "CHANGELOG.md"}
)  # which tells of what was


def test_pages_name_files_that_exist():
    pattern = r"[`(]((?:engine|server|tests|docker|configs|docs)/[\w./-]*\.\w+)[`)#:]"
    named = [(page.name, path) for page in PAGES for path in re.findall(pattern, page.read_text())]
    assert [(page, path) for page, path in named if not (ROOT / path).exists()] == []
