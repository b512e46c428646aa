"""Chat templates: messages to the prompt text a model was trained on, as transformers renders it.

The template is a program by a stranger. It runs in Jinja's immutable sandbox inside a helper process with limits on
processor time, memory and output (:mod:`isobit.engine.template_worker` says why a process).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from isobit.engine.helper import Helper
from isobit.errors import TemplateError, UsageError


@dataclass(frozen=True)
class Limits:
    """What one rendering may cost."""

    seconds: float = 5.0  # of processor time
    memory: int = 512 << 20  # bytes of address space of the rendering process, about 30 MB of which it needs itself
    template: int = 1 << 20  # characters
    output: int = 4 << 20  # characters


LIMITS = Limits()

# What each error kind of the worker means for the user. Fields: message, limits.
FAILURES: dict[str, str] = {
    "raised": "the chat template refuses these messages: {message}",
    "forbidden": "the chat template does something the sandbox forbids: {message}",
    "syntax": "the chat template is not valid Jinja: {message}",
    "memory": "the chat template needs more memory than the limit of {limits.memory} bytes",
    "output": "the chat template writes more than the limit of {limits.output} characters",
    "recursion": "the chat template calls itself deeper than the recursion limit",
    "failed": "the chat template failed: {message}",
    "time": "the chat template ran longer than the limit of {limits.seconds:g} seconds of the processor",
    "crashed": "the chat template crashed its rendering process ({message})",
}

# Which of them are the template's own fault: some always, others where there is little to render.
_ITS_OWN, _ITS_OWN_IF_SHORT = (
    frozenset({"forbidden", "syntax"}),
    frozenset({"time", "memory", "output", "recursion", "crashed"}),
)
_SHORT = 64 << 10  # characters of what is to be rendered, beside the template

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] | None = None,
    limits: Limits = LIMITS,
    **kwargs: Any,
) -> str:
    """Render a conversation with a Hugging Face chat template.

    Args:
        template: Jinja source.
        messages: dicts with ``role`` and ``content`` and whatever else the template reads. Keys with value None count
            as absent; ``thinking`` and ``reasoning`` are also given to the template as ``reasoning_content``.
        tools: tools as JSON schema dicts.
        documents: documents for retrieval-augmented templates.
        add_generation_prompt: end with the header that opens the assistant's turn.
        special_tokens: ``bos_token``, ``eos_token``, ... (:attr:`Tokenizer.special_tokens`).
        limits: what the rendering may cost.
        kwargs: further variables, e.g. ``enable_thinking=False``. They win over ``special_tokens``.

    Returns:
        The prompt. It contains the special tokens as text: encode it with ``add_special=False``.

    Raises:
        UsageError: the messages, tools or documents have the wrong form.
        TemplateError: the template is invalid, forbidden, too expensive, or refuses the messages.
    """
    if not messages:
        raise UsageError("the conversation is empty: a chat template needs at least one message")
    if len(template) > limits.template:
        message = f"the chat template has {len(template)} characters; the limit is {limits.template}"
        raise TemplateError(message, of_model=True)
    _require_dicts("messages", messages)
    _require_dicts("tools", tools or ())
    _require_dicts("documents", documents or ())
    variables = {
        **(special_tokens or {}),
        **kwargs,
        "messages": [_message(message) for message in messages],
        "tools": None if tools is None else list(tools),
        "documents": None if documents is None else list(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    request = {"template": template, "variables": _plain(variables), "max_output": limits.output}
    asked = json.dumps(request)
    reply = _worker(limits).ask(asked)
    if "text" in reply:
        return _whole_characters(str(reply["text"]))
    kind, short = reply["error"], len(asked) - len(json.dumps(template)) <= _SHORT
    raise TemplateError(
        FAILURES[kind].format(message=reply.get("message", ""), limits=limits),
        of_model=kind in _ITS_OWN or (kind in _ITS_OWN_IF_SHORT and short),
    )


def _whole_characters(text: str) -> str:
    """The text, if every character of it is one.

    Raises:
        TemplateError: it holds half a surrogate pair; messages and templates can write those as escapes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TemplateError(
            f"the rendered conversation holds half a character (U+{ord(text[error.start]):04X}, a lone surrogate): "
            "it stands in a message or in the chat template, perhaps as an escape"
        ) from None
    return text


def _require_dicts(what: str, items: Sequence[Any]) -> None:
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise UsageError(f"{what}[{index}] must be a dict, not {type(item).__name__}")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: no None values, reasoning under the names templates read."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in REASONING_FIELDS if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """The value out of JSON's types alone; what has no such form (an image, an array) becomes ``<its type>``."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if callable(getattr(value, "model_dump", None)):  # pydantic, as the OpenAI client's messages are
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"


_workers: dict[tuple[int, Limits], Helper] = {}
_workers_lock = threading.Lock()


def _worker(limits: Limits) -> Helper:
    """The worker of this process with these limits; a forked child gets its own, for pipes cannot be shared."""
    key = (os.getpid(), limits)
    with _workers_lock:
        if key not in _workers:
            _workers[key] = Helper("template_worker.py", (str(limits.seconds), str(limits.memory)), _no_start)
        return _workers[key]


def _no_start(reason: str) -> TemplateError:
    return TemplateError(f"the process that renders chat templates does not start: {reason}", of_model=True)
