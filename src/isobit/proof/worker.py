"""One process of the proof: compiles requests as they come and answers with evidence or with what went wrong."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isobit.kernels.gpu.compile.request import Request
from isobit.proof.evidence import Evidence, read


@dataclass(frozen=True)
class Answer:
    """What became of one request: evidence, or why there is none."""

    evidence: Evidence | None
    error: str | None


def answer(request: Request, listing: str | None = None) -> Answer:
    """Compiles and reads one request.

    Args:
        request: what to compile.
        listing: where to write the disassembly, if anywhere.
    """
    from isobit.proof.build import build

    start = time.monotonic()
    with _quiet() as said:
        try:
            built = build(request)
            evidence = read(
                built.listing,
                registers=built.registers,
                shared=built.shared,
                local=built.local,
                portable=built.portable,
                binary=built.digest,
                seconds=round(time.monotonic() - start, 3),
            )
        except Exception as error:  # noqa: BLE001 - one kernel's failure of any kind is a result; the others go on
            return Answer(None, _reason(error, said()))
    if listing is not None:
        Path(listing).write_text(built.text, encoding="utf-8")
    return Answer(evidence, None)


def _reason(error: Exception, said: str) -> str:
    """One line for the first thing that the compiler or the assembler calls an error."""
    text = f"{said}\n{error}"
    lines = [line.strip() for line in text.splitlines() if re.search(r"\berror\b|LLVM ERROR|Error\(", line)]
    first = lines[0] if lines else (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {first[:400]}"


class _Said:
    """What was printed while it was watched."""

    def __init__(self, file: tempfile._TemporaryFileWrapper[bytes]) -> None:
        self._file = file

    def __call__(self) -> str:
        self._file.seek(0)
        return self._file.read().decode("utf-8", "replace")


@contextlib.contextmanager
def _quiet() -> Iterator[_Said]:
    """Keeps what Triton, LLVM and ptxas print (a failed kernel's whole text) off the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    with tempfile.NamedTemporaryFile() as file:
        try:
            for fd, _ in kept:
                os.dup2(file.fileno(), fd)
            yield _Said(file)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)
