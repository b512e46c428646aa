"""Conversations as prompts: the model's own chat template, run aside, and messages as it reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from isobit.engine.conversation import joined
from isobit.errors import TemplateError
from isobit.models.media import MediaPrompt
from isobit.server import parts
from isobit.server.errors import wrong
from isobit.server.parts import Given
from isobit.server.schema.chat import ROLES, Message
from isobit.server.serving import Serving

MOST_MESSAGES = 4096
# Variables of templates that clients may set; others are part of how prompts are made.
VARIABLES = frozenset({"enable_thinking", "thinking", "reasoning_effort", "reasoning_strategy", "thinking_budget"})


def read_message(message: Message, place: int, media: list[Given]) -> dict[str, Any]:
    """A message as templates read it, and the role that models know.

    Its content is the text of all its parts; where media are among them a list, in which ``{"type": "image"}`` and the
    like stand for them. The media are added to ``media``.

    Raises:
        Refusal: it has a part that is neither, or nothing in it.
    """
    where = f"messages[{place}]"
    if message.role not in ROLES:
        raise wrong(f"{where}.role must be one of {', '.join(sorted(ROLES))}, not {message.role!r}", "messages")
    content: Any = message.content
    if isinstance(content, list):
        content = _content([parts.read(part, f"{where}.content[{n}]") for n, part in enumerate(content)], media)
    if content is None and message.role != "assistant":
        raise wrong(f"{where} has no content", "messages")
    found = {name: value for name, value in msgspec.structs.asdict(message).items() if value is not None}
    if message.tool_calls is not None:
        found["tool_calls"] = [_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(message.tool_calls)]
    role = "system" if message.role == "developer" else message.role
    return found | {"role": role} | ({} if content is None else {"content": content})


def _content(read: list[str | Given], media: list[Given]) -> str | list[dict[str, str]]:
    if all(isinstance(part, str) for part in read):
        return "".join(part for part in read if isinstance(part, str))
    media += [part for part in read if isinstance(part, Given)]
    parts = [{"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in read]
    return list(joined(parts))


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call in the history: its arguments as templates read them, an object and not its text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(f'{where} needs "function": {{"name": ..., "arguments": ...}}', "messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            read = msgspec.json.decode(arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            read = None
        arguments = read if isinstance(read, dict) else arguments
    kept = {name: value for name, value in call.items() if value is not None and name != "index"}
    given = {name: value for name, value in function.items() if value is not None}
    return kept | {"type": "function", "function": given | {"arguments": {} if arguments is None else arguments}}


async def prompt_of(
    serving: Serving,
    messages: Sequence[Message],
    *,
    variables: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    opens: bool = True,
) -> MediaPrompt:
    """A conversation as a prompt: its token ids, and the media in it.

    Args:
        messages: of the conversation.
        variables: of the template.
        tools: that the model may call, as OpenAI writes them.
        opens: end with what opens the assistant's turn.

    Raises:
        Refusal: a message cannot be read, the model has no template or does not take such media, or a variable may not
            be set.
        TemplateError: the template refuses these messages.
        CapacityError: there is no memory for the media.
    """
    if not messages:
        raise wrong("messages is empty: a conversation has at least one", "messages")
    if len(messages) > MOST_MESSAGES:
        raise wrong(f"{len(messages)} messages; at most {MOST_MESSAGES} are read", "messages")
    strange = sorted(set(variables or ()) - VARIABLES)
    if strange:
        raise wrong(
            f"chat_template_kwargs may set {', '.join(sorted(VARIABLES))}, not {', '.join(map(repr, strange[:8]))}",
            "chat_template_kwargs",
        )
    template = serving.tokenizer.template_for(tools)
    if template is None:
        raise wrong("this model has no chat template: it goes on with texts (/v1/completions)", "messages")
    media: list[Given] = []
    read = [read_message(message, place, media) for place, message in enumerate(messages)]

    options = {"tools": tools, "add_generation_prompt": opens, **dict(variables or {})}
    try:
        if not media:
            return await serving.aside(lambda: serving.llm.media_prompt(template, read, **options))
        return await serving.media.prompt(
            media, lambda found: serving.llm.media_prompt(template, read, found, **options)
        )
    except TemplateError as error:
        broken = _no_object(read)
        if broken is None or error.of_model:
            raise
        raise wrong(
            f"{broken} is no JSON object, and the template of this model wants one: {error}", "messages"
        ) from None


def _no_object(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The first call in the history whose arguments are another text than JSON of an object; models write such."""
    for place, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls", ())):
            if isinstance(call["function"]["arguments"], str):
                return f"messages[{place}].tool_calls[{number}].function.arguments"
    return None
