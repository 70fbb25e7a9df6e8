"""What the documentation shows is what happens: every block of code runs, every table is the code's, links lead on.

A page is a session: its blocks run in order, in a folder with the model ``my-model``, a ``schema.json`` and a
``prompts.txt``. Python is executed; of a console, each line after ``$`` is, as far as it belongs to this project; data
is parsed; ``text`` is only shown. A server that a console starts runs until the page ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from radixbackend import EngineConfig, errors
from radixbackend.cli import program
from radixbackend.metrics import PrometheusMetrics
from radixbackend.plugins import Plugins

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("cd", "git", "curl", "python", "python3", "source", ".")
"""Programs that consoles may show and that are not ours to test."""

SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": [1, 2]}},
    "required": ["room"],
    "additionalProperties": False,
}


def python_blocks(page: Path) -> list[str]:
    """Blocks tagged ``python``."""
    return [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "python"]


# -- blocks run ------------------------------------------------------------------------------------------------------


class Session:
    """The blocks of one page, one after the other."""

    def __init__(self, page: Path, resources: contextlib.ExitStack) -> None:
        self._page = page
        self._names: dict[str, object] = {"__name__": page.stem}
        self._resources = resources
        self._ports: dict[str, str] = {}  # that the page says → that a server really has

    def run(self, kind: str, code: str) -> None:
        for said, real in self._ports.items():
            code = code.replace(f"localhost:{said}", f"localhost:{real}").replace(
                f"127.0.0.1:{said}", f"127.0.0.1:{real}"
            )
        runners: dict[str, Callable[[str], object]] = {
            "python": lambda code: exec(compile(code, str(self._page), "exec", dont_inherit=True), self._names),
            "console": self._console,
            "json": json.loads,
            "toml": tomllib.loads,
            "text": str,
        }
        assert kind in runners, f"a block is tagged {kind!r}; tags are {', '.join(runners)}"
        runners[kind](code)

    def _console(self, code: str) -> None:
        lines = [line.removeprefix("$ ") for line in code.splitlines() if line.startswith("$ ")]
        assert lines, "what is typed in a console comes after a $"
        for line in lines:
            *feeds, last = line.partition(" #")[0].split(" | ")
            self._command(shlex.split(last), _printed(feeds))

    def _command(self, words: list[str], fed: str) -> None:
        name, *rest = words
        if name == "radix" and rest[0] == "serve":
            self._serve(rest)
        elif name == "radix":
            code, output = radix(rest, fed)
            assert code == 0, f"{shlex.join(words)}: {output}"
        elif name == "pip":
            _check_pip(rest)
        elif name == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(rest) <= set(targets), f"there is no {shlex.join(words)}"
        else:
            assert name in ELSEWHERE, f"{name} is not known here"

    def _serve(self, words: list[str]) -> None:
        said = words[words.index("--port") + 1] if "--port" in words else "8000"
        real = str(_free_port())
        self._ports[said] = real
        self._resources.enter_context(serving([*words, "--port", real], real))


def radix(words: list[str], fed: str = "") -> tuple[int, str]:
    """Run the program; returns its exit code and all that it printed."""
    output = io.StringIO()
    patch = pytest.MonkeyPatch()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), patch.context() as context:
        context.setattr(sys, "stdin", io.StringIO(fed))
        with pytest.raises(SystemExit) as end:
            program.main(words)
    return int(end.value.code or 0), output.getvalue()


def _printed(feeds: list[str]) -> str:
    """What ``echo`` or ``printf`` at the head of a pipe would print."""
    if not feeds:
        return ""
    assert len(feeds) == 1, "a pipe of two"
    name, *words = shlex.split(feeds[0])
    assert name in ("echo", "printf")
    return " ".join(words) + "\n" if name == "echo" else words[0].encode().decode("unicode_escape")


def _check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[0] == "install"
    for extras in re.findall(r"^(?:radixbackend|\.)\[([\w,-]+)\]$", "\n".join(words), re.MULTILINE):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys(), f"there is no extra {extras}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(words: list[str], port: str) -> Iterator[None]:
    """``radix serve``, in a thread of this process."""
    from radixbackend.openai_api import server

    made: list[Any] = []
    make = server.make_server

    def remember(*args: Any) -> Any:
        made.append(make(*args))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "make_server", remember)
        patch.setenv("KEY", "secret")
        thread = threading.Thread(target=radix, args=(words,))
        thread.start()
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert thread.is_alive(), "the server ended"
                    assert time.monotonic() < until, "the server does not answer"
                    time.sleep(0.05)
            yield
        finally:
            for running in made:
                running.should_exit = True
            thread.join(60)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's blocks run."""
    (tmp_path / "my-model").symlink_to(tiny_checkpoint)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "prompts.txt").write_text("When is breakfast?\nWhen is dinner?\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run(page: Path, folder: Path) -> None:
    with contextlib.ExitStack() as resources:
        session = Session(page, resources)
        for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            session.run(kind, code)


@pytest.mark.parametrize(
    ("kind", "code", "fault"),
    [
        ("python", "assert 1 == 2, 'a surprise'", "a surprise"),
        ("console", "$ radix generate my-model", "Missing argument"),
        ("console", "$ radix generate no-model Hello", "no-model"),
        ("console", "$ make nonsense", "there is no make nonsense"),
        ("console", "$ pip install 'radixbackend[nonsense]'", "there is no extra"),
        ("console", "$ rm -r everything", "rm is not known here"),
        ("console", "radix doctor", "after a \\$"),
        ("bash", "true", "tagged 'bash'"),
        ("", "plain", "tagged ''"),
    ],
)
def test_the_test_can_tell(kind: str, code: str, fault: str, folder: Path) -> None:
    with contextlib.ExitStack() as resources, pytest.raises(AssertionError, match=fault):
        Session(ROOT / "README.md", resources).run(kind, code)


def test_quickstart_runs(tmp_path: Path) -> None:
    script = ROOT / "examples" / "quickstart.py"
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr
    for heading in ("One answer", "Many at once", "Streaming", "fits its schema", "Counters"):
        assert heading in run.stdout
    cached = [int(found) for found in re.findall(r"(\d+) of them cached", run.stdout)]
    assert len(cached) == 3
    assert min(cached) > 10, "the system prompt was computed again"


# -- nothing is left out, nothing is out of date ---------------------------------------------------------------------


def load(name: str) -> ModuleType:
    """One of the scripts beside the pages."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load("tables")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "<!-- table" in p.read_text(encoding="utf-8")], ids=lambda p: p.name
)
def test_tables_are_the_codes(page: Path, tables: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.render(text) == text, "a table is behind the code: run python docs/tables.py"


def test_every_table_has_a_place(tables: ModuleType) -> None:
    placed = [name for page in PAGES for name in re.findall(r"<!-- table: (\w+) -->", page.read_text(encoding="utf-8"))]
    assert sorted(placed) == sorted(tables.TABLES)


def test_every_option_is_described(tables: ModuleType) -> None:
    described = [name for name, text in tables.attributes(EngineConfig) if text]
    assert sorted(described) == sorted(field.name for field in dataclasses.fields(EngineConfig))
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in described)


def test_every_metric_is_described() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    names = {metric.name for metric in PrometheusMetrics(model_name="m").registry.collect()}
    assert len(names) > 15
    assert {name for name in names if not re.search(rf"`{name}(_total)?`", page)} == set()


@pytest.mark.parametrize(
    "error", [n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.RadixError)]
)
def test_every_error_has_a_cure(error: str) -> None:
    if error == "RadixError":
        return
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{error}` \| (.+) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 1, "one row, with its causes and its cures"


def test_every_command_is_described() -> None:
    app = program.make_app(Plugins(discover=False))
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"\n## radix {command.name}\n" in page


def test_every_extra_is_described() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    assert {
        e for e in project["optional-dependencies"] if e not in ("dev", "docs") and f"| `{e}` |" not in page
    } == set()


def test_every_core_file_is_on_the_map() -> None:
    """docs/architecture.md has a line for every module, or for its folder, and names none that is gone."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "radixbackend"
    modules = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if p.name != "__init__.py"}
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", page))
    folders = tuple(re.findall(r"\| `([a-z_]+(?:/[a-z_]+)*/)` \|", page))
    assert {m for m in modules - named if not m.startswith(folders)} == set(), "not described"
    assert {n for n in named if not (ROOT / n).exists()} - modules == set(), "described, but gone"


def test_pictures_are_drawn_by_their_script() -> None:
    for name, draw in load("pictures").PICTURES.items():
        assert (DOCS / name).read_text(encoding="utf-8") == draw(), "run python docs/pictures.py"


# -- the site --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings], anchor


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md")), "say in mkdocs.yml where it stands"


def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) >= len(list(DOCS.glob("*.md")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[\"']?(https?:[^\"' >]+)", text)
        assert loaded == [], page.name
