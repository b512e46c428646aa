"""Rounding by a scale's reciprocal, and gates in every form, through Triton's interpreter, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def results() -> dict[str, int]:
    cases = Path(__file__).with_name("interpreter_rounding.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(cases)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize(("kind", "cases"), [("midpoints", 18), ("hard", 6), ("bfloat16", 12), ("gate", 104)])
def test_no_bit_differs_from_the_law(kind: str, cases: int, results: dict[str, int]) -> None:
    chosen = {name: differing for name, differing in results.items() if name.startswith(kind)}
    assert len(chosen) == cases
    assert not {name: differing for name, differing in chosen.items() if differing}
