"""The field formats of DSPy's adapters: ChatAdapter's ``[[ ## field ## ]]`` markers, JSONAdapter's objects, ReAct.

Rules. The prompts' fixed parts are those of the adapters, byte for byte: a model this small goes by the letter. What
stands in the fields comes from the other tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.radix_tiny.dialog import Dialog, assistant, dump, system, user
from tools.radix_tiny.tasks import classification, extraction, facts, lookup, records, tools
from tools.radix_tiny.words import Source, later


@dataclass(frozen=True, slots=True)
class Slot:
    """A field of a signature: its name, its Python type as DSPy writes it."""

    name: str
    type: str = "str"
    description: str = ""


@dataclass(frozen=True, slots=True)
class Signature:
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    instructions: str


def _listed(slots: Sequence[Slot]) -> str:
    lines = [f"{at}. `{slot.name}` ({slot.type}): {slot.description}" for at, slot in enumerate(slots, 1)]
    return "\n".join(lines).rstrip(" ") if not slots[-1].description else "\n".join(lines)


def _hint(slot: Slot) -> str:
    """What the adapters say of a value that is not plain text."""
    note = "        # note: the value you produce "
    if slot.type.startswith("Literal"):
        options = slot.type[len("Literal[") : -1].replace("'", "").replace(", ", "; ")
        return f"{note}must exactly match (no extra characters) one of: {options}"
    if slot.type in ("int", "float"):
        return f"{note}must be a single {slot.type} value"
    if slot.type == "bool":
        return f"{note}must be True or False"
    if slot.type.startswith("dict"):
        return f'{note}must adhere to the JSON schema: {{"type": "object", "additionalProperties": true}}'
    return ""


def _asked(slot: Slot, mark: str) -> str:
    return mark + (f" (must be formatted as a valid Python {slot.type})" if slot.type != "str" else "")


def system_text(signature: Signature, *, as_json: bool) -> str:
    objective = signature.instructions.replace("\n", "\n        ")
    head = (
        f"Your input fields are:\n{_listed(signature.inputs)}\nYour output fields are:\n{_listed(signature.outputs)}\n"
        "All interactions will be structured in the following way, with the appropriate values filled in.\n\n"
    )
    inputs = "\n\n".join(f"[[ ## {slot.name} ## ]]\n{{{slot.name}}}" for slot in signature.inputs)
    if as_json:
        shape = ",\n".join(f'  "{slot.name}": "{{{slot.name}}}{_hint(slot)}"' for slot in signature.outputs)
        body = (
            f"Inputs will have the following structure:\n\n{inputs}\n\n"
            f"Outputs will be a JSON object with the following fields.\n\n{{\n{shape}\n}}\n"
        )
    else:
        outputs = "\n\n".join(f"[[ ## {slot.name} ## ]]\n{{{slot.name}}}{_hint(slot)}" for slot in signature.outputs)
        body = f"{inputs}\n\n{outputs}\n\n[[ ## completed ## ]]\n"
    return f"{head}{body}In adhering to this structure, your objective is: \n        {objective}"


def user_text(signature: Signature, values: dict[str, Any], *, as_json: bool, last: bool) -> str:
    text = fields({slot.name: values[slot.name] for slot in signature.inputs})
    if not last:
        return text
    if as_json:
        order = ", then ".join(_asked(slot, f"`{slot.name}`") for slot in signature.outputs)
        return f"{text}\n\nRespond with a JSON object in the following order of fields: {order}."
    first, *rest = (_asked(slot, f"`[[ ## {slot.name} ## ]]`") for slot in signature.outputs)
    order = "".join(f", then {slot}" for slot in rest)
    return (
        f"{text}\n\nRespond with the corresponding output fields, starting with the field {first}{order}, and then "
        "ending with the marker for `[[ ## completed ## ]]`."
    )


def fields(values: dict[str, Any]) -> str:
    return "\n\n".join(
        f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else dump(value)}" for name, value in values.items()
    )


def answer_text(signature: Signature, values: dict[str, Any], *, as_json: bool, indent: int | None = 2) -> str:
    """Demonstrations are indented; an answer under the engine's grammar stands on one line."""
    given = {slot.name: values[slot.name] for slot in signature.outputs}
    if as_json:
        return dump(given, indent=indent)
    return f"{fields(given)}\n\n[[ ## completed ## ]]\n"


def schema(signature: Signature) -> dict[str, Any]:
    """What the JSON adapter asks the engine to enforce."""
    properties: dict[str, Any] = {}
    for slot in signature.outputs:
        if slot.type.startswith("Literal"):
            properties[slot.name] = {"type": "string", "enum": slot.type[len("Literal['") : -2].split("', '")}
        else:
            types = {"int": "integer", "float": "number", "bool": "boolean", "dict[str, Any]": "object"}
            properties[slot.name] = {"type": types.get(slot.type, "string")}
    required = [slot.name for slot in signature.outputs]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _default(inputs: Sequence[Slot], outputs: Sequence[Slot]) -> str:
    given = ", ".join(f"`{slot.name}`" for slot in inputs)
    return f"Given the fields {given}, produce the fields {', '.join(f'`{slot.name}`' for slot in outputs)}."


