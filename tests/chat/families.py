"""Every built-in call format, with a text as its models write it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from radixbackend.chat.formats import (
    deepseek,
    gemma,
    granite,
    harmony,
    hermes,
    kimi,
    kimi_k3,
    llama,
    mistral,
    phi,
    pythonic,
    xml,
)
from radixbackend.chat.formats.base import CallArguments, CallEnd, CallStart, Piece, Reasoning, Text, ToolFormat

# ruff: noqa: RUF001, E501  # DeepSeek's markers; texts are not broken where models do not break them

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "hourly": {"type": "boolean"},
            "units": {"enum": ["celsius", "kelvin"]},
            "also": {"type": "array", "items": {"type": "string"}},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "get": {"type": "object", "properties": {}, "additionalProperties": False},
}

ROME = ("get_weather", {"city": "Rome", "days": 3})
OSLO = ("get_weather", {"city": "Oslo"})


@dataclass(frozen=True)
class Family:
    """A format, what in a template or vocabulary tells it, and the text of the calls ``ROME`` and (mostly) ``OSLO``."""

    format: ToolFormat
    tells: str
    text: str
    specials: tuple[str, ...] = ()

    @property
    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        return [ROME, OSLO] if self.format.parallel else [ROME]


FAMILIES = [
    Family(
        hermes.HERMES,
        "return a json object within <tool_call></tool_call> XML tags",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    ),
    Family(
        llama.LLAMA,
        '{"name": function name, "parameters": dictionary of argument name and its value}',
        '{"name": "get_weather", "parameters": {"city": "Rome", "days": 3}}; '
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    ),
    Family(
        pythonic.LLAMA,
        "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]",
        "[get_weather(city=\"Rome\", days=3), get_weather(city='Oslo')]",
    ),
    Family(
        pythonic.LFM,
        "<|tool_call_start|>",
        '<|tool_call_start|>[get_weather(city="Rome", days=3), get_weather(city="Oslo")]<|tool_call_end|>',
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Family(
        mistral.LIST,
        "[TOOL_CALLS] [",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}, '
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
        ("[TOOL_CALLS]",),
    ),
    Family(
        mistral.CALLS,
        "[TOOL_CALLS] [ARGS]",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome", "days": 3}[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    Family(
        mistral.CALLS_WITH_ID,
        "[TOOL_CALLS] [CALL_ID] [ARGS]",
        '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Rome", "days": 3}'
        '[TOOL_CALLS]get_weather[CALL_ID]000000001[ARGS]{"city": "Oslo"}',
    ),
    Family(
        deepseek.FENCED,
        "<｜tool▁calls▁begin｜> ```json",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Rome", "days": 3}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"),
    ),
    Family(
        deepseek.BARE,
        "<｜tool▁calls▁begin｜>",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Rome", "days": 3}<｜tool▁call▁end｜>'
        '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ),
    Family(
        deepseek.TAGGED,
        "｜DSML｜ <function_calls>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        ("｜DSML｜",),
    ),
    Family(
        deepseek.TAGGED_V4,
        "｜DSML｜ <tool_calls>",
        '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    ),
    Family(
        deepseek.TAGGED_V4_1,
        "<｜DSML｜ calls>",
        '<｜DSML｜ calls>\n<｜DSML｜ invoke name="get_weather">\n'
        '<｜DSML｜ parameter name="city" string="true">Rome</｜DSML｜ parameter>\n'
        '<｜DSML｜ parameter name="days" string="false">3</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n'
        '<｜DSML｜ invoke name="get_weather">\n<｜DSML｜ parameter name="city" string="true">Oslo</｜DSML｜ parameter>\n'
        "</｜DSML｜ invoke>\n</｜DSML｜ calls>",
    ),
    Family(
        gemma.GEMMA,
        "<|tool_call>call:",
        '<|tool_call>call:get_weather{city:<|"|>Rome<|"|>,days:3}<tool_call|>'
        '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>}<tool_call|>',
        ("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    Family(
        phi.PHI,
        'a single JSON list formatted as functools[{"name": [function name], "arguments": …}, ...]',
        'functools[{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}, '
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
    ),
    Family(
        granite.GRANITE,
        "<|start_of_role|> <|tool_call|>",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}, '
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
        ("<|tool_call|>",),
    ),
    Family(
        harmony.HARMONY,
        "<|channel|> <|message|> <|constrain|>",
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Rome", "days": 3}',
        ("<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>"),
    ),
    Family(
        xml.GLM,
        "<tool_call> <arg_key>",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n"
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
    ),
    Family(
        xml.GLM_DENSE,
        "<tool_call> </arg_key><arg_value> <arg_key>",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value>"
        "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>",
    ),
    Family(
        xml.QWEN_CODER,
        "<tool_call> <function= <parameter=",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n"
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
    ),
    Family(
        xml.SEED,
        "<seed:tool_call> <function= <parameter=",
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Rome</parameter>\n<parameter=days>3</parameter>\n"
        "</function>\n</seed:tool_call>\n"
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Oslo</parameter>\n</function>\n</seed:tool_call>",
        ("<seed:tool_call>", "</seed:tool_call>"),
    ),
    Family(
        kimi.KIMI,
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Rome", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.get_weather:1'
        '<|tool_call_argument_begin|>{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>',
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>"),
    ),
    Family(
        xml.MINIMAX,
        "<minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Rome</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="get_weather">\n'
        '<parameter name="city">Oslo</parameter>\n</invoke>\n</minimax:tool_call>',
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    Family(
        kimi_k3.KIMI_K3,
        "'<|open|>' + tag '<|close|>' + tag '<|sep|>'",
        '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Rome<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
        '<|open|>call tool="get_weather" index="2"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Oslo<|close|>argument<|sep|><|close|>call<|sep|>'
        "<|close|>tools<|sep|>",
        ("<|open|>", "<|close|>", "<|sep|>"),
    ),
]  # fmt: skip

TEMPLATES = {
    "deepseek-v3.2": """
        {%- for call in calls %}{{ '<｜DSML｜function_calls>' if loop.first }}
