"""Kimi-K2-Thinking and DeepSeek V3 as they are published, in small: experts of packed int4, fp8 blocks everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model, save, token_ids
from running import run
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

IDS = token_ids(24)
# What the published config.json says; the sizes are the tiny model's.
QUANTIZATION: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "config_groups": {"group_0": {
        "targets": ["Linear"], "input_activations": None, "output_activations": None,
        "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
            "observer": "minmax", "dynamic": False, "actorder": None, "block_structure": None,
        },
    }},
    "ignore": [
        "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"
    ],
}  # fmt: skip


def packed(weight: Tensor, coarse: bool) -> tuple[dict[str, Tensor], Tensor]:
    """(its tensors, what they stand for): codes from -8 to 7 plus 8, eight in an int32, the first in its low bits.

    Coarse scales have 4 bits, so that bfloat16, which transformers makes of experts, holds what they stand for.
    """
    rows, columns = weight.shape
    grouped = weight.float().view(rows, -1, 32)
    scale = (grouped.abs().amax(-1, keepdim=True) / 7.5).bfloat16()
    scale = (scale.view(torch.int16) & -16).view(torch.bfloat16) if coarse else scale
    codes = (grouped / scale.float()).round().clamp(-8, 7).to(torch.int64)
    words = ((codes + 8).view(rows, -1, 8) << (4 * torch.arange(8))).sum(-1)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    parts = {"weight_packed": words, "weight_scale": scale.squeeze(-1), "weight_shape": torch.tensor([rows, columns])}
    return parts, (codes * scale.float()).view(rows, columns)


def published(root: Path, coarse: bool) -> tuple[Path, Path, dict[str, Tensor]]:
    """(the folder in the published layout, a plain one of what its experts stand for, those)."""
    changes = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.3, "rms_norm_eps": 1e-5}
    plain = save(make_model("DeepseekV3ForCausalLM", **changes), root / "plain", torch.bfloat16)
    tensors, stored, experts = load_file(plain / "model.safetensors"), {}, {}
    for name, tensor in tensors.items():
        if ".mlp.experts." in name:
            parts, experts[name] = packed(tensor, coarse)
            module = name.removesuffix(".weight")
            stored |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
        else:
            stored[name] = tensor
    whole = tensors | {name: value.bfloat16() for name, value in experts.items()}
    save_file(whole, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    folder = root / "Kimi-K2-Thinking"
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config |= {"model_type": "kimi_k2", "quantization_config": QUANTIZATION, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, plain, experts


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Tensor]]:
    return published(tmp_path_factory.mktemp("thinking"), coarse=True)


def theirs(folder: Path, out: Path) -> Any:
    """transformers' model; ``kimi_k2`` is its deepseek_v3."""
    from transformers import AutoModelForCausalLM

    out.mkdir()
    (out / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "deepseek_v3"}
    (out / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    return torch.nn.Module.float(model)  # experts come in bfloat16, and would compute in it


@torch.inference_mode()
def test_the_published_layout_gives_transformers_logits(thinking: Any, tmp_path: Path) -> None:
    folder, plain, experts = thinking
    assert all(torch.equal(value.bfloat16().float(), value) for value in experts.values())
    model = load_model(folder)
    mine = run(model, IDS)
    assert (mine - theirs(folder, tmp_path / "theirs")(IDS).logits).abs().max() <= 1e-4
    assert (mine - run(load_model(plain), IDS)).abs().max() <= 1e-4
    assert any("epsilon" in note for note in model.notes)


def test_packed_experts_are_read_to_the_bit(tmp_path: Path) -> None:
    folder, _, experts = published(tmp_path, coarse=False)
    ck, model = Checkpoint.open(folder), theirs(folder, tmp_path / "theirs")
    for name, values in experts.items():
        weight = read_linear(ck, name.removesuffix(".weight")).weight
        assert isinstance(weight, QTensor) and torch.equal(weight.dequantize(), values)
        _, _, layer, _, _, expert, part, _ = name.split(".")
        held = model.model.layers[int(layer)].mlp.experts
        both = held.gate_up_proj[int(expert)].chunk(2)
        held = {"gate_proj": both[0], "up_proj": both[1], "down_proj": held.down_proj[int(expert)]}[part]
        assert torch.equal(values.bfloat16().float(), held.float())  # which transformers makes bfloat16


@torch.inference_mode()
def test_decoding_from_the_cache_is_the_same(thinking: Any) -> None:
    model = load_model(thinking[0])
    cache = model.new_cache(2, 24)
    steps = [run(model, IDS[:, :9], cache)] + [run(model, IDS[:, at : at + 1], cache) for at in range(9, 24)]
    assert (torch.cat(steps, 1) - run(model, IDS)).abs().max() <= 1e-4


def test_a_plan_knows_what_is_stored(thinking: Any) -> None:
    work, found = plans(thinking[0], targets=["H200"])
    assert found[0][0].memory.weights == sum(
        value.numel() * value.element_size() for value in load_file(thinking[0] / "model.safetensors").values()
    )
    assert work.max_context == 256


def blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 codes and a scale for each block of 128 x 128, the last ones shorter."""
    rows, columns = weight.shape
    tall, wide = -(-rows // 128), -(-columns // 128)
    padded = torch.zeros(tall * 128, wide * 128)
    padded[:rows, :columns] = weight.float()
    cut = padded.view(tall, 128, wide, 128)
    scale = cut.abs().amax((1, 3)) / 448
    codes = (cut / scale[:, None, :, None]).view(tall * 128, wide * 128)[:rows, :columns]
    return codes.to(torch.float8_e4m3fn), scale


@torch.inference_mode()
def test_blocks_of_fp8_everywhere_as_deepseek_publishes_them(tmp_path: Path) -> None:
    changes = {"kv_lora_rank": 128, "qk_rope_head_dim": 32}  # 160 rows: a whole block and one of 32
    plain = save(make_model("DeepseekV3ForCausalLM", **changes), tmp_path / "plain")
    tensors, stored, values = load_file(plain / "model.safetensors"), {}, {}
    for name, tensor in tensors.items():
        stored[name] = values[name] = tensor
        if "_proj" in name:
            codes, scale = blocks(tensor)
            stored[name], stored[f"{name}_scale_inv"] = codes, scale
            spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            values[name] = codes.float() * spread[: tensor.shape[0], : tensor.shape[1]]
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    folder = tmp_path / "fp8"
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    method = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    model = load_model(folder)
    assert torch.equal(model.layers[0].self_attn.kv_b_proj.weight, values["model.layers.0.self_attn.kv_b_proj.weight"])
    exact, found = run(load_model(plain), IDS), run(model, IDS)
    assert 1e-4 < (found - exact).norm() / exact.norm() < 0.3  # activations are rounded, and choose other experts


@pytest.mark.parametrize("name", ["fp8", "int8", "int4"])
@torch.inference_mode()
def test_packed_experts_are_quantized_anew_when_asked(thinking: Any, name: str, tmp_path: Path) -> None:
    folder, plain, _ = thinking
    policy = Policy(scheme(name))
    quantize(folder, tmp_path / "out", policy, progress=False, from_quantized=True)
    quantize(plain, tmp_path / "direct", policy, progress=False)
    mine, direct = (run(load_model(tmp_path / part), IDS) for part in ("out", "direct"))
    assert (mine - direct).norm() / direct.norm() < 0.02
    expert = "model.layers.2.mlp.experts.3.gate_proj"
    assert isinstance(read_linear(Checkpoint.open(tmp_path / "out"), expert).weight, QTensor)
