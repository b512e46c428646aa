"""Attention over caches whose groups share a scale, in Triton's interpreter on the CPU, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
# Float32 is a few roundings from float64; the others have what rounding the result leaves, and float16 the weights.
LIMITS = {"torch.float32": 1e-6, "torch.float16": 4.5e-4, "torch.bfloat16": 2.5e-3}
# A code next to a midpoint may fall to the other side of it in float64: one of a token's, of a step of so much.
ASIDE = {"mxfp8": 5e-3, "mxfp4": 4e-2, "nvfp4": 4e-2}


def results(*names: str) -> dict[str, float]:
    cases = Path(__file__).with_name("interpreter_grouped.py")
    path = os.pathsep.join((str(cases.parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(cases), *names], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def check(found: dict[str, float], least: int) -> None:
    assert len(found) >= least
    for name, error in found.items():
        kind, dtype, _ = name.split(" ", 2)
        if kind == "same:":
            assert not error, name
        else:
            assert error <= LIMITS[dtype], (name, error)


def test_a_thin_slice_is_that_of_float64_and_stores_the_bits_of_the_law() -> None:
    check(results("thin"), 30)


@pytest.mark.slow
def test_attention_is_that_of_float64_in_every_format_and_alike() -> None:
    check(results(), 200)
