"""An invented GPU kernel is its function and one row, in a copy of the sources: planned, proved, listed, and right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="compiling kernels needs Triton: pip install triton")

SOURCES = Path(__file__).parents[2] / "src" / "isobit"

FUNCTION = '''
"""One token by plain float16 weights: a product of the invented kind."""

import triton
import triton.language as tl


@triton.jit
def dot(x, w, bias, y, N, K, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, K, BLOCK_K):
        k = begin + column
        inside = (n < N)[:, None] & (k < K)[None, :]
        weights = tl.load(w + n.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0.0).to(tl.float32)
        total += weights * tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    sums = tl.sum(total, axis=1)
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y + n, sums.to(y.dtype.element_ty), mask=n < N)
'''
BEFORE = "def _all_rows() -> Iterator[Variant]:"
ROW = """\
    yield Variant(
        "invented-f16", "vector", "scalar", f"{_MODULES}.invented:dot", "float", None, None, "f32", "*fp16", compiles,
        lambda target: tiles.Config(
            tiles.matrix_signature("*fp16", "*fp16"), {"HAS_BIAS": False, "BLOCK_N": 8, "BLOCK_K": 256}, 2, 1
        ),
        _ONE, -1, ("float16",), promises=lambda target: ("FFMA",) if is_cuda(target) else (r"v_(pk_)?fma",),
    )"""

# Bound for a target in Triton's interpreter: which row runs a token and which two, and how far both are from float64.
PROGRAM = """
import json, torch
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.machine import Machine
from isobit.targets.table import target
draw = torch.Generator().manual_seed(3)
weight, bias = torch.randn(70, 300, generator=draw).half(), torch.randn(70, generator=draw).half()
linear = bind(weight, None, None, bias, machine=Machine.imagined(target("sm_86")))
for tokens in (1, 2):
    x = torch.randn(tokens, 300, generator=draw).half()
    right = x.double() @ weight.double().T + bias.double()
    row = linear.variant(tokens, torch.float16)
    print(json.dumps([row.name, float((linear(x) - right).norm() / right.norm())]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("*.so", "model", "heldout", "__pycache__", "cpp")
    shutil.copytree(SOURCES, root / "isobit", ignore=leave)
    gpu = root / "isobit" / "kernels" / "gpu"
    (gpu / "triton" / "invented.py").write_text(FUNCTION)
    rows = (gpu / "rows.py").read_text(encoding="utf-8")
    assert rows.count(BEFORE) == 1
    (gpu / "rows.py").write_text(rows.replace(BEFORE, f"{BEFORE}\n{ROW}"), encoding="utf-8")
    return root


def run(root: Path, *words: str, **environment: str) -> str:
    known = {**os.environ, "PYTHONPATH": str(root), "ISOBIT_CACHE": str(root / "cache"), **environment}
    done = subprocess.run([sys.executable, *words], env=known, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_plans_name_it_for_one_token(root: Path) -> None:
    (root / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
        "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "torch_dtype": "float16",
    }))  # fmt: skip
    asked = ["-m", "isobit", "plan", "config.json", "--target", "sm_86,gfx942", "--scheme", "f16,bf16", "--json"]
    found: list[dict[str, Any]] = json.loads(run(root, *asked))["plans"]
    kernels = {(one["target"], one["scheme"]): json.dumps(one) for one in found}
    assert len(found) == 4 and all(one["action"] == "native" for one in found)
    for (_, scheme), text in kernels.items():
        assert ("invented-f16" in text) == (scheme == "f16")


def test_it_is_compiled_checked_and_listed(root: Path) -> None:
    asked = ["-m", "isobit", "compile", "--target", "sm_75,sm_90,gfx942", "--variant", "invented", "-j", "1"]
    found = json.loads(run(root, *asked, "--json", "--support", "support.md"))
    assert [(one["variant"], one["problems"]) for one in found] == [("invented-f16", [])] * 3
    assert {one["target"] for one in found} == {"sm_75", "sm_90", "gfx942"}
    assert (root / "support.md").read_text().count("| invented-f16 |") == 3


def test_it_runs_what_it_is_asked_for_and_is_right(root: Path) -> None:
    one, two = map(json.loads, run(root, "-c", PROGRAM, TRITON_INTERPRET="1").splitlines())
    assert one[0] == "invented-f16" and two[0] == "few-f16"
    assert one[1] < 5e-4 and two[1] < 5e-4  # the result's own rounding to float16
