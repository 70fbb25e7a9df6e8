"""Draws the pictures of the documentation: ``python docs/pictures.py`` writes the SVG files beside this one.

They carry their own colours for light and dark surroundings, use the reader's fonts and load nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).parent
STYLE = """
    svg { --ink: #1c2530; --soft: #5b6876; --line: #9aa7b4; --card: #ffffff; --edge: #d5dce3;
          --shared: #0f766e; --on-shared: #ffffff; --own: #e8f3f1; --lane: #f3f6f8; }
    @media (prefers-color-scheme: dark) {
      svg { --ink: #e6edf3; --soft: #9fb0c0; --line: #6b7a89; --card: #12181f; --edge: #2d3843;
            --shared: #0f7f76; --on-shared: #ffffff; --own: #17302e; --lane: #1a222b; }
    }
    text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif;
           font-size: 14px; fill: var(--ink); }
    .soft { fill: var(--soft); font-size: 12.5px; }
    .bold { font-weight: 600; }
    .card { fill: var(--card); stroke: var(--edge); }
    .lane { fill: var(--lane); }
    .own { fill: var(--own); stroke: var(--shared); }
    .shared { fill: var(--shared); stroke: var(--shared); }
    .on-shared { fill: var(--on-shared); }
    .on-shared-soft { fill: var(--on-shared); opacity: 0.85; font-size: 12.5px; }
    .bold.on-shared { fill: var(--on-shared); }
    path { fill: none; stroke: var(--line); stroke-width: 1.6; }
    .dots { stroke-dasharray: 2 4; }
    .head { fill: var(--line); stroke: none; }
"""
HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
    'orient="auto-start-reverse"><path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>'
)


class Drawing:
    """Shapes in the order in which they are painted."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        self._title = title
        self._parts = [f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="12"/>']

    def box(self, x: float, y: float, width: float, height: float, kind: str, radius: int = 8) -> None:
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        style = f' class="{kind}"' if kind else ""
        self._parts.append(f'<text{style} x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>')

    def path(self, data: str, more: str = "") -> None:
        self._parts.append(f'<path{more} d="{data}"/>')

    def line(self, *points: tuple[float, float], kind: str = "") -> None:
        """Straight from point to point, with an arrow's head at the last."""
        style = f' class="{kind}"' if kind else ""
        self.path("M" + " L".join(f"{x:g},{y:g}" for x, y in points), f'{style} marker-end="url(#head)"')

    def svg(self) -> str:
        body = "\n  ".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {self._size} role="img" aria-label="{escape(self._title)}">\n'
            f"  <title>{escape(self._title)}</title>\n  <style>{STYLE}  </style>\n  {HEAD}\n  {body}\n</svg>\n"
        )


# -- the radix tree --------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run of tokens in the tree; a leaf, or a run that a request ends in, names the request."""

    text: str
    tokens: int
    request: str = ""
    below: list[Run] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """That have it in their prompt."""
        return bool(self.request) + sum(run.requests for run in self.below)


TREE = Run(
    "“You are the clerk …”",
    60,
    below=[
        Run(
            "five examples",
            640,
            below=[Run(f"question {i}", 20, f"DSPy, example {i}") for i in (1, 2, 3)],
        ),
        Run(
            "two tools, as JSON",
            180,
            below=[
                Run("“Is room 12 free?”", 40, "LangChain, step 1", [Run("call and result", 90, "LangChain, step 2")])
            ],
        ),
        Run("a retrieved passage", 300, below=[Run("“When is breakfast?”", 25, "LlamaIndex")]),
        Run("“Good morning!”", 30, "OpenAI client"),
    ],
)
COLUMNS = ((24, 184), (250, 178), (470, 178), (690, 150))
ROW, TOP, BOX = 52, 62, 38
REQUESTS = 872


def radix_tree() -> str:
    """Seven requests of four frameworks in one tree."""
    rows = _prompts(TREE)
    drawing = Drawing(1100, TOP + ROW * len(rows) + 46, "Requests of four frameworks share one radix tree of KV cache")
    drawing.text(24, 32, "One radix tree", "bold")
    drawing.text(150, 32, "a filled run is computed once and read by every request behind it", "soft")
    drawing.text(REQUESTS, 32, "Requests", "bold")
    drawing.text(1076, 32, "from the tree", "soft", "end")
    _draw_run(drawing, TREE, rows, 0, 0)
    total = sum(prompt for prompt, _ in rows.values())
    computed = _tokens(TREE)
    y = TOP + ROW * len(rows) + 18
    summary = f"{total:,} prompt tokens in all: {computed:,} computed, {total - computed:,} read from the tree"
    drawing.text(24, y, f"{summary} ({(total - computed) / total:.0%})", "bold")
    return drawing.svg()


def _prompts(tree: Run) -> dict[str, tuple[int, int]]:
    """Request → (tokens of its prompt, those of them that the requests above it have left in the tree)."""
    found: dict[str, tuple[int, int]] = {}
    computed: set[int] = set()

    def walk(run: Run, path: list[Run]) -> None:
        path = [*path, run]
        if run.request:
            cached = sum(step.tokens for step in path if id(step) in computed)
            found[run.request] = (sum(step.tokens for step in path), cached)
            computed.update(id(step) for step in path)
        for child in run.below:
            walk(child, path)

    walk(tree, [])
    return found


def _tokens(run: Run) -> int:
    return run.tokens + sum(_tokens(child) for child in run.below)


def _draw_run(drawing: Drawing, run: Run, rows: dict[str, tuple[int, int]], column: int, first: int) -> float:
    """Draw it and what is below it, from row ``first`` on; returns the height of its middle."""
    x, width = COLUMNS[column]
    chain = run.request != "" and run.below != []  # a request ends here and another goes on: both have a row
    row = first + chain
    middles = []
    for child in run.below:
        middles.append(_draw_run(drawing, child, rows, column + 1, row))
        row += child.requests
    own = TOP + ROW * first + BOX / 2
    middle = own if run.request else sum(middles) / len(middles)
    for target in middles:
        end = COLUMNS[column + 1][0]
        bend = (x + width + end) / 2
        drawing.path(f"M{x + width},{middle} C{bend},{middle} {bend},{target} {end},{target}")
    if run.request:
        prompt, cached = rows[run.request]
        drawing.path(f"M{x + width + 6},{own} L{REQUESTS - 8},{own}", ' class="dots"')
        drawing.text(REQUESTS, own + 5, run.request)
        drawing.text(1076, own + 5, f"{cached:,} of {prompt:,}", "soft", "end")
    shared = run.requests > 1
    drawing.box(x, middle - BOX / 2, width, BOX, "shared" if shared else "own")
    drawing.text(x + 10, middle - 2, run.text, "on-shared" if shared else "")
    about = f"{run.tokens} tokens" + (f", {run.requests} requests" if shared else "")
    drawing.text(x + 10, middle + 13, about, "on-shared-soft" if shared else "soft")
    return middle


# -- the life of a request -------------------------------------------------------------------------------------------

STEP = (182, 48)


def life_of_a_request() -> str:
    """Who does what, on which thread."""
    drawing = Drawing(1100, 436, "The life of a request: your thread, the engine's thread, and grammar workers")
    for y, height in ((24, 92), (132, 196), (344, 68)):
        drawing.box(24, y, 1052, height, "lane", 10)
    drawing.text(40, 46, "your thread or event loop", "soft")
    drawing.text(40, 314, "the engine's thread", "soft")
    drawing.text(40, 366, "worker threads", "soft")
    columns = (40, 244, 452, 660, 868)
    top, middle, store, bottom = 54, 166, 254, 354
    _box(drawing, columns[1], top, "Front desk", "tokens, checks, schema")
    _box(drawing, columns[4], top, "Answer", "text, events, validation")
    for x, name, about in zip(
        columns,
        ("Inbox", "1 Schedule", "2 Run", "3 Sample", "4 Commit"),
        (
            "one command each",
            "longest prefix, budget",
            "one packed forward",
            "masks, one draw a row",
            "drafts, stops, grammar",
        ),
        strict=True,
    ):
        _box(drawing, x, middle, name, about)
    _box(drawing, columns[1], store, "Radix tree", "prefixes → slots", shared=True)
    _box(drawing, columns[2], store, "KV pool", "slots → keys, values", shared=True)
    _box(drawing, columns[3], bottom, "Compile", "schema → grammar")

    width, height = STEP
    centres = [x + width / 2 for x in columns]
    half, below = middle + height / 2, middle + height
    drawing.line((columns[1], top + 24), (centres[0], top + 24), (centres[0], middle - 3))
    for left, right in pairwise(columns):
        drawing.line((left + width, half), (right - 3, half))
    far, above = columns[4] + width + 12, middle - 15
    drawing.line((far - 12, half), (far, half), (far, above), (centres[1], above), (centres[1], middle - 3))
    drawing.text(centres[2] - 30, above - 5, "the next step", "soft")
    drawing.line((centres[4], middle), (centres[4], top + height + 3))
    for centre in centres[1:3]:
        drawing.line((centre, below), (centre, store - 3))
    under = store + height + 14
    drawing.line((centres[4], below), (centres[4], under), (centres[1], under), (centres[1], store + height + 3))
    drawing.text(centres[3] + 14, under - 6, "computed prefixes", "soft")
    drawing.line((centres[3], bottom), (centres[3], below + 3))
    between, aside = columns[2] - 13, bottom + 24
    drawing.line(
        (columns[1] + width, top + 24), (between, top + 24), (between, aside), (columns[3] - 3, aside), kind="dots"
    )
    drawing.text(between + 8, top + 28, "where the answer is constrained", "soft")
    return drawing.svg()


def _box(drawing: Drawing, x: float, y: float, name: str, about: str, *, shared: bool = False) -> None:
    drawing.box(x, y, *STEP, "shared" if shared else "own")
    drawing.text(x + 12, y + 20, name, "bold on-shared" if shared else "bold")
    drawing.text(x + 12, y + 38, about, "on-shared-soft" if shared else "soft")


PICTURES = {"radix-tree.svg": radix_tree, "life-of-a-request.svg": life_of_a_request}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")
        print(FOLDER / name)
