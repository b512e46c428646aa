"""Hostile chat templates: each is stopped with a TemplateError that names what stopped it, and rendering goes on."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest
from chat_templates import QWEN2

from isobit.engine import chat, helper
from isobit.errors import TemplateError

MESSAGES = [{"role": "user", "content": "hi"}]
SHORT = replace(chat.LIMITS, seconds=0.4)

FORBIDDEN = {
    "class": "{{ ''.__class__ }}{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ ().__class__.__base__.__subclasses__() }}",
    "item": "{{ ''['__class__']['__mro__'] }}",
    "attr filter": "{{ (''|attr('__class__')).mro }}",
    "map attribute": "{{ ['']|map(attribute='__class__')|map(attribute='__mro__')|list }}",
    "format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "format filter object": "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1) }}",
    "globals of a function": "{{ raise_exception.__globals__['sys'] }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "environment": "{{ self.__init__.__globals__ }}",
    "namespace dunder": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace init": "{{ namespace(**{'__class__': 1}) }}",
    "list append": "{{ messages.append(1) }}",
    "dict update": "{{ messages[0].update({'role': 'x'}) }}",
    "generator frame": "{{ (messages|map('upper')).gi_frame.f_back }}",
}

EXPENSIVE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that print nothing": "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
    "power": "{{ 7 ** (7 ** 9) }}",
    "digits of a power": "{{ (10 ** 3000000) // 7 ** 900000 ** 2 }}",
    "equal nested lists": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "replace": "{% set s = 'a' * 20000 %}{% for i in range(99999) %}{% set t = s.replace('a', 'bb') %}{% endfor %}",
}

TOO_MUCH_MEMORY = {
    "string product": "{{ 'x' * 10 ** 9 }}",
    "list product": "{{ ([1] * 10 ** 9) | length }}",
    "center": "{{ 'x' | center(10 ** 9) }}",
    "center method": "{{ 'x'.center(10 ** 9) }}",
    "format width": "{{ '%1000000000d' | format(1) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "format spec": "{{ '{:>1000000000}'.format(1) }}",
    "indent": "{{ ('a\n' * 20000) | indent(100000) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "nested lists printed": "{% set ns = namespace(a=[1]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% endfor %}{{ ns.a }}",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_internals_are_out_of_reach(name: str) -> None:
    with pytest.raises(TemplateError, match="forbids|failed: (TypeError|UndefinedError)|unsafe"):
        print(chat.render(FORBIDDEN[name], MESSAGES))


@pytest.mark.parametrize("name", EXPENSIVE)
def test_endless_work_is_stopped_by_the_clock(name: str) -> None:
    with pytest.raises(TemplateError, match=r"longer than the limit of 0\.4 seconds") as raised:
        chat.render(EXPENSIVE[name], MESSAGES, limits=SHORT)
    assert raised.value.of_model
    assert chat.render(QWEN2, MESSAGES, limits=SHORT).startswith("<|im_start|>")


@pytest.mark.parametrize("name", TOO_MUCH_MEMORY)
def test_blown_up_values_are_stopped(name: str) -> None:
    with pytest.raises(TemplateError, match="memory than the limit|longer than the limit|more than the limit"):
        chat.render(TOO_MUCH_MEMORY[name], MESSAGES, limits=SHORT)
    assert chat.render(QWEN2, MESSAGES).startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("template", "messages", "of_model"),
    [
        ("{{ raise_exception('no') }}", MESSAGES, False),
        ("{{ messages[0].content.missing.name }}", MESSAGES, False),
        ("{{ messages", MESSAGES, True),
        ("{{ messages[0].content * 1000 }}", [{"role": "user", "content": "x" * 100_000}], False),
        ("{{ messages[0].content * 10000000 }}", MESSAGES, True),
    ],
)
def test_whose_fault_it_is(template: str, messages: list[dict[str, str]], of_model: bool) -> None:
    """A template that much is given to may be a good one; one that fails with little is not."""
    with pytest.raises(TemplateError) as raised:
        chat.render(template, messages)
    assert raised.value.of_model == of_model


def test_each_limit_is_named() -> None:
    with pytest.raises(TemplateError, match="writes more than the limit of 4194304 characters"):
        chat.render("{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}", MESSAGES)
    with pytest.raises(TemplateError, match="memory than the limit of 536870912 bytes"):
        chat.render("{{ 'x' * 10 ** 9 }}", MESSAGES)
    with pytest.raises(TemplateError, match="2000000 characters; the limit is 1048576"):
        chat.render("x" * 2_000_000, MESSAGES)
    with pytest.raises(TemplateError, match="recursion limit"):
        chat.render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", MESSAGES)
    with pytest.raises(TemplateError, match="Range too big"):
        chat.render("{% for i in range(10 ** 9) %}{% endfor %}", MESSAGES)


def test_a_deeply_nested_template_does_no_harm() -> None:
    with pytest.raises(TemplateError):
        chat.render("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", MESSAGES)
    assert chat.render("{{ 1 + 1 }}", MESSAGES) == "2"


def test_the_clock_covers_one_rendering_and_not_the_process() -> None:
    started = time.monotonic()
    work = "{% for i in range(20000) %}{% endfor %}{{ messages[0].content }}"  # some milliseconds of the processor
    while time.monotonic() - started < 2.5 * SHORT.seconds:
        assert chat.render(work, MESSAGES, limits=SHORT) == "hi"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python >= 3.12; the child only renders
def test_a_forked_process_renders_by_itself() -> None:
    chat.render("x", MESSAGES)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, chat.render("child {{ messages[0].content }}", MESSAGES).encode())
            helper.close_all()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer == b"child hi"
    assert chat.render("parent", MESSAGES) == "parent"
