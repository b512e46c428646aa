"""The GPU kernels' arithmetic on the CPU, through Triton's interpreter, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow
TOLERANCE = 5e-6  # float32 sums of a few hundred products; the contract allows 5e-4


@pytest.fixture(scope="module")
def results() -> dict[str, float]:
    cases = Path(__file__).with_name("interpreter_cases.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(cases)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def _failures(results: dict[str, float], kind: str, limit: float) -> dict[str, float]:
    chosen = {name: error for name, error in results.items() if name.startswith(kind)}
    assert chosen
    return {name: error for name, error in chosen.items() if not error <= limit}


def test_every_rounded_activation_equals_the_law(results) -> None:
    assert not _failures(results, "rounding", 0.0)


def test_every_code_is_decoded_to_its_value(results) -> None:
    assert not _failures(results, "codes", 0.0)


def test_weights_widened_once_per_call_are_within_the_tolerance(results) -> None:
    assert not _failures(results, "large", TOLERANCE)
    assert all("large-" in name for name in results if name.startswith("large") and "x" in name)


def test_tiles_that_tma_copies_have_the_bits_of_those_that_threads_ask_for(results) -> None:
    assert not _failures(results, "tma", 0.0)


def test_one_token_by_lanes_is_within_the_tolerance(results) -> None:
    assert not _failures(results, "lanes", TOLERANCE)
    assert all("-lanes" in name for name in results if name.startswith("lanes"))


def test_one_token_by_warps_that_run_the_assembly_is_within_the_tolerance(results) -> None:
    assert not _failures(results, "warps", TOLERANCE)
    assert all("-lanes" in name for name in results if name.startswith("warps"))


@pytest.mark.parametrize("scheme", ["fp8", "int8", "int4", "int3", "int2", "e2m1", "e4m3fn", "few bits"])
def test_linears_are_within_the_tolerance(results, scheme) -> None:
    assert not _failures(results, scheme, TOLERANCE)
