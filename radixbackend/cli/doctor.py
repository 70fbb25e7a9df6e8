"""``radix doctor``: what is installed, what an engine would use here, what is missing, and what to do about it.

Rules. It must run where nothing else does: every look at the machine or at a package may fail, and a failure is a
finding like any other. What is needed stands in the metadata of this package and is not repeated here. It changes
nothing and needs no network.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radixbackend.config import EngineConfig
from radixbackend.errors import MissingDependencyError
from radixbackend.plugins import Plugins
from radixbackend.types import AdapterInfo

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import Console

PACKAGE = "radixbackend"
FRAMEWORKS = {
    "openai": PACKAGE,
    "langchain-core": "langchain-radix",
    "llama-index-core": "llama-index-llms-radix",
    "dspy": "dspy-radix",
}
"""Each with the package that lets it use this one."""

IMPORTED = ("torch", "transformers", "tokenizers", "safetensors", "xgrammar", "llguidance", "numpy")
"""What an engine cannot do without, so that being installed is not enough: it must import."""

NOT_EXTRAS = ("dev", "docs", "test")
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Package:
    """A package that this one can use. ``version`` is None where it is missing, ``fault`` empty where all is well."""

    name: str
    version: str | None
    wanted: str = ""
    extra: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Framework:
    """A framework, and the package that lets it use this one. A version is None where the package is missing."""

    name: str
    version: str | None
    adapter: str
    adapter_version: str | None


@dataclass(frozen=True)
class Problem:
    """Something that will go wrong. ``fatal``: no engine can run before it is solved."""

    what: str
    cure: str
    fatal: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All that was found."""

    machine: dict[str, str]
    packages: tuple[Package, ...]
    frameworks: tuple[Framework, ...]
    adapters: tuple[AdapterInfo, ...]
    uses: dict[str, str]
    problems: tuple[Problem, ...]

    @property
    def usable(self) -> bool:
        return not any(problem.fatal for problem in self.problems)


def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, what will be used, what is missing and how to install it. Exit code 0: usable."""
    found = examine(context.obj)
    if as_json:
        print(json.dumps({"usable": found.usable, **asdict(found)}, indent=2))
    else:
        from rich.console import Console

        show(found, Console(markup=False, highlight=False))
    if not found.usable:
        raise typer.Exit(1)


def examine(plugins: Plugins) -> Diagnosis:
    """Look at everything."""
    packages = tuple(_packages())
    complete = not any(package.fault and not package.extra for package in packages)
    uses, problems = _engine(plugins) if packages and complete else ({}, [])
    return Diagnosis(
        machine=_machine(),
        packages=packages,
        frameworks=tuple(Framework(n, _version(n), adapter, _version(adapter)) for n, adapter in FRAMEWORKS.items()),
        adapters=tuple(adapter for _, adapter in plugins.adapters()),
        uses=uses,
        problems=(*_package_problems(packages), *problems, *_plugin_problems(plugins)),
    )


# -- packages --------------------------------------------------------------------------------------------------------


def _packages() -> Iterator[Package]:
    """What the metadata of this package asks for: needed first, then extra by extra."""
    seen = set()
    for requirement, extra in sorted(_requirements(), key=lambda pair: (pair[1], pair[0].name)):
        if (requirement.name, extra) not in seen:
            seen.add((requirement.name, extra))
            yield _look(requirement, extra)


def _requirements() -> Iterator[tuple[Requirement, str]]:
    """Each with the extra that brings it, "" for what is needed."""
    try:
        from packaging.requirements import Requirement

        about = metadata.metadata(PACKAGE)
    except (ImportError, metadata.PackageNotFoundError):
        return
    extras = [extra for extra in about.get_all("Provides-Extra") or () if extra not in NOT_EXTRAS]
    for text in about.get_all("Requires-Dist") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement, ""
        else:
            yield from ((requirement, extra) for extra in extras if requirement.marker.evaluate({"extra": extra}))


def _look(requirement: Requirement, extra: str) -> Package:
    name, wanted = requirement.name, str(requirement.specifier)
    version = _version(name)
    if version is None:
        fault = "not installed"
    elif not requirement.specifier.contains(version, prereleases=True):
        fault = f"{version} is installed, {wanted} is needed"
    else:
        fault = _import_fault(name) if name in IMPORTED else ""
    return Package(name, version, wanted, extra, fault)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _import_fault(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as fault:  # whatever a broken installation comes up with
        return f"cannot be imported: {type(fault).__name__}: {_line(fault)}"
    return ""


def _package_problems(packages: Iterable[Package]) -> Iterator[Problem]:
    if not packages:
        yield Problem(
            f"{PACKAGE} or packaging is not installed here, so what else is needed is not known",
            f"pip install {PACKAGE}, or pip install . in its checkout",
            fatal=True,
        )
    for package in packages:
        if package.fault and (not package.extra or package.version is not None):
            force = "--force-reinstall " if "imported" in package.fault else ""
            cure = f"pip install --upgrade {force}'{package.name}{package.wanted}'"
            yield Problem(f"{package.name}: {package.fault}", cure, fatal=not package.extra)


def _plugin_problems(plugins: Plugins) -> Iterator[Problem]:
    for plugin in plugins.describe():
        if plugin.fault:
            package = plugin.name.partition(":")[0]
            yield Problem(
                f"the plugin {plugin.name} is broken and left out: {plugin.fault}",
                f"pip install --upgrade {package}, or pip uninstall {package}",
            )


# -- the machine -----------------------------------------------------------------------------------------------------


def _machine() -> dict[str, str]:
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cores": f"{_cores():g}",
        "memory": _try(lambda: f"{_free_memory() / GIB:.1f} GiB free"),
    }


def _cores() -> float:
    """That this process may use: by its affinity, and by the limit of its container."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def _free_memory() -> int:
    """Bytes, as the engine counts them on a CPU."""
    import psutil

    return int(psutil.virtual_memory().available)


