"""FP8 blocks whose last row or column of blocks is narrower: what runs is planned, what is planned runs, by one law."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from running import run
from safetensors.torch import save_file
from torch import Tensor

from isobit.errors import SchemeError, Unsupported
from isobit.formats import codec
from isobit.formats.fitting import check_shape
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import scheme
from isobit.kernels import backends
from isobit.kernels.cpu import library
from isobit.kernels.cpu.linear import quantize_activations
from isobit.models.archs import ARCHS, family, model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.planning import plans
from isobit.models.weights import load_model

BLOCK = 128
needs_kernels = pytest.mark.skipif(library.problem() is not None, reason=str(library.problem()))
KERNELS = ["reference", pytest.param("cpu", marks=needs_kernels)]
ROW = scheme("fp8-block")


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales, block by block, written out: rows and columns of blocks are counted by 128."""
    n, k = weight.shape
    scale, codes = torch.zeros(-(-n // BLOCK), -(-k // BLOCK)), torch.zeros(n, k)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            scale[i, j] = weight[at].abs().max() / 448
            codes[at] = weight[at] / scale[i, j]
    return codes.to(torch.float8_e4m3fn), scale


def by_hand(codes: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """The product in float64, with activations rounded in groups of 128, the last one shorter."""
    total = torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float64)
    for j in range(scale.shape[1]):
        columns = slice(j * BLOCK, (j + 1) * BLOCK)
        part = x[:, columns]
        each = (part.abs().amax(1, keepdim=True) / 448).clamp(min=2**-100)
        values = codec.decode(codec.encode((part / each).clamp(-448, 448), "e4m3fn"), "e4m3fn").double() * each.double()
        blocks = scale[:, j].repeat_interleave(BLOCK)[: codes.shape[0], None].double()
        total += values @ (codes[:, columns].double() * blocks).T
    return total


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("n", "k"), [(130, 160), (40, 320), (256, 64), (5, 1), (1, 129), (300, 255)])
def test_a_linear(n: int, k: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(n)
    codes, scale = rounded(torch.randn(n, k, generator=generator))
    assert ROW.weights is not None
    weight = QTensor(ROW.weights, (n, k), codes.view(torch.uint8), scale)
    monkeypatch.setenv("ISOBIT_KERNEL", kernel)
    run = backends.bind(weight, ROW.activations, None, None, device="cpu").run
    for tokens in (1, 4, 33):
        x = torch.randn(tokens, k, generator=generator)
        exact = by_hand(codes, scale, x)
        assert float((run(x).double() - exact).norm() / exact.norm()) <= 2e-6


@needs_kernels
def test_the_kernels_round_the_last_group_by_the_law() -> None:
    x = torch.randn(3, 160, generator=torch.Generator().manual_seed(0))
    assert ROW.activations is not None
    ours, law = quantize_activations(x, ROW.activations), codec.quantize_activations(x, ROW.activations)
    assert all(torch.equal(one, other) for one, other in zip(ours, law, strict=True)) and law[1].shape == (3, 2)


def checkpoint(folder: Path, architecture: str, kind: str, section: dict[str, Any]) -> Path:
    """A model with hidden size 160, whose linears are in such blocks."""
    config = family(ARCHS[architecture]).tiny() | {
        "architectures": [architecture], "hidden_size": 160, "intermediate_size": 320, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 40, "vocab_size": 60, "num_hidden_layers": 1,
        "quantization_config": section,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in expected_tensors(model_config(config)).items():
        tensors[name] = torch.rand(shape, generator=generator) - 0.4
        if "_proj.weight" in name:
            suffix = "_scale_inv" if section["quant_method"] == "fp8" else "_scale"
            tensors[name], tensors[name + suffix] = rounded(tensors[name])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"FP8_BLOCK": ["Linear"]}, "ignore": ["lm_head"],
}  # fmt: skip
CASES = [("LlamaForCausalLM", "safetensors", FP8), ("MistralForCausalLM", "bin", COMPRESSED),
         ("Qwen2ForCausalLM", "bin", FP8), ("Qwen3ForCausalLM", "safetensors", COMPRESSED)]  # fmt: skip


@pytest.mark.parametrize(("architecture", "kind", "section"), CASES)
@torch.inference_mode()
def test_plans_agree_with_loading(
    architecture: str, kind: str, section: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "model", architecture, kind, section)
    ids, found = torch.tensor([[1, 5, 9, 2]]), []
    for kernel in ("", "reference"):
        monkeypatch.setenv("ISOBIT_KERNEL", kernel)
        found.append(run(load_model(folder), ids))
    assert float((found[0] - found[1]).norm() / found[1].norm()) <= 2.5e-2
    for target in ("cpu-avx2", "cpu-avx512"):
        plan = plans(folder, targets=[target])[1][0][0]
        assert plan.action != "refused", plan.reasons
    # No GPU kernel takes them: then neither a plan nor binding does.
    for plan in (row[0] for row in plans(folder, targets=["sm_86", "sm_90", "gfx942"])[1]):
        assert plan.action == "refused" and "K = 160 is not a multiple of the block width 128" in " ".join(plan.reasons)


def test_no_gpu_kernel_is_bound_to_them() -> None:
    pytest.importorskip("triton")
    from isobit.kernels.gpu.bind import bind
    from isobit.targets.table import target

    codes, scale = rounded(torch.randn(130, 160))
    assert ROW.weights is not None
    weight = QTensor(ROW.weights, (130, 160), codes.view(torch.uint8), scale)
    with pytest.raises(Unsupported, match="K = 160 is not a multiple of the block width 128"):
        bind(weight, ROW.activations, None, None, target=target("sm_90"))


def test_isobit_itself_writes_whole_blocks_only() -> None:
    """transformers 5.23 divides K evenly by the number of blocks, and so reads such a checkpoint wrongly."""
    assert ROW.weights is not None
    with pytest.raises(SchemeError, match="block width 128"):
        check_shape(ROW.weights, 130, 160, "m", ROW.activations)
    plan = plans({"architectures": ["LlamaForCausalLM"], **family("llama").tiny(), "hidden_size": 160, "head_dim": 40},
                 targets=["cpu-avx512"], scheme_names=["fp8-block"])[1][0][0]  # fmt: skip
    assert plan.action != "refused" and any(
        "blocks 128 wide do not divide 160 inputs: fp8 for" in note for note in plan.notes
    )
