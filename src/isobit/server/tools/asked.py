"""What a request says of tools: which there are, which may or must be called; checked and made ready to be used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isobit.engine.schema import MOST_BYTES
from isobit.engine.tokenizer import Tokenizer
from isobit.server.errors import wrong
from isobit.server.tools.forms import Form, form_of

MOST_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
CHOICES = ("auto", "none", "required")


@dataclass(frozen=True)
class Asked:
    """Tools of a request.

    Attributes:
        listed: as templates read them, as OpenAI writes them.
        schemas: of their arguments, by name.
        forced: names of those of which one has to be called; none for a free choice.
        many: whether several calls may stand beside each other.
        form: how the model writes calls; None where there are no tools.
    """

    listed: tuple[dict[str, Any], ...] = ()
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    forced: tuple[str, ...] = ()
    many: bool = True
    form: Form | None = None


def read(
    tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None, choice: object, parallel: bool | None
) -> Asked:
    """The tools of a request.

    Args:
        tokenizer: of the model, with its templates.
        tools: as OpenAI writes them.
        choice: ``auto``, ``none``, ``required``, or ``{"type": "function", "function": {"name": ...}}``.
        parallel: whether several calls may stand beside each other; they may where None.

    Raises:
        Refusal: one of these is wrong, or the model's template is not known to have tools.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise wrong("tool_choice asks for a call, and there are no tools", "tool_choice")
        return Asked()
    if len(tools) > MOST_TOOLS:
        raise wrong(f"{len(tools)} tools; at most {MOST_TOOLS} are taken", "tools")
    listed: list[dict[str, Any]] = []
    schemas: dict[str, Mapping[str, Any]] = {}
    for place, tool in enumerate(tools):
        name, about = _tool(tool, f"tools[{place}]")
        if name in schemas:
            raise wrong(f"tools[{place}]: there is another tool named {name!r}", "tools")
        schemas[name] = about["parameters"]
        listed.append({"type": "function", "function": about})
    forced = _choice(choice, tuple(schemas))
    if choice == "none":
        return Asked()
    template = tokenizer.template_for(listed)
    form = None if template is None else form_of(template)
    if form is None:
        raise wrong("this model's chat template has no tools, or writes calls in a way that is not known here", "tools")
    return Asked(tuple(listed), schemas, forced, parallel is not False, form)


def _tool(tool: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    if tool.get("type", "function") != "function":
        raise wrong(f"{where}: only functions are served, not {str(tool.get('type'))[:40]!r}", "tools")
    about = tool.get("function")
    if not isinstance(about, dict):
        raise wrong(f'{where} needs "function": {{"name": ..., "parameters": {{...}}}}', "tools")
    name = about.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(f"{where}.function.name must be 1 to 64 letters, digits, _, . and -", "tools")
    parameters = about.get("parameters")
    parameters = {"type": "object", "properties": {}} if parameters is None else parameters
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise wrong(f"{where}.function.parameters must be a JSON Schema of an object", "tools")
    if len(str(about.get("description", ""))) > MOST_BYTES:
        raise wrong(f"{where}.function.description is longer than {MOST_BYTES} characters", "tools")
    known = {key: value for key, value in about.items() if value is not None and key != "strict"}
    return name, {**known, "parameters": parameters}


def _choice(choice: object, names: tuple[str, ...]) -> tuple[str, ...]:
    if choice in (None, *CHOICES):
        return names if choice == "required" else ()
    if isinstance(choice, dict) and choice.get("type") == "function":
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, dict) else None
        if name in names:
            return (str(name),)
        raise wrong(f"tool_choice names {str(name)[:64]!r}, which is none of the tools", "tool_choice")
    raise wrong(f"tool_choice must be one of {', '.join(CHOICES)}, or name a function", "tool_choice")
