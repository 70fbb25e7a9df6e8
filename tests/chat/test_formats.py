"""Call formats: grammar, parser and writer agree, whatever the arguments and however the text is cut."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixbackend.chat import tools
from radixbackend.chat.formats import gemma, harmony, kimi, kimi_k3, mistral
from radixbackend.chat.formats.base import CallArguments, CallStart, Layout, Schemas
from radixbackend.chat.formats.laid_out import LaidOutFormat
from radixbackend.chat.formats.parameters import types_of
from radixbackend.hookspecs import hookimpl
from radixbackend.plugins import Plugins
from radixbackend.types import ModelInfo
from tests.chat.families import FAMILIES, OSLO, ROME, TEMPLATES, TOOLS, Family, Read, before, join

BY_NAME = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.format.name)

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
tricky = st.sampled_from(
    ["</tool_call>", '"}}', "\\", "]", "[get_weather(", "x\ny", '{"name": "', "'", "é日", "1", "null"]
)
plain = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="<"), max_size=12)
arguments = st.fixed_dictionaries(
    {"city": texts | tricky},
    optional={
        "days": st.integers(-5, 2000),
        "hourly": st.booleans(),
        "units": st.sampled_from(["celsius", "kelvin"]),
        "also": st.lists(texts | tricky, max_size=3),
        "note": st.none() | plain.filter(lambda text: text.strip() != "null"),
    },
)
calls = st.lists(st.tuples(st.just("get_weather"), arguments) | st.just(("get", {})), min_size=1, max_size=3)


def read(family: Family, text: str, cuts: list[int] | None = None, *, truncated: bool = False) -> Read:
    """Parse a text cut into pieces of these lengths, over and over."""
    parser, pieces, at, step = family.format.parser(TOOLS), [], 0, 0
    while at < len(text):
        length = cuts[step % len(cuts)] if cuts else len(text)
        pieces += parser.feed(text[at : at + length])
        at, step = at + length, step + 1
    return join(pieces + parser.finish(truncated=truncated))


def spellable(family: Family, given_calls: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Without strings that end a tagged value, which such formats cannot write."""
    ends = gemma.QUOTE if family.format is gemma.GEMMA else getattr(family.format, "after", "").strip()
    if not ends:
        return given_calls
    return [(n, a) for n, a in given_calls if ends not in str(a)] or [OSLO]


@BY_NAME
def test_what_models_write_is_read(family: Family) -> None:
    found = read(family, family.text)
    assert found.calls == family.calls
    assert (found.content, found.ended) == ("", len(family.calls))
    assert found.arguments[0] == '{"city": "Rome", "days": 3}'


@BY_NAME
def test_the_format_is_told_by_the_template(family: Family) -> None:
    assert tools.find(ModelInfo("m", chat_template=family.tells)) is family.format


@BY_NAME
@settings(max_examples=25)
@given(given_calls=calls, cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_what_is_written_is_read_however_it_is_cut(
    family: Family, given_calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    given_calls = spellable(family, given_calls if family.format.parallel else given_calls[:1])
    text = before(family, "Let me see [1].") + family.format.write(given_calls)
    found = read(family, text, cuts)
    assert found.calls == given_calls
    assert found.content == "Let me see [1]."
    assert found.ended == len(given_calls)
    assert found == read(family, text)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40)
@given(given_calls=calls)
def test_what_a_template_writes_is_read(name: str, given_calls: list[tuple[str, dict[str, Any]]]) -> None:
    family = next(family for family in FAMILIES if family.format.name == name)
    given_calls = spellable(family, given_calls)
    environment = jinja2.Environment(trim_blocks=False, lstrip_blocks=False)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    text = environment.from_string(TEMPLATES[name]).render(
        calls=[{"name": name, "arguments": arguments} for name, arguments in given_calls]
    )
    assert read(family, text, [5]).calls == given_calls
    assert family.format is gemma.GEMMA or ("get", {}) in given_calls or text == family.format.write(given_calls)


@BY_NAME
@settings(max_examples=12)
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6), length=st.integers(0, 400))
def test_a_cut_text_gives_what_is_certain(family: Family, cuts: list[int], length: int) -> None:
    text = (before(family, "Look: ") + family.text)[:length]
    found = read(family, text, cuts, truncated=True)
    assert found == read(family, text, truncated=True)
    whole = read(family, before(family, "Look: ") + family.text)
    assert whole.names[: len(found.names)] == found.names
    assert all(full.startswith(part) for full, part in zip(whole.arguments, found.arguments, strict=False))
    more = found.content.removeprefix("Look:").strip()  # half a trigger might as well be text
    assert found.content in "Look:" or family.text.startswith(more)
    assert len(more) < 24


