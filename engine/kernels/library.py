"""The shared library of the C++ sources for this processor: one built with the package, or one compiled here.

Knows compilers, processors and the folders of libraries, but not their functions. Imports neither torch nor other
modules: the image compiles with this file alone (docs/adr/018), which it calls with a folder.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

logger = logging.getLogger(__name__)

Functions = TypeVar("Functions")

SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("chain.cpp", "native.cpp", "proposals.cpp", "rows.cpp", "codes.h", "vectors.h")
)
"""All in one folder; one library has the functions of all."""
COMPILERS = ("c++", "g++", "clang++")
# OpenMP's symbols stay unresolved: torch, in whose threads the kernels have to run, has loaded them already.
FLAGS = ("-O3", "-ffp-contract=fast", "-fopenmp", "-fno-exceptions", "-fPIC", "-shared", "-nodefaultlibs")
LIBRARIES = ("-lm", "-lc")
THIS_PROCESSOR = "native"
_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
ARCHITECTURES: dict[str, dict[str, frozenset[str]]] = {
    "x86_64": {"x86-64-v4": _V4, "x86-64-v3": _V3},
    "aarch64": {"armv8-a": frozenset({"asimd"})},
}
"""machine -> architectures that a package has libraries for, best first -> required CPU features, by Linux's names."""


def checked(name: str, load: Callable[[Path], Functions], agree: Callable[[Functions], bool]) -> Functions | None:
    """The library's functions for `name`; None if they are missing or do not `agree`, and the log has the reason."""
    try:
        functions = load(library())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        stderr = getattr(error, "stderr", None)
        logger.info("no %s kernel for this CPU, slower code is used: %s", name, stderr or error)
        return None
    if not agree(functions):
        logger.warning(
            "the %s kernel for this CPU computes something else than the code that it replaces: not used", name
        )
        return None
    return functions


def library() -> Path:
    """The library's path; compiles it if there is none.

    A compiler that the user names (`CXX`) takes precedence over libraries built with the package. Raises OSError if
    there is neither a library nor a compiler, SubprocessError if the compiler fails, RuntimeError without a home
    folder.
    """
    if not os.environ.get("CXX") and (built := next(_fitting(SOURCES[0].parent), None)):
        return built
    kept = _cache_folder() / f"kernels-{_key()}.so"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as folder:
            compile_to(made := Path(folder) / kept.name)
            made.replace(kept)  # atomic, if other processes do the same
    return kept


def compile_to(path: Path, flags: Sequence[str] = (), architecture: str = THIS_PROCESSOR) -> None:
    """Compiles the sources. Raises OSError if there is no compiler, SubprocessError if it fails."""
    options = (*FLAGS, f"-march={architecture}", *flags)
    sources = [str(source) for source in SOURCES if source.suffix != ".h"]
    command = [*_compiler().split(), *options, "-o", str(path), *sources, *LIBRARIES]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603 - the user's compiler


def build(folder: Path) -> list[Path]:
    """Compiles the libraries that a package has for this kind of machine. Raises as `compile_to`."""
    folder.mkdir(parents=True, exist_ok=True)
    libraries = {name: folder / _built_name(name) for name in ARCHITECTURES.get(platform.machine(), ())}
    for architecture, path in libraries.items():
        compile_to(path, architecture=architecture)
    return list(libraries.values())


def _fitting(folder: Path) -> Iterator[Path]:
    """The folder's libraries of exactly these sources that this processor can run, best first."""
    for architecture, needed in ARCHITECTURES.get(platform.machine(), {}).items():
        path = folder / _built_name(architecture)
        if path.is_file() and needed <= _features():
            yield path


def _built_name(architecture: str) -> str:
    return f"kernels-{architecture}-{hashlib.sha256(_text()).hexdigest()[:16]}.so"


def _text() -> bytes:
    return b"".join(source.read_bytes() for source in SOURCES)


def _compiler() -> str:
    """The compiler's command, with the flags that `CXX` has, if any. Raises FileNotFoundError if there is none."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise FileNotFoundError(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    return compiler


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "unmask"


def _key() -> str:
    """A hash of sources, compiler and processor: different machines may share a home folder."""
    lines = [line for line in _processor() if line.startswith(("flags", "Features", "model name"))]
    processor = platform.processor() + platform.machine() + "".join(sorted(set(lines)))
    return hashlib.sha256(_text() + repr((_compiler(), FLAGS, processor)).encode()).hexdigest()[:16]


def _features() -> set[str]:
    """CPU features that the system lets programs use, by Linux's names."""
    line = next((line for line in _processor() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


@cache
def _processor() -> tuple[str, ...]:
    """Lines of `/proc/cpuinfo`, for all cores; empty where there is no such file."""
    with suppress(OSError):
        return tuple(Path("/proc/cpuinfo").read_text().splitlines())
    return ()


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in build(Path(sys.argv[1])))