def _question(s: Source) -> tuple[Signature, Any]:
    inputs, outputs = (
        (Slot(s.any(("question", "question", "query"))),),
        (Slot(s.any(("answer", "answer", "response"))),),
    )
    told = (
        _default(inputs, outputs)
        if s.chance(0.6)
        else s.of(
            (
                "Answer the question.",
                "Answer questions with short answers.",
                "Answer briefly.",
                "Answer.",
                "Give a short answer.",
                "You answer questions.",
                "Reply with a short fact.",
                *later(
                    "Answer in a word or two.",
                    "Short answers only.",
                    "Tell what is asked.",
                    "Give the answer.",
                    "Answer the user.",
                    "Respond to the question.",
                ),
            )
        )
    )

    def draw() -> dict[str, Any]:
        question, answer = facts.draw(s)
        return {inputs[0].name: question, outputs[0].name: answer, "reasoning": f"The answer is {answer}."}

    return Signature(inputs, outputs, told), draw


def _context(s: Source) -> tuple[Signature, Any]:
    many = s.chance(0.5)
    inputs = (Slot(s.any(("context", "context", "passage")), "list[str]" if many else "str"), Slot("question"))
    outputs = (Slot(s.any(("answer", "answer", "response"))),)
    told = (
        _default(inputs, outputs)
        if s.chance(0.6)
        else s.of(
            (
                "Answer the question from the context.",
                "Answer with a span of the context.",
                "Use the context.",
                "Answer based on the context.",
                "Look up the answer.",
                "Find the answer in the context.",
                "Read and answer.",
                *later(
                    "Give the answer that the context has.",
                    "Answer from the passage.",
                    "What does the context say?",
                    "Search the context.",
                    "Answer questions about a text.",
                    "Take the answer from the context.",
                ),
            )
        )
    )

    def draw() -> dict[str, Any]:
        sentences, questions = lookup.draw_passage(s, s.any((1, 2, 3, 4)))
        question, answer = questions[0]
        context = sentences if many else " ".join(sentences)
        return {
            inputs[0].name: context,
            "question": question,
            outputs[0].name: answer,
            "reasoning": f"The context says {answer}.",
        }

    return Signature(inputs, outputs, told), draw


def _label(s: Source) -> tuple[Signature, Any]:
    aspect, kinds, names = classification.draw_labels(s)
    literal = f"Literal[{', '.join(repr(names[kind]) for kind in kinds)}]"
    inputs = (Slot(s.any(("text", "review", "sentence"))),)
    outputs = (Slot(s.any((aspect, aspect, "label")), literal),)
    told = (
        _default(inputs, outputs)
        if s.chance(0.4)
        else s.of(
            (
                f"Classify the {aspect}.",
                f"Classify the {aspect} of the text.",
                f"Decide the {aspect}.",
                f"Label the {aspect}.",
                "Choose a label.",
                f"Tell the {aspect}.",
                f"Find the {aspect} of a given sentence.",
                *later(
                    f"What is the {aspect}?",
                    f"Give the {aspect}.",
                    f"Judge the {aspect}.",
                    f"Pick the {aspect}.",
                    f"State the {aspect} of the text.",
                    f"Read the text and name its {aspect}.",
                ),
            )
        )
    )

    def draw() -> dict[str, Any]:
        kind = s.any(kinds)
        text = classification.text_of(s, aspect, kind)
        return {inputs[0].name: text, outputs[0].name: names[kind], "reasoning": f"The text is {names[kind]}."}

    return Signature(inputs, outputs, told), draw


def _record(s: Source) -> tuple[Signature, Any]:
    kind = s.any((records.PERSON, records.PRODUCT, records.EVENT))
    python = {"string": "str", "integer": "int", "number": "float"}
    wanted = [kind.subject, *s.some([a for a in kind.attributes if a.clauses], 1, 2)]
    keys = [s.any(attribute.keys) for attribute in wanted]
    if len(set(keys)) < len(keys):
        return _record(s)
    inputs = (Slot("text"),)
    outputs = tuple(Slot(key, python[attribute.type]) for key, attribute in zip(keys, wanted, strict=True))
    told = (
        _default(inputs, outputs)
        if s.chance(0.5)
        else s.of(
            (
                f"Extract the {kind.name}.",
                f"Extract {kind.name} information.",
                "Extract the fields.",
                "Read the text.",
                f"Find the {kind.name} in the text.",
                f"Get the {kind.name}.",
                "Extract structured data.",
                *later(
                    "Fill in the fields.",
                    "Take the values from the text.",
                    "Read the text and fill in the fields.",
                    "Find the values.",
                    "Get the data.",
                    "What does the text say?",
                ),
            )
        )
    )

    def draw() -> dict[str, Any]:
        text, record = extraction.draw_stating(s, kind, wanted)
        return {
            "text": text,
            **dict(zip(keys, (record[a] for a in wanted), strict=True)),
            "reasoning": f"The text is about {record[kind.subject]}.",
        }

    return Signature(inputs, outputs, told), draw