@BY_NAME
def test_names_and_arguments_come_as_early_as_they_are_certain(family: Family) -> None:
    """One character at a time: the name is there before the arguments, and a string's letters with themselves."""
    parser = family.format.parser(TOOLS)
    pieces = [(at, piece) for at, char in enumerate(family.text) for piece in parser.feed(char)]
    rome = family.text.index("Rome")
    assert isinstance(pieces[0][1], CallStart)
    assert pieces[0][0] < rome
    letters = {at: piece.text for at, piece in pieces if isinstance(piece, CallArguments)}
    assert "".join(letters[rome + i] for i in range(4)) == "Rome"


@BY_NAME
def test_without_tools_a_call_is_text(family: Family) -> None:
    parser = family.format.parser({})
    found = join(parser.feed("a ") + parser.feed("b ") + parser.finish(truncated=False))
    assert (found.content, found.calls) == ("a b ", [])


@BY_NAME
def test_a_name_that_is_no_tools_is_text(family: Family) -> None:
    if family.format is harmony.HARMONY:
        pytest.skip("a message to an unknown recipient is content there, without its header")
    text = family.format.write([("unknown", {"a": "b"})])
    assert read(family, text, [3]).content == text
    assert read(family, f"{text} {family.text}").calls[: len(family.calls)] == family.calls or "[" in text


@BY_NAME
def test_one_tools_name_may_begin_anothers(family: Family) -> None:
    schemas: Schemas = {"get": TOOLS["get"], "get_weather": TOOLS["get_weather"], "get_weather_now": TOOLS["get"]}
    for name, values in (("get", {}), OSLO, ("get_weather_now", {})):
        parser = family.format.parser(schemas)
        text = family.format.write([(name, values)])
        found = join([piece for char in text for piece in parser.feed(char)] + parser.finish(truncated=False))
        assert found.calls == [(name, values)]


@BY_NAME
def test_templates_get_ids_that_they_accept(family: Family) -> None:
    format = family.format
    assert format.new_id() != format.new_id()
    assert format.template_id(format.new_id())
    if isinstance(format, mistral.MistralFormat):
        own = format.new_id()
        assert (len(own), format.template_id(own)) == (9, own)
        assert len(format.template_id("call_0123456789")) == 9
        assert format.template_id("call_a") != format.template_id("call_b")


def test_some_texts_have_ids() -> None:
    family = next(family for family in FAMILIES if family.format is kimi.KIMI)
    assert read(family, family.text).ids == ("functions.get_weather:0", "functions.get_weather:1")
    family = next(family for family in FAMILIES if family.format is mistral.CALLS_WITH_ID)
    assert read(family, family.text).ids == ("a1B2c3D4e", "000000001")


def test_families_that_share_tokens_are_told_apart() -> None:
    def found(template: str, *tokens: str, kind: str = "") -> str:
        return tools.find(ModelInfo("m", kind, template, frozenset(tokens))).name

    assert found("", "[TOOL_CALLS]", "[ARGS]") == "mistral"
    assert found("[TOOL_CALLS] [", "[TOOL_CALLS]", "[ARGS]") == "mistral-list"
    assert found("<tool_call>", "<|tool_call|>", kind="granite") == "hermes"
    assert found('{"name": function name, "parameters": dictionary', "<|python_tag|>", kind="llama4_text") == "llama"
    assert found("", kind="llama4_text") == "llama-pythonic"
    assert found("", kind="gpt_oss") == "harmony"
    assert found("") == "hermes"


def test_harmony_channels() -> None:
    family = next(family for family in FAMILIES if family.format is harmony.HARMONY)
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment."
        "<|end|><|start|>assistant to=functions.get<|channel|>commentary json<|message|>{}<|call|>"
    )
    for cuts in ([1], [2, 5], [1000]):
        found = read(family, text, cuts)
        assert (found.reasoning, found.content, found.calls) == ("Hm.", "One moment.", [("get", {})])
    final = read(family, "<|channel|>final<|message|>Hello <|world|>!<|return|>", [3])
    assert (final.content, final.reasoning) == ("Hello <|world|>!", "")
    assert read(family, "Plain words.", [4]).content == "Plain words."


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'it\\'s \"so\"'", 'it\'s "so"'),
        ("'a\\x41\\u00e9\\n'", "aAé\n"),
        ("[True, None, {'a': 1.5e3, 'b': ()}]", [True, None, {"a": 1500.0, "b": []}]),
        ("-12", -12),
        ("'),'", "),"),
    ],
)
def test_python_literals(written: str, value: Any) -> None:
    family = next(family for family in FAMILIES if family.format.name == "llama-pythonic")
    for cuts in ([1], [3], [1000]):
        assert read(family, f"[get_weather(city={written}, days=1)]", cuts).calls == [
            ("get_weather", {"city": value, "days": 1})
        ]


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"enum": ["a", 1, None]}, {"string", "integer", "null"}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": ["array", "null"]}}}, {"array", "null"}),
        ({"anyOf": [{"type": "integer"}, {"const": True}]}, {"integer", "boolean"}),
    ],
)
def test_types(schema: dict[str, Any], types: set[str]) -> None:
    assert types_of(schema) == types


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "null"]}, "12", "12"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "number"}, "12", 12),
        ({}, '{"a": [1]}', {"a": [1]}),
        ({}, "words", "words"),
    ],
)
def test_tagged_values_have_the_schemas_type(schema: dict[str, Any], written: str, value: Any) -> None:
    family = next(family for family in FAMILIES if family.format.name == "glm")
    parser = family.format.parser({"f": {"properties": {"x": schema}}})
    text = f"<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{written}</arg_value>\n</tool_call>"
    assert join(parser.feed(text) + parser.finish(truncated=False)).calls == [("f", {"x": value})]


