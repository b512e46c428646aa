"""The process in which grammars are compiled first: started by :mod:`isobit.engine.grammars`, never imported by it.

Compiling a stranger's grammar can take all time and memory, and ends the whole process when a stack overflows. What
this process has survived, within its limits, the other one compiles again.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any


def answered(request: dict[str, Any], tokenizer: Any, limits: Any) -> dict[str, str]:
    """``{"grammar": what is to be compiled}`` or ``{"error": "wrong", "message": ...}``."""
    from llguidance import LLMatcher

    source = request["source"]
    try:
        if request["gbnf"]:
            from llguidance.gbnf_to_lark import gbnf_to_lark

            source = json.dumps({"grammars": [{"lark_grammar": gbnf_to_lark(source)}]})
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        ignored = [one for one in matcher.get_grammar_warnings() if "nimplemented" in one]
    except Exception as error:  # whatever a stranger's grammar raises is the grammar's fault
        return {"error": "wrong", "message": f"{error}"[:2000]}
    message = matcher.get_error() if matcher.is_error() else "; ".join(ignored)
    return {"error": "wrong", "message": message[:2000]} if message else {"grammar": source}


def serve(seconds: float, memory: int) -> None:
    """Answer requests until stdin ends; the first line has the tokenizer.

    Args:
        seconds: processor time for one request, then the kernel ends this process with SIGPROF; SIGALRM ends it behind
            ten times as many seconds of wall time. That a busy machine lets a request wait is no fault of the request.
        memory: bytes of address space for the whole process.
    """
    from llguidance import LLParserLimits, LLTokenizer

    for one in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(one, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    greeting = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(greeting["tokenizer"], n_vocab=greeting["vocabulary"], eos_token=greeting["eos"])
    limits = LLParserLimits(**greeting["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _write({"ready": True})
    for line in sys.stdin.buffer:
        _clock(seconds)
        reply = answered(json.loads(line), tokenizer, limits)
        _clock(0)
        _write(reply)


def _clock(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)


def _write(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
