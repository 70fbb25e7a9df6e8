"""``radix tree``: the radix tree of a model's cache, drawn."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from radixbackend.cache_view import CacheNode, CacheView, view_cache
from radixbackend.cli.options import EngineOptions, ServerKey, engine_options, text_of
from radixbackend.errors import (
    AuthenticationError,
    ConfigError,
    InvalidRequestError,
    RemoteError,
    ServerUnreachableError,
    UnsupportedByServerError,
)
from radixbackend.types import EngineStats, GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from rich.tree import Tree

    from radixbackend.backend import SharedBackend
    from radixbackend.chat import ChatRequest

MOST_CHILDREN = 12
"""Branches drawn below one node."""

ROOM = 24
"""Characters of an excerpt at least, however deep it is."""

SENTIMENT = (
    ("The room was clean and the staff were kind.", "positive"),
    ("Cold soup, and nobody said sorry.", "negative"),
    ("We shall come back every summer.", "positive"),
)
REVIEWS = ("The view of the sea is a dream.", "The lift was broken for a week.", "The bed was too hard.")
TOPICS = (("Shares fell after the bank's report.", "money"), ("The striker scored twice in the rain.", "sport"))
NEWS = ("The keeper saved a penalty.", "The price of bread has doubled.")


def tree(
    model: Annotated[str | None, typer.Argument(help="As for the other commands; none with --url.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Prompts, one on each line; in a .jsonl file each is a string or a list of chat messages.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate for each prompt.")] = 8,
    url: Annotated[
        str | None, typer.Option(help="Look at this server instead, which was started with --expose-cache.")
    ] = None,
    api_key: ServerKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the nodes as JSON.")] = False,
    option: EngineOptions = None,
) -> None:
    """Run some prompts, then draw the radix tree: what they share, its size, and how often it was found."""
    from rich.console import Console

    if (model is None) == (url is None):
        raise typer.BadParameter("give a model, or a server with --url")
    seen = fetch(url, api_key) if url else _after_running(model or "", prompts, max_tokens, engine_options(option))
    if as_json:
        print(json.dumps(asdict(seen), indent=2))
        return
    console = Console(markup=False, highlight=False)
    console.print(draw(seen, console.width))


def _after_running(model: str, prompts: Path | None, max_tokens: int, options: dict[str, Any]) -> CacheView:
    from radixbackend.backend import get_backend

    given = read_prompts(prompts) if prompts else list(demonstration())
    with get_backend(model, **options) as share:
        run(share, given, max_tokens)
        return view_cache(share)


# -- what is run -----------------------------------------------------------------------------------------------------


def demonstration() -> Iterator[ChatRequest]:
    """Chats of two kinds; those of one kind share an instruction and its examples."""
    from radixbackend.chat import ChatRequest, Message

    def few_shot(task: str, shots: Iterable[tuple[str, str]], question: str) -> ChatRequest:
        turns = [turn for asked, said in shots for turn in (Message("user", asked), Message("assistant", said))]
        return ChatRequest((Message("system", task), *turns, Message("user", question)))

    for review in REVIEWS:
        yield few_shot("Is this review positive or negative? Answer with one word.", SENTIMENT, review)
    for news in NEWS:
        yield few_shot("Which topic is this news about? Answer with one word.", TOPICS, news)


def read_prompts(file: Path) -> list[str | ChatRequest]:
    """Texts, or chats; blank lines do not count."""
    from radixbackend.chat import ChatRequest

    found: list[str | ChatRequest] = []
    for number, line in enumerate(text_of(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value: Any = json.loads(line) if file.suffix == ".jsonl" else line
            if isinstance(value, dict):
                value = value.get("messages")
            found.append(value if isinstance(value, str) else ChatRequest.of(value))
        except (ValueError, InvalidRequestError) as fault:
            raise typer.BadParameter(f"{file}, line {number}: {fault}") from fault
    return found


def run(share: SharedBackend, prompts: Iterable[str | ChatRequest], max_tokens: int) -> None:
    """One after the other, so that each finds what those before it left."""
    from radixbackend.chat import ChatService

    sampling = SamplingParams(max_tokens=max_tokens, temperature=0)
    chats = ChatService(share)
    for prompt in prompts:
        text_or_tokens = prompt if isinstance(prompt, str) else chats.tokenize(prompt)
        share.generate(GenerationRequest(text_or_tokens, sampling))


# -- what a server shows ---------------------------------------------------------------------------------------------


def fetch(url: str, api_key: str | None) -> CacheView:
    """The tree of a server that was started with ``--expose-cache``."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url takes a URL like http://127.0.0.1:8000, not {url!r}")
    address = f"{url.rstrip('/').removesuffix('/v1')}/cache_tree"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            said = json.load(answer)
        nodes = tuple(CacheNode(**node) for node in said["nodes"])
        return CacheView(said["model"], nodes, EngineStats(**said["stats"]))
    except urllib.error.HTTPError as fault:
        if fault.code in (401, 403):
            raise AuthenticationError(f"{url} refuses the key; pass another as --api-key") from fault
        raise UnsupportedByServerError(
            f"{url} does not show its cache (status {fault.code}); radix serve does with --expose-cache"
        ) from fault
    except (OSError, http.client.HTTPException) as fault:
        raise ServerUnreachableError(f"no answer from {address}: {getattr(fault, 'reason', fault)}") from fault
    except (ValueError, KeyError, TypeError) as fault:
        raise RemoteError(f"{address} does not answer as radix serve does: {fault}") from fault


