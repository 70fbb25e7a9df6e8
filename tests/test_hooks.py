"""Every hook is specified, documented and called."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from radixbackend import builtin_plugin, hookspecs
from radixbackend.plugins import Plugins
from tests.test_docs import python_blocks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "hooks.md"
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("radix_")}


def test_there_are_hooks() -> None:
    assert len(HOOKS) == 12


@pytest.mark.parametrize("hook", HOOKS)
def test_documented(hook: str) -> None:
    text = inspect.getdoc(HOOKS[hook])
    assert text
    assert "alled" in text, "the docstring says when and in which thread the hook is called"
    parameters = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    assert f"### {hook}({parameters})" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", HOOKS)
def test_called_through_its_typed_method(hook: str) -> None:
    method = hook.removeprefix("radix_")
    assert hook in inspect.getsource(getattr(Plugins, method))
    callers = [
        file.name
        for file in (ROOT / "radixbackend").rglob("*.py")
        if file.name != "plugins.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == method
    ]
    assert callers, f"nobody calls Plugins.{method}"


@pytest.mark.parametrize("hook", HOOKS)
def test_typed_method_has_the_hooks_signature(hook: str) -> None:
    spec, method = inspect.signature(HOOKS[hook]), inspect.signature(getattr(Plugins, hook.removeprefix("radix_")))
    parameters = [(p.name, p.annotation) for p in spec.parameters.values()]
    assert parameters == [(p.name, p.annotation) for p in list(method.parameters.values())[1:]]


@pytest.mark.parametrize("hook", HOOKS)
def test_example_is_a_plugin(hook: str) -> None:
    """Each hook's section of the page has a class that registers and implements it."""
    blocks = [block for block in python_blocks(PAGE)[1:] if f"def {hook}(" in block]
    assert blocks
    for block in blocks:
        plugin = next(n for n in ast.parse(block).body if isinstance(n, ast.ClassDef))
        assert len(ast.unparse(plugin).splitlines()) <= 20
        names: dict[str, type] = {"hookimpl": hookspecs.hookimpl}
        exec(compile(ast.Module([plugin], []), str(PAGE), "exec"), names)  # test_docs.py runs all of the block
        example = names[plugin.name]()
        last = Plugins([example], discover=False).describe()[-1]
        assert (last.name, last.hooks) == (type(example).__qualname__, (hook,))


def test_first_example_is_short() -> None:
    source = python_blocks(PAGE)[0]
    plugin = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef))
    assert plugin.end_lineno is not None
    assert plugin.end_lineno - plugin.lineno < 20


def test_builtin_plugin_implements_hooks_and_nothing_else() -> None:
    public = {n for n, f in vars(builtin_plugin).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert public - {"hookimpl"} <= set(HOOKS)
