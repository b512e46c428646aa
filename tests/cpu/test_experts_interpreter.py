"""Mixtures of experts, and whole families, on the GPU kernels in Triton's interpreter, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow
# Of a whole mixture: float16 between its parts, and what sums in another order move across a midpoint before down.
LIMITS = {
    "same": 0.0,
    "linear": 5e-4,
    "router": 1e-6,
    "other": 5e-4,
    "whole": 1e-2,
    "sorted": 1e-2,
}
FAMILIES = (
    "MixtralForCausalLM", "Qwen3MoeForCausalLM", "Starcoder2ForCausalLM", "Phi3ForCausalLM", "Gemma3ForCausalLM",
    "HunYuanDenseV1ForCausalLM", "Ministral3ForCausalLM", "SmolLM3ForCausalLM", "GraniteForCausalLM",
    "ArceeForCausalLM", "Exaone4ForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "gpt-oss in MXFP4",
)  # fmt: skip


def printed(program: str, *arguments: str) -> list[Any]:
    """What a program in the interpreter printed."""
    path = Path(__file__).with_name(program)
    paths = os.pathsep.join((str(path.parents[1]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, str(path), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.fixture(scope="module")
def results() -> dict[str, float]:
    return dict(printed("interpreter_experts.py"))


@pytest.mark.parametrize("kind", LIMITS)
def test_experts_are_those_of_the_law(kind: str, results: dict[str, float]) -> None:
    chosen = {name: error for name, error in results.items() if name.startswith(kind)}
    assert len(chosen) >= 3
    assert not {name: error for name, error in chosen.items() if not error <= LIMITS[kind]}


def test_every_way_of_multiplying_has_been_seen(results: dict[str, float]) -> None:
    """One token by lanes, by warps and by packed words; few and many tokens in tiles."""
    rows = {name.rpartition(" ")[2] for name in results if name.startswith("linear")}
    assert {row.partition("-")[0] for row in rows} >= {"vector", "few", "many"}
    assert any("lanes" in row for row in rows) and any("stream" in row for row in rows)
    assert {"few-block-widened", "many-block-widened", "few-int4-f16", "many-int4-f16"} <= rows


def test_whole_families_run_on_the_gpu_kernels(tmp_path: Path) -> None:
    found = printed("interpreter_families.py", str(tmp_path), *FAMILIES)
    assert [name for name, *_ in found] == [*FAMILIES]
    for name, dtype, ops, apart in found:
        assert ops == "triton" and apart < {"float16": 5e-3, "float32": 1e-5}[dtype], (name, apart)
