"""The GPU kernels of a layer's parts on the CPU, through Triton's interpreter, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow
# Float32 is a few roundings from float64; float16 has what rounding the result leaves, and the weights of values.
LIMITS = {"torch.float32": 1e-6, "torch.float16": 3e-4}


@pytest.fixture(scope="module")
def results() -> dict[str, float]:
    cases = Path(__file__).with_name("interpreter_layer.py")
    path = os.pathsep.join((str(cases.parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(cases)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", ["attention", "coded", "stored", "row"])
def test_what_is_computed_is_that_of_float64(kind: str, dtype: str, results: dict[str, float]) -> None:
    chosen = {name: error for name, error in results.items() if name.startswith(f"{kind} {dtype}")}
    assert len(chosen) >= 4
    assert not {name: error for name, error in chosen.items() if not error <= LIMITS[dtype]}


@pytest.mark.parametrize(
    "kind",
    [
        "values",
        "codes",
        "prompts alone",
        "sum",
        "alike",
        "rounded",
        "narrowed",
        "residual",
        "silu",
        "gelu",
        "in parts",
        "spread",
        "",
    ],
)
def test_what_must_be_the_same_is_bit_for_bit(kind: str, results: dict[str, float]) -> None:
    chosen = {name: differs for name, differs in results.items() if name.startswith(f"same: {kind}")}
    assert len(chosen) >= 4
    assert not {name for name, differs in chosen.items() if differs}