<｜DSML｜invoke name="{{ call.name }}">
{% for key, value in call.arguments.items() %}{{ '' if loop.first else '\n' -}}
<｜DSML｜parameter name="{{ key }}" string="{{ 'true' if value is string else 'false' }}">
{{- value if value is string else value | tojson }}</｜DSML｜parameter>
        {%- endfor %}
</｜DSML｜invoke>
        {%- endfor %}
</｜DSML｜function_calls>""",
    "minimax": """
        {%- for call in calls %}{{ '<minimax:tool_call>\n' if loop.first }}<invoke name="{{ call.name }}">
{% for key, value in call.arguments.items() %}<parameter name="{{ key }}">
        {{- value if value is string else value | tojson }}</parameter>
{% endfor %}</invoke>
{% endfor %}</minimax:tool_call>""",
    "gemma": """
        {%- macro spell(value) -%}
        {%- if value is string %}<|"|>{{ value }}<|"|>{% elif value is boolean %}{{ value | tojson }}
        {%- elif value is mapping %}{ {%- for key, item in value | dictsort -%}
            {{ key }}:{{ spell(item) }}{{ ',' if not loop.last }}{% endfor %}}
        {%- elif value is sequence %}[{% for item in value %}{{ spell(item) }}{{ ',' if not loop.last }}{% endfor %}]
        {%- else %}{{ value }}{% endif %}{% endmacro -%}
        {%- for call in calls %}<|tool_call>call:{{ call.name }}{{ spell(call.arguments) }}<tool_call|>{% endfor %}""",
    "kimi-k3": """
        {%- for call in calls %}{{ '<|open|>tools<|sep|>' if loop.first -}}
        <|open|>call tool="{{ call.name }}" index="{{ loop.index }}"<|sep|>{% for key, value in call.arguments.items() -%}
        <|open|>argument key="{{ key }}" type="{% if value is boolean %}boolean{% elif value is none %}null
        {%- elif value is number %}number{% elif value is string %}string{% else %}array{% endif %}"<|sep|>
        {{- value if value is string else value | tojson }}<|close|>argument<|sep|>{% endfor %}<|close|>call<|sep|>
        {%- endfor %}<|close|>tools<|sep|>""",
}
"""How the families' own chat templates write the calls of a history, as far as calls go."""


@dataclass
class Read:
    """Pieces put together."""

    content: str = ""
    reasoning: str = ""
    names: tuple[str, ...] = ()
    ids: tuple[str | None, ...] = ()
    arguments: tuple[str, ...] = ()
    ended: int = 0

    @property
    def calls(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(text)) for name, text in zip(self.names, self.arguments, strict=True)]


def join(pieces: list[Piece]) -> Read:
    read = Read()
    for piece in pieces:
        if isinstance(piece, Text):
            read.content += piece.text
        elif isinstance(piece, Reasoning):
            read.reasoning += piece.text
        elif isinstance(piece, CallStart):
            read.names += (piece.name,)
            read.ids += (piece.id,)
            read.arguments += ("",)
        elif isinstance(piece, CallArguments):
            read.arguments = (*read.arguments[:-1], read.arguments[-1] + piece.text)
        elif isinstance(piece, CallEnd):
            read.ended += 1
    return read


def before(family: Family, said: str) -> str:
    """Content, and then room for calls, as this family writes it."""
    if family.format is kimi_k3.KIMI_K3:
        return f"{kimi_k3.RESPONSE}{said}{kimi_k3.RESPONSE_END}"
    return f"{harmony.PREAMBLE}{said}{harmony.NEXT}" if family.format is harmony.HARMONY else said


def content(family: Family, text: str) -> str:
    """The whole answer, as this family writes it."""
    if family.format is kimi_k3.KIMI_K3:
        return before(family, text) + kimi_k3.MESSAGE_END
    return f"{harmony.FINAL}{text}" if family.format is harmony.HARMONY else text
