"""Imports point down: who may know whom, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "radixbackend"

ALL = ("errors", "types")
"""What everyone may import, besides files of their own package."""

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # values
    "errors": (),
    "types": (),
    "config": (),
    "engine.plan": ("engine.grammar.base",),
    # the cache: tokens → slots
    "engine.slot_pool": ("engine.plan",),
    "engine.radix_tree": ("engine.plan",),
    "engine.prefix_cache": ("engine.plan", "engine.radix_tree", "engine.slot_pool"),
    # the scheduler
    "engine.request": ("engine.grammar.base", "engine.plan", "engine.prefix_cache"),
    "engine.waiting": ("engine.request",),
    "engine.flights": ("engine.plan", "engine.prefix_cache"),
    "engine.roster": ("engine.flights", "engine.plan", "engine.prefix_cache", "engine.request", "engine.waiting"),
    "engine.commit": ("engine.plan", "engine.prefix_cache", "engine.request", "engine.roster"),
    "engine.scheduler": (
        "engine.commit",
        "engine.plan",
        "engine.prefix_cache",
        "engine.request",
        "engine.roster",
        "engine.waiting",
    ),
    # the executor
    "engine.kv_store": (),
    "engine.native": (),
    "engine.attention": ("engine.kv_store", "engine.native", "engine.plan"),
    "engine.runner": ("engine.plan",),
    "engine.transfer": ("engine.plan",),
    "engine.rope": (),
    "engine.processor": (),
    "engine.model_loader": ("engine.processor", "engine.rope"),
    "engine.probe": ("engine.attention.base",),
    "engine.model_runner": (
        "engine.attention.base",
        "engine.cuda_graphs",
        "engine.kv_store",
        "engine.model_loader",
        "engine.plan",
        "engine.probe",
        "engine.runner",
        "engine.transfer",
        "engine.vision",
    ),
    "engine.vision": ("engine.model_loader", "engine.plan"),
    "engine.cuda_graphs": ("engine.attention.base", "engine.plan", "engine.transfer"),
    "engine.elementwise": ("engine.native", "engine.triton_elementwise"),
    "engine.triton_elementwise": (),
    "engine.linear": ("engine.native", "engine.rounding"),
    "engine.halves": ("engine.elementwise", "engine.linear", "engine.native"),
    "engine.stack": ("engine.attention.base", "engine.halves", "engine.linear"),
    "engine.fuse": (
        "engine.elementwise",
        "engine.halves",
        "engine.linear",
        "engine.model_loader",
        "engine.probe",
        "engine.stack",
    ),
    "engine.prepack": ("engine.linear", "engine.model_loader", "engine.probe"),
    "engine.rounding": ("engine.native",),
    "engine.quantize": ("config", "engine.linear", "engine.rounding", "engine.model_loader"),
    "engine.sequential_runner": ("engine.model_loader", "engine.plan", "engine.probe", "engine.runner"),
    "engine.self_check": (
        "engine.attention.base",
        "engine.kv_store",
        "engine.model_loader",
        "engine.model_runner",
        "engine.plan",
        "engine.probe",
        "engine.runner",
        "engine.sequential_runner",
    ),
    "engine.images": ("engine.plan",),
    "engine.image_check": (
        "engine.images",
        "engine.model_loader",
        "engine.model_runner",
        "engine.plan",
        "engine.probe",
        "engine.runner",
        "engine.self_check",
    ),
    "engine.grammar": ("token_bytes",),
    "engine.contention": ("engine.native",),
    "engine.draw": ("engine.grammar.base", "engine.native", "engine.transfer"),
    "engine.sampler": ("engine.draw", "engine.grammar.base", "engine.plan", "engine.runner", "engine.transfer"),
    "engine.embedder": ("engine.model_loader", "engine.probe"),
    "engine.executor": ("engine.plan", "engine.runner", "engine.sampler"),
    "engine.memory": ("config", "engine.model_loader", "engine.plan", "engine.runner"),
    # text and structure
    "token_bytes": (),
    "tokenizer": (),
    "structured": ("engine.grammar.base",),
    # how models write
    "chat.nodes": (),
    "chat.message": (),
    "chat.request": ("chat.message",),
    "chat.formats": ("chat.nodes",),
    "chat.reasoning": ("chat.formats", "chat.nodes"),
    "chat.tools": ("chat.formats", "chat.request"),
    # plugins
    "hookspecs": (),
    "builtin_plugin": (
        "chat.reasoning",
        "chat.tools",
        "config",
        "engine.attention",
        "engine.grammar",
        "engine.model_loader",
        "engine.radix_tree",
        "hookspecs",
    ),
    "plugins": ("", "builtin_plugin", "hookspecs"),
    "metrics": ("hookspecs",),
    # the engine
    "engine.loop": ("engine.plan", "engine.request", "engine.scheduler"),
    "engine.intake": ("engine.grammar", "engine.images", "engine.plan", "engine.request", "structured", "tokenizer"),
    "engine.channel": ("engine.request",),
    "engine.answer": ("engine.intake", "engine.request"),
    "engine.streams": ("engine.answer", "engine.channel", "engine.intake"),
    "engine.build": ("config", "engine", "plugins", "structured", "tokenizer"),
    "engine.engine": (
        "config",
        "engine.answer",
        "engine.build",
        "engine.channel",
        "engine.intake",
        "engine.loop",
        "engine.streams",
    ),
    # its users
    "backend": ("config", "engine.engine", "plugins"),
    "cache_view": (),
    "chat": ("backend", "structured", "token_bytes", "tokenizer"),
    "openai_api": ("", "backend", "cache_view", "chat", "token_bytes"),
    "openai": ("backend", "chat.sdk", "openai_api"),
    "cli": ("", "backend", "cache_view", "chat", "config", "metrics", "openai_api", "plugins", "tokenizer"),
    "cli.doctor": ("cli", "config", "engine.linear", "plugins"),  # it says what would be used here
}
"""Module or package → what it may import at run time; a package stands for all of its files, "" for public names."""

NO_TORCH = (
    "engine.request",
    "engine.flights",
    "engine.roster",
    "engine.commit",
    "engine.scheduler",
    "engine.waiting",
    "engine.prefix_cache",
    "plugins",
    "metrics",
    "cli",
)


def modules() -> list[str]:
    files = (file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py"))
    return sorted(".".join(p for p in file.parts if p != "__init__") for file in files)


MODULES = modules()


@cache
def runtime_imports(module: str) -> frozenset[str]:
    """What a module imports of this package, at the top or inside functions, but not for annotations alone."""
    file = PACKAGE.joinpath(*module.split(".")).with_suffix(".py") if module else PACKAGE / "__init__.py"
    if not file.exists():
        file = file.with_suffix("") / "__init__.py"
    return frozenset(_imports(ast.parse(file.read_text(encoding="utf-8"))))


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and isinstance(node.test, ast.Name):
        for child in node.orelse:
            yield from _imports(child)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        for name in node.names:
            yield from _resolved(node.module or "", name.name)
    elif isinstance(node, ast.Import):
        for name in node.names:
            yield from _resolved(name.name)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child)


def _resolved(module: str, name: str | None = None) -> Iterator[str]:
    """``from radixbackend.engine import plan`` and ``import radixbackend.engine.plan`` are both engine.plan."""
    top, _, rest = module.partition(".")
    if top == "radixbackend":
        full = f"{rest}.{name}".lstrip(".")
        yield full if name and full in MODULES else rest


def owner(module: str) -> str | None:
    """The entry of the table that a module falls under: itself, or the nearest package above."""
    while module and module not in MAY_IMPORT:
        module = module.rpartition(".")[0]
    return module or None


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == p or (p and module.startswith(f"{p}.")) for p in packages)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("", "engine")])
def test_imports_point_down(module: str) -> None:
    place = owner(module)
    assert place, "a new module: say in MAY_IMPORT what it may know, and in docs/architecture.md what it owns"
    wrong = {name for name in runtime_imports(module) if not within(name, (*ALL, place, *MAY_IMPORT[place]))}
    assert not wrong


def test_packages_import_nothing() -> None:
    assert runtime_imports("") == runtime_imports("engine") == frozenset()


def test_table_has_no_cycle() -> None:
    entries = {
        place: [p for p in MAY_IMPORT if p != place and within(p, allowed) and not within(place, (p,))]
        for place, allowed in MAY_IMPORT.items()
        if place != "engine.build"  # it may import whatever it puts together
    }
    graphlib.TopologicalSorter(entries).prepare()


def test_modules_have_no_cycle() -> None:
    graphlib.TopologicalSorter({m: runtime_imports(m) - {m, ""} for m in MODULES}).prepare()


def reachable(module: str) -> set[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        if (found := todo.pop()) not in seen:
            seen.add(found)
            todo.extend(runtime_imports(found) - {""})
    return seen


def test_scheduler_and_runner_do_not_know_each_other() -> None:
    assert "engine.prefix_cache" in reachable("engine.scheduler")
    assert "engine.attention.base" in reachable("engine.model_runner")
    assert not {m for m in reachable("engine.scheduler") if within(m, ("engine.model_runner", "engine.attention"))}
    assert "engine.scheduler" not in reachable("engine.model_runner")
    assert reachable("engine.scheduler") & reachable("engine.model_runner") <= {
        "engine.grammar.base",
        "engine.plan",
        "errors",
        "types",
    }


def test_no_torch_above_the_executor() -> None:
    names = ", ".join(f"radixbackend.{module}" for module in NO_TORCH)
    script = f"import sys, {names}; print({{'torch', 'transformers'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_third_party_imports_are_declared() -> None:
    """What is imported is a dependency or an extra of ours, not something another dependency happens to bring."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = [r for name, extra in project["optional-dependencies"].items() if name != "dev" for r in extra]
    declared = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in (*project["dependencies"], *extras)}  # type: ignore[index]
    distributions = packages_distributions()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for name in _imported_names(node) - set(sys.stdlib_module_names) - {"radixbackend"}:
                owners = {d.lower().replace("_", "-") for d in distributions.get(name, [name])}
                assert owners & declared, f"{file.relative_to(PACKAGE)} imports {name}"


def _imported_names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return {a.name.partition(".")[0] for a in node.names} if isinstance(node, ast.Import) else set()


def test_the_test_can_tell() -> None:
    """Sensitivity: annotations are let through, imports inside functions are not."""
    source = "if TYPE_CHECKING:\n    import radixbackend.cli\ndef f():\n    from radixbackend.engine import plan, loop"
    assert set(_imports(ast.parse(source))) == {"engine.plan", "engine.loop"}
