"""Where the CPU kernels' library comes from: what a package brings for some processor, before any compiler."""

import platform
import shutil
from pathlib import Path

import pytest

from engine.kernels import library, native, native_proposals, proposals

X86 = library.ARCHITECTURES["x86_64"]
ARM = library.ARCHITECTURES["aarch64"]


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A folder with the sources alone; `package.bring(names)` puts libraries beside it."""
    folder = tmp_path / "engine"
    folder.mkdir()
    monkeypatch.setattr(library, "SOURCES", tuple(Path(shutil.copy(source, folder)) for source in library.SOURCES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    return folder


@pytest.fixture
def on(monkeypatch):
    """`on("x86_64", features)`: a machine with such a processor."""

    def be(machine, features):
        name = "Features" if machine == "aarch64" else "flags"
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(library, "_processor", lambda: ("model name\t: some", f"{name}\t\t: {' '.join(features)}"))

    return be


def bring(folder, *architectures):
    paths = [folder / library._built_name(name) for name in architectures]
    for path in paths:
        path.touch()
    return paths


def test_the_best_that_the_processor_can_run_is_taken(package, on):
    v4, v3, arm = bring(package, *X86, *ARM)
    on("x86_64", X86["x86-64-v4"] | {"amx_tile"})
    assert library.library() == v4
    on("x86_64", X86["x86-64-v4"] - {"avx512vl"})
    assert library.library() == v3
    on("aarch64", {"fp", "asimd"})
    assert library.library() == arm


@pytest.mark.parametrize(("machine", "features"), [("x86_64", {"sse2", "avx"}), ("x86_64", ()), ("riscv64", {"avx2"})])
def test_one_that_it_cannot_run_is_not(package, on, machine, features):
    bring(package, *X86, *ARM)
    on(machine, features)
    with pytest.raises(FileNotFoundError, match="no C\\+\\+ compiler"):
        library.library()


@pytest.mark.parametrize("changed", range(len(library.SOURCES)))
def test_one_of_another_source_is_not(package, on, changed):
    bring(package, *X86)
    on("x86_64", X86["x86-64-v4"])
    source = library.SOURCES[changed]
    source.write_text(source.read_text() + "\n")
    with pytest.raises(FileNotFoundError):
        library.library()


def test_a_compiler_that_is_named_goes_first(package, on, monkeypatch):
    """`none` is the way to have no kernel, where one is built in too."""
    bring(package, *X86)
    on("x86_64", X86["x86-64-v4"])
    monkeypatch.setenv("CXX", "none")
    with pytest.raises(FileNotFoundError, match="none"):
        library.library()


@pytest.mark.slow
def test_what_is_built_here_computes_the_same(tmp_path):
    """All that this machine's compiler makes; those that its processor runs are tried."""
    paths = library.build(tmp_path)
    assert [path.name for path in paths] == [*map(library._built_name, library.ARCHITECTURES[platform.machine()])]
    assert all(path.stat().st_size for path in paths)
    runs = list(library._fitting(tmp_path))
    assert all(native._agrees(native.Kernel(path)) for path in runs)
    assert all(proposals._agrees(native_proposals.Kernel(path)) for path in runs)
    assert runs or "avx2" not in library._features()
