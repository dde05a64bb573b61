"""The Dockerfile without Docker: what is a layer of its own, and where packages come from."""

import re
import subprocess
import sys
import tomllib

import pytest

from engine.kernels import library

from .conftest import DOCKER, ROOT

TEXT = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CODE = ("engine", "server")


def stages():
    """Name -> its lines; the last stage, which is the image, has the name `image`."""
    found = {}
    for stage in re.split(r"^(?=FROM )", TEXT, flags=re.MULTILINE)[1:]:
        first, *lines = stage.splitlines()
        name = first.partition(" AS ")[2] or "image"
        found[name] = [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]
    return found


def copied(stage):
    """Paths of the checkout that a stage copies."""
    copies = [line.split()[1:-1] for line in stages()[stage] if line.startswith("COPY") and "--from" not in line]
    return [path for paths in copies for path in paths]


def test_dependencies_are_installed_before_any_code_is_there():
    assert copied("dependencies") == ["constraints.txt"]
    [install] = [line for line in stages()["dependencies"] if "pip install" in line]
    assert install.endswith("-c constraints.txt -r run.txt")
    assert {*copied("package")} >= {*CODE, "pyproject.toml"}


def test_the_image_gets_dependencies_and_code_as_two_layers():
    lines = stages()["image"]
    dependencies = lines.index("COPY --from=dependencies /opt/unmask /opt/unmask")
    [code] = [number for number, line in enumerate(lines) if "from=package" in line]
    assert dependencies < code
    assert "--no-deps" in lines[code]
    assert not {*CODE} & {*copied("image")}


def test_everything_that_is_copied_is_sent_to_the_builder():
    sent = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    wanted = {path for stage in stages() for path in copied(stage)}
    assert {path.partition("/")[0] for path in wanted} == sent
    for path in wanted:
        assert (ROOT / path).exists()


def test_the_stage_that_compiles_has_all_sources():
    sources = {str(path.relative_to(ROOT)) for path in library.SOURCES}
    assert {*copied("kernels")} == sources | {"engine/kernels/library.py"}


def test_the_names_of_what_is_installed_are_those_of_the_project(tmp_path):
    scripts = re.findall(r"python -c '([^']+)' > (\S+)", TEXT)
    wanted = {"run.txt": PROJECT["project"]["dependencies"], "build.txt": PROJECT["build-system"]["requires"]}
    assert {name for _, name in scripts} == set(wanted)
    for script, name in scripts:
        printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert printed.stdout.splitlines() == wanted[name]


@pytest.mark.parametrize(
    ("given", "arguments"),
    [("", []), ("https://torch.example/cpu", ["--extra-index-url", "https://torch.example/cpu"])],
)
def test_torch_has_an_index_of_its_own_only_where_one_is_given(given, arguments):
    [install] = [line for line in stages()["dependencies"] if "pip install" in line]
    command = install.partition("/opt/unmask/bin/pip install")[2]
    script = f'for word in {command}; do echo "$word"; done'
    printed = subprocess.run(
        ["sh", "-c", script], env={"TORCH_INDEX": given}, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == [*arguments, "-c", "constraints.txt", "-r", "run.txt"]
    assert "ARG TORCH_INDEX=" in stages()["dependencies"]


def test_no_package_index_is_named_but_for_a_build_argument():
    places = [ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    places += [ROOT / "README.md", *(ROOT / ".ci").iterdir(), *(ROOT / "docs").rglob("*.md")]
    places += [path for path in DOCKER.rglob("*") if path.is_file() and "secrets" not in path.parts]
    named = re.compile(r"https?://\S*(?:pypi|pythonhosted|/whl\b|/simple\b|npmjs)\S*")
    found = [
        (path.name, line.strip()) for path in places for line in path.read_text().splitlines() if named.search(line)
    ]
    assert found == [("compose.cpu.yaml", "TORCH_INDEX: https://download.pytorch.org/whl/cpu")]


def test_images_for_cpu_and_gpu_have_tags_of_their_own():
    version = PROJECT["project"]["version"]
    tags = {name: re.findall(r"image: (unmask\S*)", (DOCKER / name).read_text()) for name in
            ("compose.yaml", "compose.cpu.yaml")}  # fmt: skip
    assert tags == {"compose.yaml": [f"unmask:{version}"], "compose.cpu.yaml": [f"unmask:{version}-cpu"]}
    assert f"newTag: {version}\n" in (DOCKER / "k8s" / "kustomization.yaml").read_text()