def test_a_tag_may_say_whether_a_value_is_a_string() -> None:
    schema = {"f": {"properties": {"x": {"type": ["string", "integer"]}}}}
    for family in FAMILIES:
        if getattr(family.format, "kinds", None):
            for value in ("12", 12, "null"):
                parser = family.format.parser(schema)
                text = family.format.write([("f", {"x": value})])
                assert join(parser.feed(text) + parser.finish(truncated=False)).calls == [("f", {"x": value})]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('a:[{b:<|"|>x<|"|>},{}],c:{d:[[1],[]]}', {"a": [{"b": "x"}, {}], "c": {"d": [[1], []]}}),
        ('<|"|>a b<|"|>:None,c:True', {"a b": None, "c": True}),
        ('a:word, b : -1.5e3 ,c:<|"|>{"x": 1}, \\<|"|>', {"a": "word", "b": -1500.0, "c": '{"x": 1}, \\'}),
    ],
)
def test_gemmas_spelling(written: str, arguments: dict[str, Any]) -> None:
    family = next(family for family in FAMILIES if family.format is gemma.GEMMA)
    text = f"<|tool_call>call:get_weather{{{written}}}<tool_call|>"
    for cuts in ([1], [4, 3], [1000]):
        assert read(family, text, cuts).calls == [("get_weather", arguments)]


def test_a_layout_is_all_a_plugin_needs() -> None:
    format = LaidOutFormat("mine", Layout(begin="<call>", middle=" ", end="</call>", trigger="<call>"))
    parser = format.parser(TOOLS)
    found = join(
        parser.feed('Hm. <call>get_weather {"city": "Rome", "days": 3}</call>') + parser.finish(truncated=False)
    )
    assert (found.content, found.calls) == ("Hm.", [ROME])

    class Plugin:
        @hookimpl
        def radix_tool_format(self, model: ModelInfo) -> LaidOutFormat | None:
            return format if model.mentions("<call>") else None

    plugins = Plugins([Plugin()], discover=False)
    assert plugins.tool_format(ModelInfo("m", chat_template="<call>")) is format
    assert plugins.tool_format(ModelInfo("m", chat_template="<tool_call>")) is FAMILIES[0].format
    assert plugins.reasoning_format(ModelInfo("m")) is None


def test_xgrammars_own_formats_agree() -> None:
    """An independent check: what is written here is what xgrammar's grammars for these models accept."""
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string

    plain = {
        "hermes": "qwen_3",
        "llama": "llama",
        "kimi": "kimi",
        "deepseek-v3": "deepseek_r1",
        "deepseek-v3.1": "deepseek_v3_1",
        "glm-4.7": "glm_4_7",
        "qwen-coder": "qwen_3_coder",
    }
    within = {
        "deepseek-v3.2": ("deepseek_v3_2", "\n\n", ""),
        "deepseek-v4": ("deepseek_v4", "\n\n", ""),
        "deepseek-v4.1": ("deepseek_v4_1", "\n\n", ""),
        "minimax": ("minimax", "\n</think>\n\n\n\n\n", ""),
        "kimi-k3": ("kimi_k3", kimi_k3.RESPONSE_END, kimi_k3.MESSAGE_END),
    }
    theirs = {**{ours: (name, "", "") for ours, name in plain.items()}, **within}
    if not hasattr(xgrammar, "get_model_structural_tag"):
        pytest.skip("this xgrammar has no formats of its own")
    offered = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in TOOLS.items()]
    agreed = 0
    for family in FAMILIES:
        name, lead, end = theirs.get(family.format.name, ("", "", ""))
        try:
            tag = xgrammar.get_model_structural_tag(name, tools=offered, tool_choice="required", reasoning="disabled")
        except ValueError:  # no format of ours, or an older xgrammar
            continue
        grammar = xgrammar.Grammar.from_structural_tag(tag)
        assert _is_grammar_accept_string(grammar, lead + family.text + end), name
        assert not _is_grammar_accept_string(grammar, lead + family.text.replace("city", "town") + end), name
        agreed += 1
    assert agreed >= len(plain)


def test_json_text_is_passed_on_as_it_is() -> None:
    text = '{"city": "R\\u00f6m \\"}{\\"", "days": 3}'
    for family in FAMILIES:
        if family.format.name in ("hermes", "llama", "mistral", "kimi", "harmony"):
            written = family.format.write([("get_weather", {"city": "@"})]).replace('{"city": "@"}', text)
            assert read(family, written, [1]).arguments == (text,)
            assert json.loads(text)["city"] == 'Röm "}{"'
