"""Dynamic activation scales are per token: what a token becomes does not depend on the tokens beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from running import run
from safetensors.torch import load_file, save_file
from tiny import HIDDEN, save_model

from isobit.errors import SchemeError
from isobit.formats.schemes import ActSpec
from isobit.models.weights import load_model

TENSOR = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": True}
TOKEN = TENSOR | {"strategy": "token"}


def compressed(activations: dict[str, Any]) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"g": group}}


SECTIONS: dict[str, dict[str, Any]] = {
    "token": compressed(TOKEN), "tensor": compressed(TENSOR),
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same fp8 weights, a scale per tensor, under three configurations."""
    root = tmp_path_factory.mktemp("per_token")
    plain = save_model(root / "plain", context=64)
    tensors = load_file(plain / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].float().abs().max() / 448
        tensors[f"{name}_scale"] = scale
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
    config = json.loads((plain / "config.json").read_text())
    for kind, section in SECTIONS.items():
        shutil.copytree(plain, root / kind)
        save_file(tensors, root / kind / "model.safetensors", {"format": "pt"})
        (root / kind / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return {kind: root / kind for kind in SECTIONS}


def test_a_scale_for_the_tensor_is_one_per_token(folders: dict[str, Path]) -> None:
    ids = torch.arange(5, 45).unsqueeze(0)
    with torch.inference_mode():
        token, tensor, fp8 = (run(load_model(folders[kind]), ids) for kind in ("token", "tensor", "fp8"))
    assert torch.equal(token, tensor) and torch.equal(token, fp8)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize("kind", SECTIONS)
def test_neighbours_do_not_change_a_token(
    folders: dict[str, Path], kind: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    up = dict(load_model(folders[kind]).linears())["model.layers.0.mlp.up_proj"]
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1))
    x[1] *= 1000.0  # with one scale for all, this row would round the others to nothing
    together = up(x)
    for row in range(3):
        alone = up(x[row : row + 1])[0]
        assert (alone - together[row]).norm() <= 1e-6 * alone.norm()


def test_no_scheme_can_name_it() -> None:
    with pytest.raises(SchemeError, match="one per token"):
        ActSpec("e4m3fn", "tensor")
    assert not ActSpec("e4m3fn", "tensor", dynamic=False).dynamic
