"""Calls of tools: found in what families of models write, in pieces and whole, forced by grammars, and over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES
from fake_model import FakeModel, writes
from hypothesis import given, settings
from hypothesis import strategies as some
from served import client, events, serving
from test_constraints import noise
from tokenizers import AddedToken
from tokenizers_for_tests import byte_level, write_folder

from isobit.engine.conversation import encode
from isobit.engine.grammars import Grammars
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError
from isobit.server.channels import MARKS, Channels
from isobit.server.tools import calls
from isobit.server.tools.calls import Call
from isobit.server.tools.forced import forced
from isobit.server.tools.forms import FORMS, HARMONY, Form, form_of
from isobit.server.tools.scan import Scanner

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = {"weather": WEATHER, "now": {"type": "object", "properties": {}}}
FORM = {form.name: form for form in FORMS}

# Templates in the style of families that chat_templates.py lacks: just what they do with tools and calls.
KIMI = """{%- if tools %}<|im_system|>{{ tools | tojson }}<|im_end|>{% endif %}
{%- for m in messages %}<|im_{{ m.role }}|>{{ m.content or '' }}
{%- if m.tool_calls %}<|tool_calls_section_begin|>
{%- for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}
{%- endfor %}<|tool_call_end|><|tool_calls_section_end|>{% endif %}{% endfor %}<|im_assistant|>"""
DEEPSEEK_V3 = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}
```json
{{ c.function.arguments | tojson }}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>{% endfor %}{% endfor %}<assistant>"""
DEEPSEEK_V31 = DEEPSEEK_V3.replace(
    "function<｜tool▁sep｜>{{ c.function.name }}\n```json\n", "{{ c.function.name }}<｜tool▁sep｜>"
)
DEEPSEEK_V31 = DEEPSEEK_V31.replace("\n```<", "<")
MISTRAL_ARGS = FAMILIES["mistral"].replace("[INST]", "[TOOL_CALLS][ARGS][INST]")
TAGGED = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}BEGIN
{% for key, value in c.function.arguments | items %}<parameterSIGNkeyQUOTE>{{ value }}</parameter>
{% endfor %}END{% endfor %}{% endfor %}<assistant>"""
CODER = TAGGED.replace("BEGIN", "<tool_call>\n<function={{ c.function.name }}>").replace("SIGNkeyQUOTE", "={{ key }}")
CODER = CODER.replace("END", "</function>\n</tool_call>")
M2 = TAGGED.replace("BEGIN", '<minimax:tool_call>\n<invoke name="{{ c.function.name }}">')
M2 = M2.replace("SIGNkeyQUOTE", ' name="{{ key }}"').replace("END", "</invoke>\n</minimax:tool_call>")
LISTED = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}BEGIN[{{ c.function | tojson }}]END{% endfor %}{% endfor %}<assistant>"""
HARMONY_TEMPLATE = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|start|>{{ m.role }}
{%- for c in m.tool_calls or [] %} to=functions.{{ c.function.name }}<|channel|>commentary json<|message|>
{{- c.function.arguments | tojson }}<|call|>{% endfor %}<|message|>{{ m.content or '' }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
TEMPLATES = {
    "qwen3-coder": CODER,
    "seed": CODER.replace("tool_call>", "seed:tool_call>"),
    "minimax-m2": M2,
    "cohere": LISTED.replace("BEGIN", "<|START_ACTION|>").replace("END", "<|END_ACTION|>"),
    "phi4": LISTED.replace("BEGIN", "<|tool_call|>").replace("END", "<|/tool_call|>"),
    "granite": LISTED.replace("BEGIN", "<|tool_call|>").replace("END", ""),
    "hermes": FAMILIES["qwen3"],
    "glm": FAMILIES["glm4"],
    "llama3": FAMILIES["llama3"],
    "mistral": FAMILIES["mistral"],
    "mistral-args": MISTRAL_ARGS,
    "kimi": KIMI,
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-v3.1": DEEPSEEK_V31,
}

# What a model writes, and the text and the calls in it.
RAIN = Call("weather", '{"city": "Köln \\"x\\"", "days": 2}')
NOW = Call("now", "{}")
ARGS = '{"city": "Köln \\"x\\"", "days": 2}'
PAIRS = '<parameter=city>\nKöln "x"\n</parameter>\n<parameter=days>\n2\n</parameter>\n'
WRITTEN: dict[str, list[tuple[str, list[Any]]]] = {
    "qwen3-coder": [
        (f"I look.\n<tool_call>\n<function=weather>\n{PAIRS}</function>\n</tool_call>", ["I look.", RAIN]),
        (
            f"<tool_call>\n<function=weather>\n{PAIRS}</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n"
            "</tool_call>",
            [RAIN, NOW],
        ),
        (f"<function=weather>\n{PAIRS}</function>\n</tool_call>", [RAIN]),  # its first mark is missing
        (f"<tool_call>\n<function=weather>\n{PAIRS}", [RAIN]),  # its last marks are missing
    ],
    "seed": [
        (
            f"<seed:tool_call>\n<function=weather>\n{PAIRS}</function>\n</seed:tool_call> <seed:tool_call>\n"
            "<function=now>\n</function>\n</seed:tool_call>",
            [RAIN, NOW],
        ),
    ],
    "minimax-m2": [
        (
            'So.\n<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Köln "x"</parameter>\n'
            '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
            ["So.", RAIN, NOW],
        ),
    ],
    "cohere": [
        (
            f'<|START_ACTION|>[\n{{"tool_call_id": "0", "tool_name": "weather", "parameters": {ARGS}}},\n'
            '{"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
            [RAIN, NOW],
        ),
    ],
    "phi4": [
        (
            f'<|tool_call|>[{{"name": "weather", "arguments": {ARGS}}}, {{"name": "now", "arguments": {{}}}}]'
            "<|/tool_call|>",
            [RAIN, NOW],
        ),
    ],
    "granite": [
        (
            f'<|tool_call|>[{{"name": "weather", "arguments": {ARGS}}}, {{"name": "now", "arguments": {{}}}}]',
            [RAIN, NOW],
        ),
        ('<tool_call>[{"name": "now", "arguments": {}}]', [NOW]),
    ],
    "hermes": [
        (f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {ARGS}}}\n</tool_call>', ["Let me see.", RAIN]),
        (
            f'<tool_call>{{"arguments": {ARGS}, "name": "weather"}}</tool_call>\n'
            '<tool_call>\n{"name": "now"}\n</tool_call>',
            [RAIN, NOW],
        ),
        ('<tool_call>{"name": "now", "arguments": "{}"}</tool_call> Done.', [NOW, " Done."]),
        ('<tool_call>\n{"name": "now", "arguments": {}}', [NOW]),  # its last mark is missing
    ],
    "glm": [
        (
            '\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln "x"</arg_value>\n<arg_key>days</arg_key>\n'
            "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>now</tool_call>",
            [RAIN, NOW],
        ),
    ],
    "llama3": [
        (f'{{"name": "weather", "parameters": {ARGS}}}', [RAIN]),
        (
            f'<|python_tag|>{{"name": "weather", "parameters": {ARGS}}}; {{"name": "now", "parameters": {{}}}}',
            [RAIN, NOW],
        ),
        (' \n{"type": "function", "function": {"name": "now"}}', [NOW]),
    ],
    "mistral": [
        (
            f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGS}}}, {{"name": "now", "arguments": {{}}}}]',
            [RAIN, NOW],
        ),
        ('Well. [TOOL_CALLS][{"name": "now", "arguments": {}}]', ["Well.", NOW]),
    ],
    "mistral-args": [
        (f"[TOOL_CALLS]weather[ARGS]{ARGS}[TOOL_CALLS]now[ARGS]{{}}", [RAIN, NOW]),
        ("[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}", [Call("now", "{}", "abcdefghi")]),
        (f"[TOOL_CALLS]weather{ARGS}", [RAIN]),
    ],
    "kimi": [
        (
            "Sure <|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            f"{ARGS}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
            "<|tool_calls_section_end|>",
            ["Sure", Call("weather", ARGS, "functions.weather:0"), Call("now", "{}", "functions.now:1")],
        ),
    ],
    "deepseek-v3": [
        (
            f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{ARGS}\n```<｜tool▁call▁end｜>\n"
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            [RAIN, NOW],
        ),
    ],
    "deepseek-v3.1": [
        (
            f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ARGS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            [RAIN],
        ),
    ],
}
# What is no call, and stays the text it is.
BROKEN = {
    "qwen3-coder": ["<tool_call>\n<function=now>x</function>\n</tool_call>", "<tool_call>now</tool_call>",
                    "<tool_call>\n<function=now>\n<parameter=a>1\n</function>\n</tool_call>"],
    "seed": ["<seed:tool_call></seed:tool_call>", "<seed:tool_call>now</seed:tool_call>"],
    "minimax-m2": ['<minimax:tool_call><invoke name="now"></minimax:tool_call>',
                   "<minimax:tool_call>x</minimax:tool_call>"],
    "cohere": ["<|START_ACTION|>[]<|END_ACTION|>", '<|START_ACTION|>{"tool_name": 1}<|END_ACTION|>'],
    "phi4": ["<|tool_call|>[<|/tool_call|>", "<|tool_call|>now<|/tool_call|>"],
    "granite": ["<|tool_call|>[", "<|tool_call|>now"],
    "hermes": ["<tool_call>{}</tool_call>", '<tool_call>{"name": "now", "arguments": [', "<tool_call>", "a <tool_cal",
               '<tool_call>{"name": "", "arguments": {}}</tool_call>', '<tool_call>{"name": 3}</tool_call>x',
               '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>',
               '<tool_call>{"name": "now", "arguments": {"a": 1e999}}</tool_call>',
               '<tool_call>{"name": "now", "arguments": "1"}</tool_call>', "<tool_call>" + "[" * 5000 + "</tool_call>"],
    "glm": ["<tool_call>now\n<arg_key>a</arg_key>\n</tool_call>", "<tool_call></tool_call>"],
    "llama3": ['{"a": 1}', "{not JSON}", "x {", '{"name": "now"} and more', "  {"],
    "mistral": ["[TOOL_CALLS] now", "[TOOL_CALLS][]", "[TOOL"],
    "mistral-args": ["[TOOL_CALLS]now[ARGS]", "[TOOL_CALLS]"],
    "kimi": ["<|tool_call_begin|>now{}<|tool_call_end|>"],
    "deepseek-v3": ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n{}<｜tool▁call▁end｜>"],
    "deepseek-v3.1": ["<｜tool▁call▁begin｜>now<｜tool▁call▁end｜>"],
}  # fmt: skip


# What a schema says a value is decides what it becomes.
KINDS = {
    "properties": {
        "text": {"type": "string"}, "maybe": {"type": ["string", "null"]}, "flag": {"type": "boolean"},
        "list": {"type": "array"},
    }
}  # fmt: skip


def test_values_between_tags_are_what_the_schema_says() -> None:
    written = {"text": "12", "maybe": "null", "flag": "True", "list": "[1, 2]", "unknown": "3", "other": "a\nb"}
    block = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in written.items())
    (call,) = calls.functions(f"<function=f>\n{block}</function>", {"f": KINDS}) or []
    expected = {"text": "12", "maybe": None, "flag": True, "list": [1, 2], "unknown": 3, "other": "a\nb"}
    assert json.loads(call.arguments) == expected


def scanned(form: Form, pieces: list[str], most: int | None = None) -> list[Any]:
    scanner = Scanner(form, TOOLS, most)
    parts = [part for piece in pieces for part in scanner.push(piece)] + scanner.finish()
    found: list[Any] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


def test_families_are_told_from_their_templates() -> None:
    assert {name: form_of(text).name for name, text in TEMPLATES.items()} == {name: name for name in TEMPLATES}  # type: ignore[union-attr]
    assert set(TEMPLATES) == set(FORM)
    assert form_of(HARMONY_TEMPLATE) is HARMONY
    for other in ("llama2", "qwen2", "deepseek", "gemma", "phi"):
        assert form_of(FAMILIES[other]) is None


@pytest.mark.parametrize("name", sorted(FORM))
def test_calls_are_found_however_they_are_cut(name: str) -> None:
    for text, expected in WRITTEN[name]:
        for size in (len(text), 1, 2, 3, 7):
            assert scanned(FORM[name], [text[at : at + size] for at in range(0, len(text), size)]) == expected, text


@pytest.mark.parametrize("name", sorted(FORM))
def test_what_is_no_call_stays_text(name: str) -> None:
    for text in BROKEN[name]:
        for size in (len(text), 1, 5):
            assert scanned(FORM[name], [text[at : at + size] for at in range(0, len(text), size)]) == [text]


def test_calls_beyond_those_asked_for_are_dropped() -> None:
    text, expected = WRITTEN["hermes"][1]
    assert scanned(FORM["hermes"], [text], most=1) == expected[:1]


LETTERS = [mark for form in FORMS for mark in form.marks]
LETTERS += [*'{}[]",: \na', '{"name": "now"}', "<tool", "_call>", " " * 300, "functions.a:0"]


@settings(max_examples=300, deadline=None)
@given(some.sampled_from(FORMS), some.lists(some.sampled_from(LETTERS), max_size=12), some.data())
def test_any_text_in_any_pieces_is_the_same(form: Form, letters: list[str], data: Any) -> None:
    text = "".join(letters)
    cuts = sorted(data.draw(some.lists(some.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = scanned(form, [text])
    assert scanned(form, pieces) == whole
    if not any(isinstance(part, Call) for part in whole) and not any(frame in text for frame in form.frames):
        assert "".join(whole) == text
    for part in whole:
        if isinstance(part, Call):
            assert isinstance(json.loads(part.arguments), dict) and part.name


def test_little_is_looked_at_again() -> None:
    """What is held back, and read again with the next piece, does not grow with the text."""
    for form in FORMS:
        longest = max(map(len, form.marks))
        for part in (*form.marks, form.begin[0][:-1], "<", " ", "a", form.begin[0] + "{}" + form.end[:-1]):
            scanner = Scanner(form, TOOLS)
            for _ in range(500):
                scanner.push(part)
                assert len(scanner._held) <= 256 + longest and len(scanner._tail) < longest


# Forced


def tokenizer_for(form: Form, special: bool, template: str | None = None) -> Tokenizer:
    fast = byte_level()
    for mark in MARKS if form.channels else form.marks:
        fast.add_tokens([AddedToken(mark, normalized=False, special=special)])
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(
        fast, special_tokens=named, chat_templates={"default": template or TEMPLATES.get(form.name, HARMONY_TEMPLATE)}
    )


@pytest.mark.parametrize("name", sorted(FORM))
@pytest.mark.parametrize("special", [True, False])
def test_forced_calls_are_right_whatever_the_model_says(name: str, special: bool) -> None:
    form, tokenizer = FORM[name], tokenizer_for(FORM[name], special)
    llm = LLM(FakeModel(tokenizer.vocab_size, noise(tokenizer.vocab_size), context=2000), tokenizer)
    kept = tuple(id for id, text in tokenizer.added() if text in form.marks)
    tools = {
        "weather": {
            "properties": {"city": {"enum": ["Köln", "Bonn"], "type": "string"}, "days": {"$ref": "#/$defs/few"}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"few": {"type": "integer", "minimum": 1, "maximum": 7}},
        },
        "now": {"additionalProperties": False},
    }
    for many in (False, True):
        grammar = forced(form, tokenizer, tools, many=many)
        params = [SamplingParams(temperature=1.0, seed=n, max_tokens=1500, kept_special=kept) for n in range(3)]
        for answer in llm.generate([[5]] * 3, params, constraint=grammar):
            assert answer.finish_reason == "stop"
            found = scanned(form, [answer.text])
            assert found and all(isinstance(part, Call) for part in found), answer.text
            assert many or len(found) == 1
            for call in found:
                arguments = json.loads(call.arguments)
                if call.name == "weather":
                    assert arguments["city"] in ("Köln", "Bonn") and 1 <= arguments["days"] <= 7 and len(arguments) == 2
                else:
                    assert call.name == "now" and arguments == {}


def test_what_cannot_be_forced_is_named() -> None:
    wrong = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    for form in FORMS:
        with pytest.raises(UsageError, match="the tool 'w'.*uniqueItems"):
            forced(form, tokenizer_for(form, True), {"w": wrong}, many=False)
    with pytest.raises(UsageError, match="'a'.*no maxLength"):
        forced(
            FORM["glm"],
            tokenizer_for(FORM["glm"], True),
            {"w": {"properties": {"a": {"type": "string", "maxLength": 3}}}},
            many=False,
        )


# In channels

ANALYSIS = "<|channel|>analysis<|message|>Hm, rain.<|end|>"
ASSISTANT = "<|start|>assistant"
CALL = f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGS}<|call|>"
CHANNELS: list[tuple[str, str, list[Any]]] = [  # what is written, thoughts, texts and calls
    (f"{ANALYSIS}{ASSISTANT}<|channel|>final<|message|>It rains.<|return|>", "Hm, rain.", ["It rains."]),
    (f"{ANALYSIS}{ASSISTANT}{CALL}", "Hm, rain.", [RAIN]),
    (CALL.removesuffix("<|call|>"), "", [RAIN]),
    (f" to=functions.weather<|channel|>commentary json<|message|>{ARGS}", "", [RAIN]),
    (
        f"<|channel|>commentary<|message|>I look.<|end|>{ASSISTANT} to=functions.now<|channel|>commentary<|message|>"
        "{}",
        "",
        ["I look.", NOW],
    ),
    ("<|channel|>final<|message|>", "", []),
    ("<|channel|>analysis to=python<|message|>1 + 1", "1 + 1", []),
    (
        "<|channel|>analysis<|message|>Hm, rain.<|channel|>final<|message|>It rains.<|return|>",
        "Hm, rain.",
        ["It rains."],
    ),
    (f"<|channel|>analysis<|message|>Hm, rain.{CALL}", "Hm, rain.", [RAIN]),
    (f"{CALL.removesuffix('<|call|>')}<|channel|>final<|message|>It rains.", "", [RAIN, "It rains."]),
    ("It just says so.", "", ["It just says so."]),
    ("assistants", "", ["assistants"]),
    ("to=nobody " + "x" * 600, "", ["to=nobody " + "x" * 600]),
    ("<|channel|>final<|message|>a < b <|en", "", ["a < b <|en"]),
    ("<|channel|>commentary to=functions.now<|message|>no JSON<|call|>", "", ["no JSON"]),
]


def in_channels(pieces: list[str], calls: bool = True) -> tuple[str, list[Any]]:
    reader = Channels(calls)
    seen = [*(reader.push(piece) for piece in pieces), reader.finish()]
    found: list[Any] = []
    for part in (part for _, parts in seen for part in parts):
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return "".join(thought for thought, _ in seen), found


def test_channels_are_taken_apart_however_they_are_cut() -> None:
    for text, thoughts, expected in CHANNELS:
        for size in (max(len(text), 1), 1, 2, 3, 7):
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            assert in_channels(pieces) == (thoughts, expected), text
    assert in_channels([CALL], calls=False) == (ARGS, [])  # nobody offered a tool: it is no answer to the user


@settings(max_examples=300, deadline=None)
@given(
    some.lists(some.sampled_from([*MARKS, "analysis", "final", " to=functions.a", "{}", "a", " ", "<|"])), some.data()
)
def test_any_text_in_channels_in_any_pieces_is_the_same(letters: list[str], data: Any) -> None:
    text = "".join(letters)
    cuts = sorted(data.draw(some.lists(some.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert in_channels(pieces) == in_channels([text])


@pytest.mark.parametrize("special", [True, False])
def test_channels_over_http(special: bool) -> None:
    says = Says("harmony", special)
    for text, thoughts, expected in CHANNELS[:5]:
        text = text.removesuffix("<|return|>").removesuffix("<|call|>")
        (choice,) = says.ask(text).json()["choices"]
        message = choice["message"]
        assert (message.get("reasoning_content") or "") == thoughts
        assert (message["content"] or "") == "".join(part for part in expected if isinstance(part, str))
        found = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
        assert found == [(call.name, call.arguments) for call in expected if isinstance(call, Call)]
        assert choice["finish_reason"] == ("tool_calls" if found else "stop")
    (choice,) = says.ask(CHANNELS[0][0].removesuffix("<|return|>"), tools=None).json()["choices"]
    assert choice["message"]["content"] == "It rains." and choice["message"]["reasoning_content"] == "Hm, rain."


@pytest.mark.parametrize("special", [True, False])
def test_forms_of_answers_in_channels(special: bool) -> None:
    """Under a grammar a model may think, and then writes what is asked for into the right channel."""
    tokenizer = tokenizer_for(HARMONY, special)
    llm = LLM(FakeModel(tokenizer.vocab_size, noise(tokenizer.vocab_size), context=2000), tokenizer)
    http = client(serving(llm))
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    for seed in range(3):
        body = {"messages": ASK, "temperature": 1, "seed": seed, "max_tokens": 1500, "logit_bias": {}}
        reply = http.post("/v1/chat/completions", json={**body, "response_format": form}).json()
        if reply["choices"][0]["finish_reason"] == "stop":
            assert json.loads(reply["choices"][0]["message"]["content"])["a"] in (1, 2)
        reply = http.post("/v1/chat/completions", json={**body, "tools": FUNCTIONS, "tool_choice": "required"}).json()
        if reply["choices"][0]["finish_reason"] != "length":
            assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] in ("weather", "now")
    gbnf = {"messages": ASK, "guided_grammar": 'root ::= "a"'}
    reply = http.post("/v1/chat/completions", json=gbnf)
    assert reply.status_code == 400 and "GBNF" in reply.json()["error"]["message"]


# Over HTTP

FUNCTIONS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Of a city.", "parameters": WEATHER, "strict": True},
    },
    {"type": "function", "function": {"name": "now"}},
]
ASK = [{"role": "user", "content": "Rain?"}]
TURNS = [
    *ASK,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "functions.weather:0", "type": "function", "function": {"name": "weather", "arguments": ARGS}}]},
    {"role": "tool", "tool_call_id": "functions.weather:0", "content": "yes"},
]  # fmt: skip


class Says:
    """A server of a model that says one text, with its template's marks as special tokens."""

    def __init__(self, name: str, special: bool = True, template: str | None = None) -> None:
        self.tokenizer = tokenizer_for(FORM.get(name, HARMONY), special, template)
        self.model = FakeModel(self.tokenizer.vocab_size, noise(self.tokenizer.vocab_size), context=4000)
        self.http = client(serving(LLM(self.model, self.tokenizer, prefix_cache=False)))
        self.prompts: list[str] = []

    def ask(self, text: str, messages: Any = ASK, **body: Any) -> Any:
        ids = self.tokenizer.encode(text + "</s>", add_special=False)

        def rule(so_far: list[int]) -> Any:
            self.length = self.length or len(so_far)
            return writes(ids, self.tokenizer.vocab_size, self.length)(so_far)

        self.length = 0
        self.model._rule = rule
        whole = {"messages": messages, "temperature": 0, "tools": FUNCTIONS, **body}
        return self.http.post("/v1/chat/completions", json=whole)


@pytest.mark.parametrize("name", sorted(FORM))
@pytest.mark.parametrize("special", [True, False])
def test_calls_over_http(name: str, special: bool) -> None:
    says = Says(name, special)
    for text, expected in WRITTEN[name]:
        reply = says.ask(text).json()
        (choice,) = reply["choices"]
        assert choice["finish_reason"] == "tool_calls", reply
        assert (choice["message"]["content"] or "") == "".join(part for part in expected if isinstance(part, str))
        found = [(call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]]
        assert found == [(call.name, call.arguments) for call in expected if isinstance(call, Call)]
        ids = [call["id"] for call in choice["message"]["tool_calls"]]
        assert len(set(ids)) == len(ids) and all(len(id) == 9 for id in ids if FORM[name].short)
        assert all(call["type"] == "function" for call in choice["message"]["tool_calls"])
        streamed(says.ask(text, stream=True).text, choice)
    for text in BROKEN[name][:2]:
        (choice,) = says.ask(text).json()["choices"]
        assert choice["message"]["content"] == text and "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def streamed(text: str, whole: dict[str, Any]) -> None:
    """A stream has what the whole reply has: an index in every part of a call, name and id once."""
    choices = [one for chunk in events(text) for one in chunk["choices"]]
    assert "".join(one["delta"].get("content") or "" for one in choices) == (whole["message"]["content"] or "")
    calls: dict[int, dict[str, Any]] = {}
    for part in (part for one in choices for part in one["delta"].get("tool_calls", [])):
        if "id" in part:
            assert part["index"] == len(calls) and part["type"] == "function"
            calls[part["index"]] = {"name": part["function"]["name"], "arguments": ""}
        else:
            assert "name" not in part["function"]
        calls[part["index"]]["arguments"] += part["function"]["arguments"]
    found = [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in whole["message"]["tool_calls"]
    ]
    assert list(calls.values()) == found
    assert [one["finish_reason"] for one in choices if one["finish_reason"]] == ["tool_calls"]
    assert [one["delta"]["role"] for one in choices if "role" in one["delta"]] == ["assistant"]


@pytest.mark.parametrize("name", sorted(set(FORM) - {"mistral", "mistral-args"}))
def test_calls_in_the_history_are_rendered(name: str) -> None:
    says = Says(name)
    seen: list[list[int]] = []
    reply = says.ask("ok", TURNS)
    assert reply.status_code == 200, reply.text
    says.model._rule = lambda ids: (seen.append(ids), noise(says.tokenizer.vocab_size)(ids))[1]
    says.http.post("/v1/chat/completions", json={"messages": TURNS, "tools": FUNCTIONS, "max_tokens": 1})
    prompt = says.tokenizer.decode(seen[0], skip_special=False)
    assert "weather" in prompt and "Köln" in prompt and "yes" in prompt and "Of a city." in prompt
    assert '"{' not in prompt  # arguments are an object, not a text of one


@pytest.mark.parametrize(
    "choice, names", [("required", {"weather", "now"}), ({"type": "function", "function": {"name": "now"}}, {"now"})]
)
@pytest.mark.parametrize("name", ["hermes", "llama3", "mistral", "glm"])
def test_a_call_is_forced(name: str, choice: Any, names: set[str]) -> None:
    says = Says(name)
    for text in ("I would rather talk.", "{}"):
        functions = json.loads(json.dumps(FUNCTIONS))
        functions[0]["function"]["parameters"] = {
            "properties": {"days": {"enum": [1, 2]}},
            "required": ["days"],
            "additionalProperties": False,
        }
        functions[1]["function"]["parameters"] = {"additionalProperties": False}
        found = says.ask(text, tools=functions, tool_choice=choice, parallel_tool_calls=False, max_tokens=300).json()[
            "choices"
        ][0]
        (call,) = found["message"]["tool_calls"]
        assert call["function"]["name"] in names and found["finish_reason"] == "tool_calls"
        assert found["message"]["content"] is None


def test_none_is_none_and_parallel_is_asked_for() -> None:
    says = Says("hermes", special=False)
    text, _ = WRITTEN["hermes"][1]
    (choice,) = says.ask(text, tool_choice="none").json()["choices"]
    assert choice["message"]["content"] == text and "tool_calls" not in choice["message"]
    (choice,) = says.ask(text, parallel_tool_calls=False).json()["choices"]
    assert len(choice["message"]["tool_calls"]) == 1
    (choice,) = says.ask(text, tools=[]).json()["choices"]
    assert choice["message"]["content"] == text


@pytest.mark.parametrize(
    "body, field",
    [
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required", "tools": None}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]}, "tools"),
        ({"tools": FUNCTIONS[:1] * 2}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": f"a{n}"}} for n in range(129)]}, "tools"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_by_name(body: Any, field: str) -> None:
    reply = Says("hermes").ask("x", **{"messages": ASK, **body})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == field


def test_a_template_without_tools_is_said() -> None:
    reply = Says("hermes", template=FAMILIES["qwen2"]).ask("x")
    assert reply.status_code == 400 and "has no tools" in reply.json()["error"]["message"]


def test_calls_in_the_history_that_a_template_would_leave_out_are_refused_and_not_lost() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    user, calling, result = (
        {"role": "user", "content": "when?"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "1"},
    )  # fmt: skip
    knows, knows_none = Says("hermes"), Says("hermes", template=FAMILIES["qwen2"])
    told = {"messages": [user, calling, result, user], "tools": None}
    assert knows.ask("x", **told).status_code == 200
    reply = knows_none.ask("x", **told)
    said = reply.json()["error"]["message"]
    assert reply.status_code == 400 and said.startswith(
        "messages[1].tool_calls: the chat template of this model does not"
    )
    assert knows_none.ask("x", messages=[user, result, user], tools=None).status_code == 200  # it writes any role
    branches = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    reply = Says("hermes", template=branches).ask("x", messages=[user, result, user], tools=None)
    assert reply.status_code == 400 and "messages[1] is what a tool gave" in reply.json()["error"]["message"]


def test_tools_and_documents_that_a_template_would_leave_out_are_refused(tmp_path: Path) -> None:
    tokenizer, ask = Tokenizer.from_folder(write_folder(tmp_path, byte_level())), [{"role": "user", "content": "x"}]
    for name in ("tools", "documents"):
        with pytest.raises(UsageError, match=f"^{name}: the chat template of this model does not read {name}"):
            encode(tokenizer, "{{ messages[0].content }}", ask, **{name: [{"name": "a"}]})
        assert encode(
            tokenizer, "{{ messages[0].content }}{{ (" + name + ") | length }}", ask, **{name: [{"name": "a"}]}
        )
        assert encode(tokenizer, "{{ messages[0].content }}", ask, **{name: []}) == tokenizer.encode("x", False)
    whole = [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "a"}}]}]
    assert encode(tokenizer, "{% for message in messages %}{{ message | tojson }}{% endfor %}", whole)


def test_arguments_that_are_text_of_an_object_count() -> None:
    assert calls.objects('{"name": "a", "arguments": "{\\"b\\": 1}"}', {}) == [Call("a", '{"b": 1}')]
    assert calls.objects("", {}) is None and calls.objects("[]", {}) is None


def test_compiling_of_tools_is_kept() -> None:
    form = FORM["hermes"]
    tokenizer = tokenizer_for(form, True)
    compiler = Grammars(tokenizer, tokenizer.vocab_size)
    for _ in range(2):
        compiler.constraint(forced(form, tokenizer, TOOLS, many=True))
    assert len(compiler._kept) == 1
