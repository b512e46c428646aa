"""A plan needs no weights, and says of those that are there what loading says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_model

from isobit.errors import CheckpointError
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
