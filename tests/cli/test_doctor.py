from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from radixbackend.cli import doctor, program
from radixbackend.cli.doctor import GIB, PACKAGE, examine
from radixbackend.hookspecs import hookimpl
from radixbackend.plugins import PluginInfo, Plugins
from radixbackend.types import AdapterInfo


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Packages that are not installed, or cannot be imported."""

    def hide(*names: str, installed: bool = False) -> None:
        version = metadata.version

        def find(name: str) -> str:
            if name in names and not installed:
                raise metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(metadata, "version", find)
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def found() -> doctor.Diagnosis:
    return examine(Plugins(discover=False))


def test_this_machine_is_usable(radix: Any) -> None:
    code, out, _ = radix("doctor")
    assert code == 0
    assert out.rstrip().endswith("usable")
    for name in ("torch", "transformers", "xgrammar", "llguidance", "openai", "langchain-core", "dspy"):
        assert f"  {name} " in out
    assert metadata.version("torch") in out
    assert re.search(r"  attention +(native|torch) *\n", out)
    assert re.search(r"  linears +(native, by (AMX|AVX-512|AVX2)|torch) *\n", out)


def test_json(radix: Any) -> None:
    code, out, _ = radix("doctor", "--json")
    said = json.loads(out)
    assert (code, said["usable"]) == (0, True)
    assert {"device", "attention", "grammar", "threads", "KV pool"} <= said["uses"].keys()


def test_every_dependency_is_looked_at() -> None:
    packages = found().packages
    asked = metadata.metadata(PACKAGE).get_all("Requires-Dist") or ()
    assert {p.name for p in packages if not p.extra} == {
        text.partition(">")[0].partition("[")[0] for text in asked if "extra ==" not in text
    }
    assert {p.extra for p in packages} >= {"", "cuda", "server", "openai"}
    assert not {p.extra for p in packages} & set(doctor.NOT_EXTRAS)


@pytest.mark.parametrize("name", doctor.IMPORTED)
def test_missing_package(radix: Any, without: Any, name: str) -> None:
    without(name)
    code, out, _ = radix("doctor")
    assert code == 1
    assert f"✗ {name}: not installed" in out
    assert f"→ pip install --upgrade '{name}>=" in out
    assert out.rstrip().endswith("not usable yet")


@pytest.mark.parametrize("name", doctor.IMPORTED)
def test_broken_package(radix: Any, without: Any, name: str) -> None:
    without(name, installed=True)
    code, out, _ = radix("doctor")
    assert code == 1
    assert f"✗ {name}: cannot be imported: ModuleNotFoundError" in out
    assert "--force-reinstall" in out


def test_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "4.57.1" if name == "transformers" else version(name))
    problem = next(p for p in found().problems if p.fatal)
    assert problem.what.startswith("transformers: 4.57.1 is installed, >=")
    assert problem.cure.startswith("pip install --upgrade 'transformers>=")


def test_missing_extra_is_no_problem(radix: Any, without: Any) -> None:
    without("fastapi")
    code, out, _ = radix("doctor")
    assert code == 0
    assert "missing fastapi → pip install 'radixbackend[server]'" in out


def test_framework_without_its_adapter(radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"dspy": "3.1", "dspy-radix": None, "langchain-core": "1.2", "langchain-radix": "0.4", "openai": None}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else real(name))
    code, out, _ = radix("doctor")
    assert code == 0
    assert "3.1, without its adapter → pip install dspy-radix" in out
    assert "1.2, with langchain-radix 0.4" in out
    assert re.search(r"  openai +not installed", out)


def test_nothing_is_installed(tmp_path: Path) -> None:
    """Where nothing but what the program itself is written with can be imported."""
    script = """