def make(s: Source) -> Dialog:
    """A call of a module, with up to six demonstrations before it."""
    draw_signature = s.any((_question, _context, _label, _record))
    signature, draw = draw_signature(s)
    if s.chance(0.3):
        signature = Signature(signature.inputs, (Slot("reasoning"), *signature.outputs), signature.instructions)
    as_json = s.chance(0.4)
    messages = [system(system_text(signature, as_json=as_json))]
    for _ in range(s.any((0, 0, 1, 2, 3, 4, 6)) if s.chance(0.95) else s.number(8, 12)):
        values = draw()
        messages += [
            user(user_text(signature, values, as_json=as_json, last=False)),
            assistant(answer_text(signature, values, as_json=as_json)),
        ]
    values = draw()
    indent = s.any((2, None))
    messages += [
        user(user_text(signature, values, as_json=as_json, last=True)),
        assistant(answer_text(signature, values, as_json=as_json, indent=indent)),
    ]
    return Dialog("dspy", messages, schema=schema(signature) if as_json else None)


_FINISH = (
    "finish, whose description is <desc>Marks the task as complete. That is, signals that all information for "
    "producing the outputs, i.e. `answer`, are now available to be extracted.</desc>. It takes arguments {}."
)


_AGENT = """{base}

You are an Agent. In each episode, you will be given the fields `question` as input. And you can see your past \
trajectory so far.
Your goal is to use one or more of the supplied tools to collect any necessary information for producing `answer`.

To do this, you will interleave next_thought, next_tool_name, and next_tool_args in each turn, and also when finishing \
the task.
After each tool call, you receive a resulting observation, which gets appended to your trajectory.

When writing next_thought, you may reason about the current situation and plan for future steps.
When selecting the next_tool_name and its next_tool_args, the tool must be one of:

{tools}
When providing `next_tool_args`, the value inside the field must be in JSON format"""


def react(s: Source) -> Dialog:
    """One step of DSPy's ReAct: the call, or the end; or the extraction of the answer from the trajectory."""
    offered = [tool for tool in tools.offer(s) if tool.name != "finish"][:2]
    tool = s.any(offered)
    request, args, output = tool.draw()
    base = "Given the fields `question`, produce the fields `answer`."
    trajectory: dict[str, Any] = {}
    thought = f"I need {tool.name}."
    done = s.chance(0.6)
    if done:
        trajectory = {"thought_0": thought, "tool_name_0": tool.name, "tool_args_0": args, "observation_0": output}
    if done and s.chance(0.4):
        trajectory |= {
            "thought_1": "I have the answer.",
            "tool_name_1": "finish",
            "tool_args_1": {},
            "observation_1": "Completed.",
        }
        signature = Signature((Slot("question"), Slot("trajectory")), (Slot("reasoning"), Slot("answer")), base)
        said = tools.answer_from([output])
        values: dict[str, Any] = {"reasoning": "The tool gave the answer.", "answer": said}
    else:
        listed = [f"({at}) {_tool_line(tool)}" for at, tool in enumerate(offered, 1)]
        listed.append(f"({len(offered) + 1}) {_FINISH}")
        told = _AGENT.format(base=base, tools="\n".join(listed))
        names = ", ".join(repr(tool.name) for tool in offered)
        slots = (
            Slot("next_thought"),
            Slot("next_tool_name", f"Literal[{names}, 'finish']"),
            Slot("next_tool_args", "dict[str, Any]"),
        )
        signature = Signature((Slot("question"), Slot("trajectory")), slots, told)
        values = {"next_thought": thought, "next_tool_name": tool.name, "next_tool_args": args}
        if done:
            values = {"next_thought": "I have the answer.", "next_tool_name": "finish", "next_tool_args": {}}
    as_json = s.chance(0.25)
    inputs = {"question": request, "trajectory": fields(trajectory)}
    messages = [
        system(system_text(signature, as_json=as_json)),
        user(user_text(signature, inputs, as_json=as_json, last=True)),
        assistant(answer_text(signature, values, as_json=as_json, indent=s.any((2, None)))),
    ]
    return Dialog("react", messages, schema=schema(signature) if as_json else None)


def _tool_line(tool: tools.Tool) -> str:
    function = tool.definition["function"]
    properties = {key: {"type": value["type"]} for key, value in function["parameters"]["properties"].items()}
    return f"{tool.name}, whose description is <desc>{function['description']}</desc>. It takes arguments {properties}."
