"""Latent attention on the GPU kernels, in Triton's interpreter on the CPU, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
# Float32 is a few roundings from float64; float16 has what rounding the result leaves, and the weights of latents.
LIMITS = {"torch.float32": 1e-6, "torch.float16": 4.5e-4}
# A code next to a midpoint falls to the other side of it in float64: one of a token's.
CODED = {"torch.float32": 2e-3, "torch.float16": 2e-3}


def results(*names: str) -> dict[str, float]:
    cases = Path(__file__).with_name("interpreter_latent.py")
    path = os.pathsep.join((str(cases.parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(cases), *names], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def check(found: dict[str, float], least: int) -> None:
    assert len(found) >= least
    for name, error in found.items():
        kind, _, rest = name.partition(" ")
        if kind == "same:":
            assert not error, name
            continue
        dtype, element, _ = rest.split(" ", 2)
        assert error <= (CODED if kind == "result" and element else LIMITS)[dtype], (name, error)


def test_a_thin_slice_is_that_of_float64() -> None:
    check(results("thin"), 30)


@pytest.mark.slow
def test_latent_attention_is_that_of_float64_in_every_format_alone_and_in_parts() -> None:
    check(results(), 100)
