"""What a model thinks is split off from what it says: in pieces and whole, beside tools and grammars, and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_model import FakeModel, writes
from hypothesis import given, settings
from hypothesis import strategies as some
from served import client, events, serving
from test_constraints import noise
from tokenizers import AddedToken
from tokenizers_for_tests import byte_level

from isobit.engine.llm import LLM
from isobit.engine.tokenizer import Tokenizer
from isobit.server.reasoning import KINDS, Splitter, marks_of, opened
from isobit.server.tools.forms import form_of

THINK = KINDS[0]
# Opens the section itself unless it is told not to; leaves thoughts out of the history.
TEMPLATE = """{% if tools %}<tool_call>{% endif %}{% for m in messages -%}
<{{ m.role }}>{{ (m.content or '').split('</think>')[-1] }}{% endfor %}<assistant>
{%- if effort is defined or reasoning_effort is defined %}[{{ reasoning_effort }}]{% endif %}
{%- if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% elif opens %}<think>
{% endif %}"""

# Whether the prompt has begun the section, what the model writes, its thoughts, its answer.
CASES = [
    (False, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
    (True, "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
    (True, "\n\n</think>Yes. ", "", "Yes. "),
    (True, "Hm, it goes on ", "Hm, it goes on", ""),
    (False, "  <think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    (False, "Yes.</think>", "", "Yes.</think>"),
    (False, " Yes. <think>", "", " Yes. <think>"),
    (False, "<thin", "", "<thin"),
    (True, "a </thin", "a </thin", ""),
    (False, "<think>", "", ""),
    (False, "", "", ""),
]


def split(pieces: list[str], open: bool) -> tuple[str, str]:
    splitter = Splitter(THINK, open)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.finish()]
    return "".join(thought for thought, _ in parts), "".join(text for _, text in parts)


# A model that stops thinking to call a tool.
CALLED = [
    (True, "Hm, I look. <|calls|>f<|end|>", "Hm, I look.", "<|calls|>f<|end|>"),
    (False, "<think>a <|cal b</think>\n<|calls|>f", "a <|cal b", "<|calls|>f"),
    (True, "a<|calls|>f</think>b", "a", "<|calls|>f</think>b"),
    (True, "a <|call", "a <|call", ""),
    (True, "<|calls|>", "", "<|calls|>"),
]


@pytest.mark.parametrize("open, text, thought, answer", CALLED)
def test_a_call_ends_thoughts_however_it_is_cut(open: bool, text: str, thought: str, answer: str) -> None:
    for size in (max(1, len(text)), 1, 2, 5):
        splitter = Splitter(THINK, open, "<|calls|>")
        parts = [splitter.push(text[at : at + size]) for at in range(0, len(text), size)] + [splitter.finish()]
        assert ("".join(one for one, _ in parts), "".join(two for _, two in parts)) == (thought, answer)


def test_kimi_calls_tools_while_it_thinks() -> None:
    form = form_of("{{ tools }}<|tool_calls_section_begin|>")
    assert form is not None and form.name == "kimi" and form.interrupts == "<|tool_calls_section_begin|>"


@pytest.mark.parametrize("open, text, thought, answer", CASES)
def test_split_however_it_is_cut(open: bool, text: str, thought: str, answer: str) -> None:
    for size in (max(1, len(text)), 1, 2, 5):
        assert split([text[at : at + size] for at in range(0, len(text), size)], open) == (thought, answer)


@settings(max_examples=300, deadline=None)
@given(
    some.booleans(), some.lists(some.sampled_from([*"a <>/\n", "<think>", "</think>", "think", " " * 70])), some.data()
)
def test_any_text_in_any_pieces_is_the_same(open: bool, letters: list[str], data: Any) -> None:
    text = "".join(letters)
    cuts = sorted(data.draw(some.lists(some.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    thought, answer = split([text], open)
    assert split(pieces, open) == (thought, answer)
    kept = thought + THINK.end + answer, thought + answer  # with the marks that were taken out, and the spaces
    assert squeezed(text) in {squeezed(begin + rest) for begin in ("", THINK.begin) for rest in kept}


def squeezed(text: str) -> str:
    return text.replace(" ", "").replace("\n", "")


def test_marks_come_from_templates() -> None:
    assert marks_of({"default": TEMPLATE}) == THINK
    assert marks_of({"default": "{{ messages[0].content }}"}) is None
    assert marks_of({"tool_use": "[THINK]x[/THINK]"}) == KINDS[1]
    assert opened("<assistant><think>\n", THINK) and not opened("<think>\n\n</think>\n\n", THINK)


class Says:
    """A server of a model that says one text and thinks, with its marks as tokens."""

    def __init__(self, opens: bool, special: bool = True) -> None:
        fast = byte_level()
        for mark in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
            fast.add_tokens([AddedToken(mark, normalized=False, special=special)])
        template = TEMPLATE.replace("opens", str(opens).lower())
        named = {"bos_token": "<s>", "eos_token": "</s>"}
        self.tokenizer = Tokenizer(fast, special_tokens=named, chat_templates={"default": template})
        self.model = FakeModel(self.tokenizer.vocab_size, noise(self.tokenizer.vocab_size), context=4000)
        self.http = client(serving(LLM(self.model, self.tokenizer, prefix_cache=False)))
        self.prompt = ""

    def ask(self, text: str, **body: Any) -> Any:
        ids = self.tokenizer.encode(text + "</s>", add_special=False)
        seen: list[int] = []

        def rule(so_far: list[int]) -> Any:
            if not seen:
                seen.extend(so_far)
                self.prompt = self.tokenizer.decode(so_far, skip_special=False)
            return writes(ids, self.tokenizer.vocab_size, len(seen))(so_far)

        self.model._rule = rule
        whole = {"messages": [{"role": "user", "content": "Well?"}], "temperature": 0, **body}
        reply = self.http.post("/v1/chat/completions", json=whole)
        assert reply.status_code == 200, reply.text
        return reply


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_over_http(opens: bool, special: bool) -> None:
    says = Says(opens, special)
    text = ("" if opens else "<think>\n") + "Hm, hm.\n</think>\n\nYes."
    reply = says.ask(text).json()
    (choice,) = reply["choices"]
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == "Hm, hm."
    assert choice["message"]["content"] == "Yes."
    counted = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
    ids = says.tokenizer.encode(text, add_special=False)
    assert counted == ids.index(says.tokenizer.encode("</think>", add_special=False)[0]) + 1
    chunks = events(says.ask(text, stream=True, stream_options={"include_usage": True}).text)
    deltas = [one["delta"] for chunk in chunks for one in chunk["choices"]]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == "Hm, hm."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Yes."
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == counted


def test_what_is_cut_short_is_all_thought() -> None:
    (choice,) = Says(True).ask("Hm, hm, hm", max_tokens=3).json()["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] == ""
    assert "Hm, hm, hm".startswith(choice["message"]["reasoning"])


def test_templates_are_told() -> None:
    says = Says(True)
    (choice,) = says.ask("Yes.", chat_template_kwargs={"enable_thinking": False}).json()["choices"]
    assert choice["message"]["content"] == "Yes." and "reasoning" not in choice["message"]
    says.ask("x</think>y", reasoning_effort="high")
    assert "[high]" in says.prompt
    (choice,) = says.ask("Yes.", reasoning_effort="none").json()["choices"]
    assert "[none]" in says.prompt and choice["message"]["content"] == "Yes."
    wrong = {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "huge"}
    assert says.http.post("/v1/chat/completions", json=wrong).json()["error"]["param"] == "reasoning_effort"


def test_calls_behind_thoughts() -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    text = 'Is it <tool_call>?</think>Well.\n<tool_call>{"name": "now"}</tool_call>'
    (choice,) = Says(True).ask(text, tools=tools).json()["choices"]
    assert choice["message"]["reasoning"] == "Is it <tool_call>?" and choice["message"]["content"] == "Well."
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["now"]


@pytest.mark.parametrize("opens", [True, False])
def test_grammars_begin_behind_thoughts(opens: bool) -> None:
    says = Says(opens)
    text = ("" if opens else "<think>") + 'I {think} so.</think>nonsense that "does not fit"'
    body = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["red", "blue"]}}}}
    (choice,) = says.ask(text, **body, max_tokens=60).json()["choices"]
    assert choice["message"]["reasoning"] == "I {think} so."
    assert json.loads(choice["message"]["content"]) in ("red", "blue") and choice["finish_reason"] == "stop"
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"additionalProperties": False}}}]
    body = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (choice,) = says.ask(text, **body, max_tokens=100).json()["choices"]
    assert choice["message"]["reasoning"] == "I {think} so."
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ["{}"]


def test_a_model_need_not_think_before_a_grammar() -> None:
    (choice,) = Says(False).ask('"blue"', structured_outputs={"json": {"enum": ["red", "blue"]}}).json()["choices"]
    assert choice["message"]["content"] == '"blue"' and "reasoning" not in choice["message"]
