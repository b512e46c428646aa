"""isobit: large language models in few-bit formats, with the same numerics everywhere.

    import isobit

    isobit.quantize("bundled", "small-int4", "int4")
    print(isobit.load("small-int4").generate("def fib(n):", max_tokens=40).text)
    answers = isobit.LLM("small-int4").generate(["def fib(n):", "import os"])  # many prompts at once
    print(isobit.evaluate("small-int4", against="bundled"))

Importing isobit is quick: torch is imported by the first call that needs it.
"""

from __future__ import annotations

from isobit.version import __version__

TYPE_CHECKING = False  # typing itself takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Grammar",
    "LLM",
    "IsobitError",
    "SamplingParams",
    "__version__",
    "bench",
    "certify",
    "check_certificate",
    "compare",
    "evaluate",
    "info",
    "load",
    "plan",
    "quantize",
    "transcribe",
]


def __getattr__(name: str) -> Any:
    if name == "IsobitError":  # the base of all that isobit raises on purpose; the others are in isobit.errors
        from isobit import errors

        return errors.IsobitError
    if name in __all__:
        from isobit import api

        return getattr(api, name)
    raise AttributeError(f"module 'isobit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
