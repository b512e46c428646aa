"""What the planner says about bytes, against checkpoints that are written and models that are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from isobit.api import quantize
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.source import resolve
from isobit.formats.schemes import scheme
from isobit.legalize.memory import kv_bytes_per_token, weight_bytes
from isobit.models.planning import plans, read_config
from isobit.models.weights import load_model
from isobit.models.workload import workload


@pytest.mark.parametrize("name", ["fp8", "fp8-block", "int8", "int8-w8a16", "int4-asym", "int3", "f16"])
def test_predicted_weight_bytes_are_those_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    quantize("bundled", out, name, search="absmax", progress=False)
    stored = Checkpoint.open(out)
    written = sum(info.nbytes for info in stored.tensors.values())
    assert weight_bytes(workload(read_config("bundled")), scheme(name)) == written
    assert weight_bytes(workload(stored.config), None) == written  # planned as the checkpoint has it


def test_layers_that_are_stored_differently_are_planned_as_they_are(tmp_path: Path) -> None:
    rules = [(r"layers\.[12]\.", "int4-g64"), (r"layers\.3\.mlp", "keep")]
    quantize("bundled", tmp_path / "mixed", "fp8", rules=rules, progress=False)
    stored = Checkpoint.open(tmp_path / "mixed")
    work = workload(stored.config)
    assert weight_bytes(work, None) == sum(info.nbytes for info in stored.tensors.values())
    ((first, *_),) = plans(tmp_path / "mixed", targets=["a6000"])[1]
    formats = {
        (op.name, op.weights and op.weights.element): op.count for op, _ in first.ops if op.name == "mlp.up_proj"
    }
    layers = work.layers
    assert formats == {
        ("mlp.up_proj", "e4m3fn"): layers - 3, ("mlp.up_proj", "int4"): 2, ("mlp.up_proj", None): 1,
    }  # fmt: skip


def test_predicted_cache_bytes_are_those_of_the_cache() -> None:
    model = load_model(resolve("bundled"))
    cache = model.new_cache(3, 10)
    held = sum(t.nbytes for layer in range(model.config.num_layers) for t in cache.memory(layer).tensors)
    assert held == 30 * kv_bytes_per_token(workload(read_config("bundled")), "float32")
