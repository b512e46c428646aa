"""Floats below 8 bits, which no scheme of the table has yet: a row is enough to quantize, store and run one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running import run
from tiny import save_model

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import Unsupported
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy
from isobit.formats.schemes import ActSpec, Scheme, WeightSpec
from isobit.legalize.memory import weight_bytes
from isobit.models.weights import load_model
from isobit.models.workload import workload
from isobit.quantizer.driver import quantize

ROWS = (
    Scheme("fp6-g32", WeightSpec("e3m2", "group", 32)),
    Scheme("fp6-a6", WeightSpec("e2m3", "channel"), ActSpec("e2m3", "token")),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@torch.inference_mode()
def test_a_narrow_float_is_quantized_stored_and_run(row: Scheme, tmp_path: Path) -> None:
    source, out = save_model(tmp_path / "source"), tmp_path / row.name
    quantize(source, out, Policy(row), search="absmax", progress=False)
    ck = Checkpoint.open(out)
    assert sum(info.nbytes for info in ck.tensors.values()) == weight_bytes(workload(ck.config), None)
    model, plain = load_model(out), load_model(source)
    linears = dict(model.linears())
    held = linears["model.layers.0.mlp.up_proj"]
    assert isinstance(held.weight, QTensor) and held.weight.spec == row.weights and held.kernel.name == "reference"
    for name, linear in plain.linears():
        if name != "lm_head":
            near = linears[name].weight.dequantize()
            assert float((near - linear.weight.float()).norm() / linear.weight.float().norm()) < 0.15
    ids = torch.tensor([[5, 17, 250, 3]])
    wanted, got = run(plain, ids), run(model, ids)
    assert bool(got.isfinite().all()) and float((got - wanted).norm() / wanted.norm()) < 0.6


def test_they_are_described_as_what_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize(save_model(tmp_path / "source"), out, Policy(ROWS[0]), search="absmax", progress=False)
    assert "e3m2" in str(describe(out))


def test_a_gpu_refuses_them_with_the_reason() -> None:
    pytest.importorskip("triton")
    from isobit.kernels.gpu.bind import bind
    from isobit.quantizer.grid import quantize_weight
    from isobit.targets.table import TARGETS

    spec = ROWS[0].weights
    assert spec is not None
    weight = quantize_weight(torch.randn(16, 64), spec, search="absmax", scale_dtype=torch.bfloat16)
    with pytest.raises(Unsupported, match="no GPU kernel has e3m2 weights"):
        bind(weight, None, None, None, target=TARGETS["sm_90"])
