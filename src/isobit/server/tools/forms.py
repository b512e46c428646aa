"""How families of models write calls of tools: a row each, found by what their chat templates contain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isobit.server.tools import calls
from isobit.server.tools.calls import Calls, Tools


@dataclass(frozen=True)
class Form:
    """How calls stand in an answer.

    Attributes:
        name: of the family.
        signs: what a template of the family contains, all of it.
        without: what it does not.
        begin: the marks that begin a call.
        end: the mark that ends it; "" for the end of the answer.
        parse: takes the text between them apart.
        frames: marks around all calls; they are no text.
        bare: whether an answer that begins with ``{`` is a call, too.
        inner: marks within a call.
        call: how a call is written: marks in angle quotes, ``{name}``, and ``{arguments}`` as JSON.
        between: what is written between calls.
        interrupts: the mark that ends what a model thinks, too: some stop thinking to call a tool.
        short: whether ids of calls have 9 letters and digits, and nothing else.
        pair: of a call with ``{pairs}`` in it: what stands before and behind each value, with ``{name}`` for its key.
        channels: whether answers are in channels, of which :mod:`isobit.server.channels` takes calls.
    """

    name: str
    signs: tuple[str, ...]
    begin: tuple[str, ...]
    end: str
    parse: Callable[[str, Tools], Calls]
    call: str
    between: str = ""
    without: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    bare: bool = False
    inner: tuple[str, ...] = ()
    interrupts: str = ""
    short: bool = False
    pair: tuple[str, str] = ("", "")
    channels: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All of them; where the tokenizer has one as a token, that token's text is kept in answers."""
        return tuple(mark for mark in (*self.begin, self.end, *self.frames, *self.inner) if mark)


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")

FORMS = (
    Form(
        "glm",
        signs=("<tool_call>", "<arg_key>"),
        begin=("<tool_call>",),
        end="</tool_call>",
        parse=calls.glm,
        inner=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        call="«<tool_call>»{name}\n{pairs}«</tool_call>»",
        pair=("«<arg_key>»{name}«</arg_key>»\n«<arg_value>»", "«</arg_value>»\n"),
        between="\n",
    ),
    Form(
        "qwen3-coder",
        signs=("<tool_call>", "<function=", "<parameter="),
        without=("<seed:tool_call>",),
        begin=("<tool_call>", "<function="),  # the first is left out now and then
        end="</tool_call>",
        parse=calls.functions,
        call="«<tool_call>»\n«<function=»{name}>\n{pairs}</function>\n«</tool_call>»",
        pair=("<parameter={name}>\n", "\n</parameter>\n"),
        between="\n",
    ),
    Form(
        "seed",
        signs=("<seed:tool_call>",),
        begin=("<seed:tool_call>",),
        end="</seed:tool_call>",
        parse=calls.functions,
        call="«<seed:tool_call>»\n<function={name}>\n{pairs}</function>\n«</seed:tool_call>»",
        pair=("<parameter={name}>", "</parameter>\n"),
        between="\n",
    ),
    Form(
        "minimax-m2",
        signs=("<minimax:tool_call>", "<invoke"),
        begin=("<minimax:tool_call>",),
        end="</minimax:tool_call>",
        parse=calls.invokes,
        call='«<minimax:tool_call>»\n<invoke name="{name}">\n{pairs}</invoke>\n«</minimax:tool_call>»',
        pair=('<parameter name="{name}">', "</parameter>\n"),
        between="\n",
    ),
    Form(
        "hermes",
        signs=("<tool_call>",),
        without=("<arg_key>", "<function=", "<minimax:tool_call>"),
        begin=("<tool_call>",),
        end="</tool_call>",
        parse=calls.objects,
        call='«<tool_call>»\n{"name": "{name}", "arguments": {arguments}}\n«</tool_call>»',
        between="\n",
    ),
    Form(
        "kimi",
        signs=_KIMI[:1],
        begin=("<|tool_call_begin|>",),
        end="<|tool_call_end|>",
        parse=calls.kimi,
        frames=_KIMI,
        interrupts=_KIMI[0],
        inner=("<|tool_call_argument_begin|>",),
        call="«<|tool_call_begin|>»functions.{name}:{number}«<|tool_call_argument_begin|>»{arguments}«<|tool_call_end|>»",
    ),
    Form(
        "deepseek-v3",
        signs=(*_DEEPSEEK[:1], "```json"),
        begin=("<｜tool▁call▁begin｜>",),
        end="<｜tool▁call▁end｜>",
        parse=calls.deepseek,
        frames=_DEEPSEEK,
        inner=("<｜tool▁sep｜>",),
        call="«<｜tool▁call▁begin｜>»function«<｜tool▁sep｜>»{name}\n```json\n{arguments}\n```«<｜tool▁call▁end｜>»",
        between="\n",
    ),
    Form(
        "deepseek-v3.1",
        signs=_DEEPSEEK[:1],
        without=("```json",),
        begin=("<｜tool▁call▁begin｜>",),
        end="<｜tool▁call▁end｜>",
        parse=calls.deepseek,
        frames=_DEEPSEEK,
        inner=("<｜tool▁sep｜>",),
        call="«<｜tool▁call▁begin｜>»{name}«<｜tool▁sep｜>»{arguments}«<｜tool▁call▁end｜>»",
    ),
    Form(
        "mistral-args",
        signs=("[TOOL_CALLS]", "[ARGS]"),
        begin=("[TOOL_CALLS]",),
        end="",
        parse=calls.mistral,
        inner=("[ARGS]", "[CALL_ID]"),
        call="«[TOOL_CALLS]»{name}«[ARGS]»{arguments}",
        short=True,
    ),
    Form(
        "mistral",
        signs=("[AVAILABLE_TOOLS]",),
        without=("[ARGS]",),
        begin=("[TOOL_CALLS]",),
        end="",
        parse=calls.mistral,
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
        short=True,
    ),
    Form(
        "cohere",
        signs=("<|START_ACTION|>",),
        begin=("<|START_ACTION|>",),
        end="<|END_ACTION|>",
        parse=calls.objects,
        call='{"tool_call_id": "{number}", "tool_name": "{name}", "parameters": {arguments}}',
        between=",\n",
    ),
    Form(
        "phi4",
        signs=("<|tool_call|>", "<|/tool_call|>"),
        begin=("<|tool_call|>",),
        end="<|/tool_call|>",
        parse=calls.objects,
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
    ),
    Form(
        "granite",
        signs=("<|tool_call|>",),
        without=("<|/tool_call|>",),
        begin=("<|tool_call|>", "<tool_call>"),
        end="",
        parse=calls.objects,
        call='{"name": "{name}", "arguments": {arguments}}',
        between=", ",
    ),
    Form(
        "llama3",
        signs=("<|start_header_id|>", "ipython"),
        begin=("<|python_tag|>",),
        end="",
        parse=calls.objects,
        bare=True,
        call='{"name": "{name}", "parameters": {arguments}}',
        between="; ",
    ),
)
# What stands around all calls of an answer, as they are written.
AROUND = {
    "kimi": ("«<|tool_calls_section_begin|>»", "«<|tool_calls_section_end|>»"),
    "deepseek-v3": ("«<｜tool▁calls▁begin｜>»", "«<｜tool▁calls▁end｜>»"),
    "deepseek-v3.1": ("«<｜tool▁calls▁begin｜>»", "«<｜tool▁calls▁end｜>»"),
    "mistral": ("«[TOOL_CALLS]»[", "]"),
    "cohere": ("«<|START_ACTION|>»[\n", "\n]«<|END_ACTION|>»"),
    "phi4": ("«<|tool_call|>»[", "]«<|/tool_call|>»"),
    "granite": ("«<|tool_call|>»[", "]"),
}
# gpt-oss calls no two at once: an answer ends with its call.
HARMONY = Form(
    "harmony",
    signs=("<|channel|>", "<|message|>"),
    begin=(),
    end="",
    parse=calls.objects,
    call="«<|channel|>»commentary to=functions.{name} «<|constrain|>»json«<|message|>»{arguments}«<|call|>»",
    channels=True,
)


def form_of(template: str) -> Form | None:
    """The form of a chat template; None where no row knows it, or it takes no tools."""
    if "tools" not in template:
        return None
    for form in (*FORMS, HARMONY):
        if all(sign in template for sign in form.signs) and not any(sign in template for sign in form.without):
            return form
    return None
