"""Weight scales of zero and below, as other tools write them, compute as arithmetic says; `info` tells of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_checkpoints import CONFIG, linears, quantize_tiny, tiny_model, write
from running import run
from safetensors.torch import load_file

from isobit.evaluation.info import describe
from isobit.formats import codec
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, scheme
from isobit.kernels import backends
from isobit.kernels.cpu import library
from isobit.models.weights import load_model
from isobit.quantizer.grid import quantize_weight

# Codes of scales have no sign.
NAMES = [name for name, row in SCHEMES.items() if row.quantized and not name.startswith(("mxfp", "nvfp"))] + [
    "w4a8-g32",
    "int4-asym-g32",
]
N = 40


def odd(scale: torch.Tensor) -> torch.Tensor:
    """Every third scale negative, some zero and some minus zero; a single one negative."""
    found = scale.clone()
    found.view(-1)[::3] *= -1
    found.view(-1)[4::7] = 0
    found.view(-1)[5::7] = -0.0
    return found


def in_float64(weight: QTensor, name: str, x: torch.Tensor, static: torch.Tensor | None) -> torch.Tensor:
    """The product in float64 from the same codes and scales, the sign of each scale taken out by hand."""
    acts, exact = scheme(name).activations, x.double()
    if acts is not None:
        codes, scale = codec.quantize_activations(x, acts, static)
        each = scale.double().repeat_interleave(x.shape[-1] // scale.shape[-1], -1)
        exact = codec.decode(codes, acts.element).double() * each
    signs = replace(weight, scale=weight.scale.sign()).dequantize().double()
    sizes = replace(weight, scale=weight.scale.abs()).dequantize().double().abs()
    return exact @ (signs.sign() * sizes).T


@pytest.mark.parametrize("kernel", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_they_compute_as_they_are(name: str, dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "cpu" and library.problem():
        pytest.skip(str(library.problem()))
    row, generator = scheme(name), torch.Generator().manual_seed(0)
    assert row.weights is not None
    k = 640 if row.weights.group == 40 else 512
    found = quantize_weight(
        torch.randn(N, k, generator=generator), row.weights, search="absmax", scale_dtype=torch.bfloat16
    )
    weight = replace(found, scale=odd(found.scale.to(dtype)))
    static = torch.tensor([0.0625]) if row.needs_calibration else None
    monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    bound = backends.bind(weight, row.activations, static, None, device="cpu")
    assert bound.kernel.name == kernel
    for tokens in (1, 3, 20):
        x = torch.randn(tokens, k, generator=generator)
        y, exact = bound.run(x), in_float64(weight, name, x, static)
        assert float((y.double() - exact).norm() / exact.norm()) <= 2e-6
        zeros = replace(weight, scale=torch.zeros_like(weight.scale))
        assert not backends.bind(zeros, row.activations, static, None, device="cpu").run(x).any()


@pytest.mark.parametrize("name", ["int8-w8a16", "fp8", "int4-g32", "fp8-block"])
@torch.inference_mode()
def test_info_tells_and_models_load(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model(torch.float32).save_pretrained(tmp_path / "plain")
    quantize_tiny(tmp_path / "plain", tmp_path / "model", dict.fromkeys(linears(CONFIG), scheme(name)))
    assert describe(tmp_path / "model").notes == ()
    tensors = load_file(tmp_path / "model/model.safetensors")
    scale = tensors["model.layers.1.mlp.down_proj.weight_scale"]
    scale.view(-1)[0] = -scale.view(-1)[0]
    if scale.numel() > 2:
        scale.view(-1)[1:3] = 0
    config = (tmp_path / "model/config.json").read_text()
    write(tmp_path / "model", {}, tensors)
    (tmp_path / "model/config.json").write_text(config)
    notes = " ".join(describe(tmp_path / "model").notes)
    assert "1 weight scale is negative (model.layers.1.mlp.down_proj.weight_scale)" in notes
    assert ("2 weight scales are zero" in notes) == (scale.numel() > 2)
    ids = torch.arange(6)[None]
    found = run(load_model(tmp_path / "model"), ids)
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    wanted = run(load_model(tmp_path / "model"), ids)
    assert float((found - wanted).norm() / wanted.norm()) < (1e-4 if scheme(name).activations is None else 2.5e-2)
    tensors["model.layers.1.mlp.down_proj.weight_scale"].view(-1)[0] = float("nan")
    write(tmp_path / "model", {}, tensors)
    (tmp_path / "model/config.json").write_text(config)
    assert "is NaN or infinite" in " ".join(describe(tmp_path / "model").notes)
