"""A plan needs no weights, and says of those that are there what loading says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_checkpoints import linears, quantize_tiny, save_tiny
from safetensors.torch import load_file, save_file
from tiny import save_model

from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.formats.schemes import scheme
from isobit.models.planning import plans
from isobit.models.weights import load_model

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("what", ["nothing", "wide", "missing", "surplus", "short", "integers"])
def test_weights_that_do_not_fit_are_refused_as_on_loading(tmp_path: Path, what: str, kind: str) -> None:
    folder = save_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    if what == "wide":
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    elif what == "missing":
        del tensors[NAME]
    elif what == "surplus":
        tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(len(tensors[NAME]))
    elif what == "short":
        tensors[NAME] = tensors[NAME][1:].clone()
    elif what == "integers":
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    (folder / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    if what == "nothing":
        load_model(folder)
        assert plans(folder, targets=["sm_90"], scheme_names=["bf16"])[1]
        return
    with pytest.raises(CheckpointError) as loading:
        load_model(folder)
    with pytest.raises(CheckpointError) as planning:
        plans(folder, targets=["sm_90"], scheme_names=["bf16"])
    assert str(planning.value) == str(loading.value)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_head_that_is_left_plain_is_planned_so_whatever_its_class(tmp_path: Path, kind: str) -> None:
    """Configs that say "Linear" and ignore nothing are met with heads that were never quantized."""
    folder = tmp_path / "int4"
    quantize_tiny(save_tiny(tmp_path / "source"), folder, {module: scheme("int4-g32") for module in linears()})
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    ((plan,),) = plans(folder, targets=["cpu-avx2"])[1]
    planned = {op.name: op.weights for op, _ in plan.ops if op.kind == "linear"}
    assert planned.pop("lm_head") is None and set(planned.values()) == {scheme("int4-g32").weights}
    assert plan.memory.weights == Checkpoint.open(folder).nbytes


def test_quantized_weights_that_are_missing_are_refused_as_on_loading(tmp_path: Path) -> None:
    folder = tmp_path / "int4"
    quantize_tiny(save_tiny(tmp_path / "source"), folder, {module: scheme("int4-g32") for module in linears()})
    assert plans(folder, targets=["sm_90"])[1]
    tensors = load_file(folder / "model.safetensors")
    missing = "model.layers.0.mlp.up_proj."
    save_file(
        {name: one for name, one in tensors.items() if not name.startswith(missing)}, folder / "model.safetensors"
    )
    with pytest.raises(CheckpointError) as loading:
        load_model(folder)
    with pytest.raises(CheckpointError) as planning:
        plans(folder, targets=["sm_90"])
    assert missing in str(planning.value) and str(planning.value) == str(loading.value)