# -- how it is drawn -------------------------------------------------------------------------------------------------


@dataclass
class _Branch:
    """A node and what is below it."""

    node: CacheNode | None
    children: list[_Branch] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens, with those below."""
        own = self.node.tokens if self.node else 0
        return own + sum(child.size for child in self.children)


def draw(seen: CacheView, width: int) -> Tree:
    """The tree for a terminal of this width, what is found most often first."""
    from rich.tree import Tree

    drawing = Tree(_heading(seen), guide_style="dim")
    roots = _branches(seen.nodes)
    for namespace, root in roots.items():
        named = namespace is not None or len(roots) > 1
        below = (
            drawing.add(f"cache_salt {namespace!r}" if namespace is not None else "no cache_salt") if named else drawing
        )
        _add(below, root, width - 4 * (1 + named))
    return drawing


def _heading(seen: CacheView) -> str:
    stats = seen.stats
    cached = sum(node.tokens for node in seen.nodes)
    return (
        f"{seen.model}: {_count(cached, 'token')} in {_count(len(seen.nodes), 'node')}\n"
        f"{stats.cached_tokens:,} of {stats.prompt_tokens:,} prompt tokens so far were found here "
        f"({stats.cache_hit_rate:.0%})"
    )


def _branches(nodes: Iterable[CacheNode]) -> dict[str | None, _Branch]:
    """Depth first → nested, for each namespace."""
    roots: dict[str | None, _Branch] = defaultdict(lambda: _Branch(None))
    path: list[_Branch] = []
    for node in nodes:
        path[node.depth - 1 :] = [_Branch(node)]
        parent = path[node.depth - 2] if node.depth > 1 else roots[node.namespace]
        parent.children.append(path[-1])
    return roots


def _add(drawing: Tree, branch: _Branch, width: int) -> None:
    """Everything below ``branch``, on lines of that width."""
    children = sorted(branch.children, key=lambda child: (-child.node.hits, -child.size) if child.node else (0, 0))
    for child in children[:MOST_CHILDREN]:
        if child.node is not None:
            _add(drawing.add(_label(child.node, width)), child, width - 4)
    if rest := children[MOST_CHILDREN:]:
        size = _count(sum(child.size for child in rest), "token")
        drawing.add(f"… {_count(len(rest), 'branch', 'branches')} more, {size}")


def _label(node: CacheNode, width: int) -> Any:
    from rich.text import Text

    facts = [_count(node.tokens, "token")]
    if node.hits:
        facts.append(f"found {_count(node.hits, 'time')}")
    if node.locks:
        facts.append("in use")
    about = ", ".join(facts)
    text = Text(excerpt(node.text, max(ROOM, width - len(about) - 2)), no_wrap=True)
    return text.append(f"  {about}", style="bold green" if node.hits else "dim")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def excerpt(text: str, room: int) -> str:
    """The text on one line of at most ``room`` characters: its beginning, and its end if both do not fit."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text.replace("\n", "⏎"))
    if len(line) <= room:
        return line
    end = room // 3
    return f"{line[: room - end - 3]} … {line[len(line) - end :]}"
