"""The process that renders chat templates; started by :mod:`isobit.engine.chat`, never imported by it.

A chat template comes with the model, so it is a program by a stranger. Jinja's sandbox keeps it from Python's
internals, but not from using up time and memory: ``'x' * 10**9``, a comparison of nested lists or a wide format field
are single operations in C that nothing inside the process can stop. So templates run here, where the kernel enforces
the limits: an address space limit, and a timer whose signal ends the process wherever it is.

It reads one JSON request per line on stdin and writes one JSON reply per line on stdout. This file imports only the
standard library and jinja2, so that it starts fast.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationBlock(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}``: marks the assistant's text; renders as its content."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Turn the block into a call block, which gives it the scope rules it has in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> str:
        return str(caller())


class SafeNamespace(jinja2.utils.Namespace):
    """Jinja's ``namespace`` object without underscore-prefixed attributes."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self: ``namespace(self=1)`` is allowed
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class SafeDict:
    """``dict`` for templates: callable, and nothing of the type itself can be reached through it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """``dict.fromkeys``."""
        return dict.fromkeys(keys, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"the attribute {name!r} of a namespace starts with an underscore")


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    """What ``raise_exception(message)`` raises."""


def raise_exception(message: Any) -> None:
    """``raise_exception``: how a template refuses the messages it was given."""
    raise RaisedByTemplate(str(message))


def strftime_now(format: str) -> str:
    """``strftime_now``: the local time now."""
    return datetime.now().strftime(format)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The ``tojson`` filter as chat templates expect it: no HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """A Jinja environment with the settings, filters and globals that Hugging Face chat templates are written for."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=SafeDict(), namespace=SafeNamespace
    )
    return env


@lru_cache(maxsize=16)
def compiled(source: str) -> jinja2.Template:
    """Compile a template; the last few are kept."""
    return environment().from_string(source)


def reply_to(request: dict[str, Any]) -> dict[str, Any]:
    """Render one request: ``{"text": ...}``, or ``{"error": kind, "message": ...}`` with the kinds of chat.FAILURES."""
    try:
        parts: list[str] = []
        length = 0
        for part in compiled(request["template"]).generate(request["variables"]):
            length += len(part)
            if length > request["max_output"]:
                return {"error": "output", "message": ""}
            parts.append(part)
        return {"text": "".join(parts)}
    except RaisedByTemplate as error:
        return {"error": "raised", "message": error.message or ""}
    except jinja2.exceptions.SecurityError as error:
        return {"error": "forbidden", "message": str(error)}
    except jinja2.exceptions.TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except MemoryError:
        return {"error": "memory", "message": ""}
    except RecursionError:
        return {"error": "recursion", "message": ""}
    except Exception as error:  # a stranger's program can raise anything; every kind of it is the template's failure
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"[:2000]}


def serve(seconds: float, memory: int) -> None:
    """Answer requests until stdin ends.

    Args:
        seconds: processor time for one request, then the kernel ends this process with SIGPROF; SIGALRM ends it behind
            ten times as many seconds of wall time. That a busy machine lets a request wait is no fault of the request.
        memory: bytes of address space for the whole process.
    """
    for one in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(one, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    environment().from_string("{{ 1 }}").render()  # first use imports and compiles: before the clock runs
    _write({"ready": True})
    for line in sys.stdin.buffer:
        _clock(seconds)
        reply = reply_to(json.loads(line))
        encoded = json.dumps(reply)
        _clock(0)
        _write_line(encoded)


def _clock(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)


def _write(reply: dict[str, Any]) -> None:
    _write_line(json.dumps(reply))


def _write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
