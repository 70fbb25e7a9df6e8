"""C kernels, compiled where they run: once per machine and version, in about a second.

Rules. Nothing depends on them: every kernel has a counterpart in torch operators, which is taken where no compiler is
found or anything goes wrong. They are compiled for this very processor and kept in the user's cache under a name that
says what they were made of. They share torch's OpenMP, since a second pool of workers beside torch's would slow both
down; so they need the GNU compiler, whose OpenMP torch's builds for Linux use.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from radixbackend.errors import MissingDependencyError

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-tree-pre", "-fopenmp", "-shared", "-fPIC")
# Partial redundancy elimination (tree-pre) takes registers that products with sixteen of them need for their sums.
SOURCES = Path(__file__).parent
TIMEOUT = 60.0
"""Seconds for a compilation."""

LANES = 16
"""Sizes that kernels take are multiples of it; as in vectors.h."""

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""The types that they know, by the numbers that vectors.h gives them."""


def load_kernels(name: str) -> ctypes.CDLL:
    """The library made of ``name``.c; calls of its functions release the GIL.

    Raises `MissingDependencyError` where it cannot be made.
    """
    compiler, openmp = find_compiler(), _openmp()
    try:
        library = _cache() / f"{name}-{_fingerprint(name, compiler, openmp)}.so"
        if not library.exists():
            _compile(SOURCES / f"{name}.c", library, compiler, openmp)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError, subprocess.SubprocessError) as fault:  # RuntimeError: there is no home
        said = getattr(fault, "stderr", None) or str(fault)
        raise MissingDependencyError(
            f"the CPU kernels could not be built by {compiler.path}: {said.strip()}"
        ) from fault


class Compiler(NamedTuple):
    path: str
    version: str


def find_compiler() -> Compiler:
    """A GNU C compiler; raises `MissingDependencyError` if there is none, or none of use."""
    if platform.system() != "Linux":
        raise MissingDependencyError(f"CPU kernels are built on Linux alone, not on {platform.system()}")
    for name in ("gcc", "cc"):
        path = shutil.which(name)
        if path and "Free Software Foundation" in (version := _version(path)):
            return Compiler(path, version)
    raise MissingDependencyError("CPU kernels need gcc: apt install gcc")


def _version(compiler: str) -> str:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _openmp() -> Path:
    """The OpenMP library that torch itself has loaded."""
    home = Path(torch.__file__).parent
    for folder in (home / "lib", home.parent / "torch.libs"):
        for library in sorted(folder.glob("libgomp*")):
            return library
    raise MissingDependencyError("CPU kernels need a torch with GNU OpenMP, which this one lacks")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "radixbackend"


def _fingerprint(name: str, compiler: Compiler, openmp: Path) -> str:
    made_of = [source.read_bytes() for source in (SOURCES / f"{name}.c", *sorted(SOURCES.glob("*.h")))]
    made_of += [text.encode() for text in (*FLAGS, *compiler, str(openmp), _processor())]
    return hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` goes by: a cache may be shared by machines."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _compile(source: Path, library: Path, compiler: Compiler, openmp: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler.path, *FLAGS, str(source), "-o", str(made), str(openmp), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        made.replace(library)  # whole or not at all, whoever else is at it