import sys
from importlib import metadata
HIDDEN = {"torch", "transformers", "numpy", "psutil", "packaging", "tokenizers", "xgrammar", "llguidance", "jsonschema"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
version = metadata.version
def hidden(name):
    if name in HIDDEN:
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = hidden
from radixbackend.cli import main
main(["doctor"])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1, run.stderr
    assert "not usable yet" in run.stdout
    assert "unknown (ModuleNotFoundError" in run.stdout, "the memory cannot be told without psutil"
    assert "Traceback" not in run.stderr


def test_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    diagnosis = found()
    assert not diagnosis.usable
    assert "pip install radixbackend" in diagnosis.problems[0].cure


# -- what goes wrong together ----------------------------------------------------------------------------------------


def problems() -> str:
    return "\n".join(f"{p.what} → {p.cure}" for p in found().problems if not p.fatal)


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor, "_cores", lambda: 1.5)
    assert "64 threads, but this process has 1.5 cores" in problems()
    assert "export OMP_NUM_THREADS=1" in problems()


def test_container_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    monkeypatch.setattr(doctor, "_free_memory", lambda: 100 * GIB)
    assert found().machine["cores"] == "0.5"
    assert "the container may use 2.0 GiB more, but 100.0 GiB look free" in problems()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert float(found().machine["cores"]) >= 1
    assert "container" not in problems()


@pytest.mark.parametrize(("built_for", "said"), [(None, "torch is the CPU build"), ("13.0", "torch (for CUDA 13.0)")])
def test_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, built_for: str | None, said: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(doctor, "_has_gpu", lambda: True)
    assert said in problems()
    monkeypatch.setattr(doctor, "_has_gpu", lambda: False)
    assert "GPU" not in problems()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Big GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 * GIB, 80 * GIB))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radixbackend.engine.native.build.shutil.which", lambda name: None)
    assert "CPU kernels need gcc" in problems()
    assert found().uses["attention"] == found().uses["linears"] == "torch"


def test_gpu_without_flashinfer(monkeypatch: pytest.MonkeyPatch, gpu: None, without: Any) -> None:
    without("flashinfer-python")
    assert found().uses["device"] == "cuda, Big GPU"
    assert found().uses["KV pool"].startswith("at most 72.0 GiB: 0.9 of what is free")
    assert found().uses["attention"] == "triton"
    assert "flashinfer is not installed" in problems()
    assert "pip install 'radixbackend[cuda]'" in problems()


def test_flashinfer_without_nvcc(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    versions = {"flashinfer-python": "0.6.1", "flashinfer-jit-cache": None}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else real(name))
    monkeypatch.setattr(doctor, "_import_fault", lambda name: "")
    monkeypatch.setattr(doctor, "_has_nvcc", lambda: False)
    assert "compiles its kernels with nvcc, which is not here" in problems()
    monkeypatch.setattr(doctor, "_has_nvcc", lambda: True)
    assert "nvcc" not in problems()
    monkeypatch.setattr(doctor, "_import_fault", lambda name: "" if name != "flashinfer" else "cannot be imported: X")
    assert "flashinfer cannot be imported: X" in problems()


def test_gpu_that_is_taken(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    import torch

    def taken() -> Any:
        raise RuntimeError("CUDA error: all devices are busy")

    monkeypatch.setattr(torch.cuda, "mem_get_info", taken)
    diagnosis = found()
    assert not diagnosis.usable
    assert "all devices are busy" in diagnosis.problems[0].what


class Adapter:
    @hookimpl
    def radix_adapters(self) -> AdapterInfo:
        return AdapterInfo("my-adapter", "langchain", "3.1", ("MyChat",))

    @hookimpl
    def radix_make_attention(self, name: str) -> None:
        raise RuntimeError("no kernel\nhere")


def test_plugins_are_looked_at(radix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins([Adapter()], discover=False)
    plugins._broken.append(PluginInfo("bad:main", "1", fault="X"))
    monkeypatch.setattr(program, "Plugins", lambda: plugins)
    code, out, _ = radix("doctor")
    assert code == 0, "a broken plugin is left out"
    assert "my-adapter  3.1 for langchain: MyChat" in out
    assert "unknown (RuntimeError: no kernel here)" in out
    assert "the plugin bad:main is broken" in out
