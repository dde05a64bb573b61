"""A rented machine with a GPU: torch, transformers, safetensors, numpy and pytest, and nothing else of ours.

The engine imports, loads, decodes and is measured there (docs/adr/022). Such a machine is a folder of links to exactly
these packages and what they need themselves; Python sees no other.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pytest")
LEFT_OUT = {"typer"}
"""For commands of transformers, which nobody calls; some versions bring pydantic along, others do not."""


def with_what_they_need(*names):
    found, pending = {}, list(names)
    while pending:
        if (name := pending.pop()) in LEFT_OUT:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # of another system, or optional
        if package.name not in found:
            found[package.name] = package
            needed = [Requirement(line) for line in package.requires or ()]
            pending += [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """`bare("-m", "pytest")`: what a Python with these packages alone does, in the repository's root."""
    folder = tmp_path_factory.mktemp("packages")
    for package in with_what_they_need(*PACKAGES):
        for name in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(package.locate_file(name))

    def run(*arguments):
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200)

    return run


@pytest.fixture
def few_rows(llada_tiny, tmp_path):
    """The golden checkpoint with every 30th of its rows."""
    folder = shutil.copytree(llada_tiny, tmp_path / "few")
    rows = json.loads((folder / "generations.json").read_text())
    (folder / "generations.json").write_text(json.dumps(rows[::30]))
    return folder


@pytest.mark.parametrize("package", ["pydantic", "annotated_types", "fastapi", "prometheus_client", "hypothesis"])
def test_it_is_bare(bare, package):
    ended = bare("-c", f"import {package}")
    assert f"No module named '{package}'" in ended.stderr


def test_the_engine_loads_and_decodes(bare, llada_tiny):
    """Also without Triton, which torch's builds for CPUs do not bring."""
    program = """if True:
        import sys
        sys.modules["triton"] = None  # an import of it raises ImportError
        from engine import *
        from engine.kernels.triton_available import has_triton
        assert not has_triton()
        engine = load(EngineConfig(model=sys.argv[1]))
        sampling, diffusion = SamplingParams(max_tokens=8), DiffusionParams(block_length=8)
        one = Submission(request_id="r", prompt_ids=[5, 6, 7], sampling=sampling, diffusion=diffusion)
        engine.submit(engine.new_request(one))
        while engine.request_ids:
            for output in engine.step():
                print(len(output.token_ids), output.finish_reason)
        """
    ended = bare("-c", program, str(llada_tiny))
    assert ended.stdout.startswith("8 "), ended.stderr


@pytest.mark.slow
def test_a_dry_run_of_what_a_gpu_is_asked(bare, few_rows, tmp_path):
    flags = ("--device", "cpu", "--models", "tiny", "--requests", "2", "--hardware", "h100")
    ended = bare("-m", "engine.bench.gpu", *flags, "--golden", str(few_rows), "--json", str(tmp_path / "out.json"))
    assert ended.returncode == 0, ended.stderr
    told = json.loads((tmp_path / "out.json").read_text())
    verdicts = [(case["part"], case["verdict"]) for case in told["cases"]]
    assert verdicts == [
        *[("kernels", "ok")] * 4,
        ("kernels", "left out"),
        ("golden", "ok"),
        ("golden", "left out"),
        ("waits", "left out"),
        ("speed", "slower than predicted"),
        ("speed", "slower than predicted"),
    ]
    *_, last = ended.stdout.splitlines()
    assert last == told["verdict"] == "5 ok, 2 slower than predicted, 3 left out"
    assert told["machine"]["torch"]


@pytest.mark.slow
def test_tests_of_a_gpu_fail_without_one(bare):
    """They need none of the packages that other tests have, and are not skipped."""
    ended = bare("-m", "pytest", "-q", "-c", "tests/gpu/pytest.ini", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "there is no CUDA device" in ended.stdout
    *_, summary = ended.stdout.splitlines()
    assert "error" in summary
    assert not any(word in summary for word in ("passed", "skipped", "deselected"))