def _container_memory() -> int | None:
    """Bytes that the container's limit leaves, if there is one."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        return max(0, limit - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return None


# -- the engine ------------------------------------------------------------------------------------------------------


def _engine(plugins: Plugins) -> tuple[dict[str, str], list[Problem]]:
    """What an engine with default options would use, and what would go wrong. torch can be imported."""
    import torch

    config = EngineConfig("any")
    gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    try:
        name = f"cuda, {torch.cuda.get_device_name()}" if gpu else "cpu"
        free = torch.cuda.mem_get_info()[0] if gpu else _free_memory()
    except RuntimeError as fault:
        cure = "end what else uses the GPU, or pass the engine device=cpu"
        return {}, [Problem(f"torch finds a GPU and cannot use it: {_line(fault)}", cure, fatal=True)]
    kind, variable = "cuda" if gpu else "cpu", os.environ.get("OMP_NUM_THREADS", "not set")
    share = config.memory_share(kind)
    uses = {
        "device": name,
        "torch": f"{torch.__version__}, built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}",
        "attention": _try(lambda: plugins.make_attention(config.attention, kind).name),
        "linears": "torch" if gpu else _try(_linears),
        "grammar": f"{config.grammar}, and llguidance for what it does not cover",
        "threads": f"{threads} for the forward on a CPU (OMP_NUM_THREADS is {variable})",
        "KV pool": f"at most {free * share / GIB:.1f} GiB: {share:g} of what is free once the model is loaded",
        "hub": "offline: a model is a folder, or in the hub's cache" if _offline() else "hub ids are downloaded",
    }
    problems = (*_gpu_problems(gpu, torch.version.cuda), *_cpu_problems(threads, free, gpu))
    return uses, [*problems, *_kernel_problems(plugins, gpu)]


def _linears() -> str:
    """What computes bfloat16 linear layers on a CPU."""
    import torch

    from radixbackend.engine.linear import load_linear_kernels

    kernels = load_linear_kernels(torch.device("cpu"))
    return f"native, by {kernels.means}" if kernels is not None and kernels.pairs else "torch"


def _gpu_problems(usable: bool, built_for: str | None) -> Iterator[Problem]:
    if not usable and _has_gpu():
        if built_for is None:
            what, cure = "this machine has an NVIDIA GPU, but torch is the CPU build", "pip uninstall torch, then"
        else:
            what = f"this machine has an NVIDIA GPU, but torch (for CUDA {built_for}) cannot use it"
            cure = "compare the driver's CUDA version (nvidia-smi) with torch's; then"
        yield Problem(what, f"{cure} install the CUDA build that pytorch.org names for your driver")
    if usable and _version("flashinfer-python") is None:
        yield Problem("flashinfer is not installed, so attention is slower", f"pip install '{PACKAGE}[cuda]'")
    elif usable and (fault := _import_fault("flashinfer")):
        yield Problem(f"flashinfer {fault}", f"pip install --upgrade --force-reinstall '{PACKAGE}[cuda]'")
    elif usable and not _has_nvcc() and _version("flashinfer-jit-cache") is None:
        yield Problem(
            "flashinfer compiles its kernels with nvcc, which is not here",
            "install the CUDA toolkit and set CUDA_HOME, or pip install flashinfer-jit-cache",
        )


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _has_nvcc() -> bool:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") is not None or (Path(home) / "bin" / "nvcc").exists()


def _cpu_problems(threads: int, free: int, gpu: bool) -> Iterator[Problem]:
    cores = _cores()
    if threads > cores:
        best = max(1, int(cores))
        yield Problem(
            f"torch would use {threads} threads, but this process has {cores:g} cores; each would wait for the others",
            f"export OMP_NUM_THREADS={best}, or pass the engine threads={best}",
        )
    container = _container_memory()
    if not gpu and container is not None and container < free * EngineConfig("any").memory_share("cpu"):
        yield Problem(
            f"the container may use {container / GIB:.1f} GiB more, but {free / GIB:.1f} GiB look free from inside",
            "pass the engine kv_cache_tokens, so that the KV pool does not outgrow the container",
        )
    if free < GIB:
        yield Problem(f"only {free / GIB:.1f} GiB of memory are free", "end other programs, or choose a smaller model")


def _kernel_problems(plugins: Plugins, gpu: bool) -> Iterator[Problem]:
    if gpu or platform.system() != "Linux":
        return
    try:
        plugins.make_attention("native", "cpu")
    except MissingDependencyError as fault:
        yield Problem(f"decodes on the CPU are slower than they could be: {_line(fault)}", "apt install gcc")
    except Exception:
        return  # a plugin's own fault, which is told where attention stands


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _try(look: Callable[[], str]) -> str:
    """What it says, or why it cannot say it."""
    try:
        return look()
    except Exception as fault:  # a look at the machine must not end the others
        return f"unknown ({type(fault).__name__}: {_line(fault)})"


def _line(fault: object) -> str:
    return " ".join(str(fault).split())[:200]


# -- what is printed -------------------------------------------------------------------------------------------------


def show(found: Diagnosis, console: Console) -> None:
    """All of it, problems last."""
    _section(console, "Machine", found.machine)
    needed = [package for package in found.packages if not package.extra]
    _section(console, "Needed", {p.name: p.fault or p.version or "" for p in needed})
    _section(console, "Extras", dict(_extras(found.packages)))
    _section(console, "Frameworks", {framework.name: _adapted(framework) for framework in found.frameworks})
    _section(
        console,
        "Adapters",
        {a.name: f"{a.version} for {a.framework}: {', '.join(a.provides)}" for a in found.adapters},
    )
    _section(console, "An engine with default options would use", found.uses)
    for problem in found.problems:
        console.print(f"\n{'✗' if problem.fatal else '!'} {problem.what}", style="red" if problem.fatal else "yellow")
        console.print(f"  → {problem.cure}")
    console.print()
    console.print("usable" if found.usable else "not usable yet", style="bold green" if found.usable else "bold red")


def _extras(packages: Iterable[Package]) -> Iterator[tuple[str, str]]:
    extras: dict[str, list[Package]] = {}
    for package in packages:
        if package.extra:
            extras.setdefault(package.extra, []).append(package)
    for extra, members in extras.items():
        missing = [member.name for member in members if member.fault]
        if missing:
            yield extra, f"missing {', '.join(missing)} → pip install '{PACKAGE}[{extra}]'"
        else:
            yield extra, ", ".join(f"{member.name} {member.version}" for member in members)


def _adapted(framework: Framework) -> str:
    if framework.version is None:
        return "not installed"
    if framework.adapter_version is None:
        return f"{framework.version}, without its adapter → pip install {framework.adapter}"
    return f"{framework.version}, with {framework.adapter} {framework.adapter_version}"


def _section(console: Console, title: str, facts: dict[str, Any]) -> None:
    from rich.table import Table

    if not facts:
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(f"  {name}", fact)
    console.print(f"\n{title}", style="bold")
    console.print(table)
