"""Matrices that a checkpoint stores for several linears: quantized as one, run as several, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import make_model, save, token_ids
from running import run
from safetensors.torch import load_file, save_file
from tiny import save_tokenizer
from torch import Tensor

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import FormatError
from isobit.evaluation import info
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.models.pack import requests
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.quantizer.calibrate import input_scales
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import default_search, quantize_weight
from isobit.targets.table import target

# Rows of q, k and v end inside blocks of 128: 384, 448 and 512; so do those of gate and up: 192.
SIZES = {
    "hidden_size": 384, "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 6,
    "num_key_value_heads": 1, "sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": False,
}  # fmt: skip
QKV, GATE_UP = "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"
PARTS = {"q_proj": slice(0, 384), "k_proj": slice(384, 448), "v_proj": slice(448, 512)}
IDS = token_ids(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model("Phi3ForCausalLM", **SIZES), tmp_path_factory.mktemp("phi3"), torch.bfloat16)


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as a Llama has them."""
    found = dict(tensors)
    qkv, gate_up = found.pop(f"{QKV}.weight"), found.pop(f"{GATE_UP}.weight")
    found |= {f"model.layers.0.self_attn.{name}.weight": qkv[rows] for name, rows in PARTS.items()}
    gate, up = gate_up.chunk(2)
    return found | {"model.layers.0.mlp.gate_proj.weight": gate, "model.layers.0.mlp.up_proj.weight": up}


def as_llama(folder: Path, out: Path) -> Path:
    out.mkdir()
    tensors = apart(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    for key in ("original_max_position_embeddings", "embd_pdrop", "resid_pdrop"):
        config.pop(key, None)
    config["rope_parameters"].pop("partial_rotary_factor", None)
    (out / "config.json").write_text(json.dumps(config))
    return out


@torch.inference_mode()
def logits(folder: Path) -> Tensor:
    return run(load_model(folder), IDS)


def quantized(folder: Path, out: Path, name: str) -> Path:
    rules = (Rule("down_proj", "keep"),) if name == "fp8-block" else ()  # 192 columns are no blocks of 128
    quantize(folder, out, Policy(scheme(name), rules), progress=False)
    return out


@pytest.mark.parametrize("name", ["fp8", "int4", "int4-asym", "w4a8", "int8-w8a16"])
def test_a_scale_for_each_row_gives_what_matrices_of_their_own_give(folder: Path, name: str, tmp_path: Path) -> None:
    name = {"int4": "int4-g64", "int4-asym": "int4-asym-g64", "w4a8": "w4a8-g64"}.get(name, name)
    one = quantized(folder, tmp_path / "one", name)
    stored = Checkpoint.open(one).tensors
    assert any(stored_name.startswith(f"{QKV}.weight_") for stored_name in stored)
    assert not any("q_proj" in stored_name or "gate_proj" in stored_name for stored_name in stored)
    several = quantized(as_llama(folder, tmp_path / "llama"), tmp_path / "several", name)
    assert torch.equal(logits(one), logits(several))


@torch.inference_mode()
def test_rows_that_share_a_block_read_its_scale(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = quantized(folder, tmp_path / "out", "fp8-block")
    whole = read_linear(Checkpoint.open(out), QKV).weight
    assert isinstance(whole, QTensor) and whole.spec.block == (128, 128)
    model = load_model(out)
    attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
    for name, rows in PARTS.items():
        part = getattr(attention, name).weight
        assert part.spec.block == (64, 128) and torch.equal(part.dequantize(), whole.dequantize(rows))
    gate_up = read_linear(Checkpoint.open(out), GATE_UP).weight
    assert isinstance(gate_up, QTensor)
    for name, rows in (("gate_proj", slice(0, 192)), ("up_proj", slice(192, 384))):
        assert torch.equal(getattr(mlp, name).weight.dequantize(), gate_up.dequantize(rows))
    found = run(model, IDS)
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    wanted = logits(out)
    assert (found - wanted).norm() / wanted.norm() < 1e-2


def test_one_scale_of_the_inputs_is_measured_for_all_of_its_rows(folder: Path) -> None:
    save_tokenizer(folder)
    ck = Checkpoint.open(folder)
    modules = {QKV, GATE_UP}
    assert modules < {name for name, _ in load_model(ck).linears()}
    found = input_scales(ck, modules, "the quick brown fox " * 40)
    assert found.keys() == modules and all(scale > 0 for scale in found.values())


def test_every_command_calls_it_as_it_is_stored(folder: Path, tmp_path: Path) -> None:
    out = quantized(folder, tmp_path / "out", "fp8")
    said = info.text(info.describe(out), tensors=True)
    assert "qkv_proj" in said and "q_proj" not in said.replace("qkv_proj", "")
    numbers = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    work, _ = plans(folder, targets=["cpu-avx2"], scheme_names=["fp8"])
    assert sum(tensor.shape[0] * (tensor.shape[1:] or (1,))[0] * tensor.count for tensor in work.tensors) == numbers
    kept = tmp_path / "kept"
    quantize(folder, kept, Policy(scheme("fp8"), (Rule("qkv_proj", "keep"),)), progress=False)
    stored = Checkpoint.open(kept).tensors
    assert f"{QKV}.weight_scale" not in stored and f"{GATE_UP}.weight_scale" in stored


@pytest.mark.parametrize("name", ["fp8", "int4-g64"])
def test_a_pack_has_the_kernels_of_matrices_of_their_own(folder: Path, name: str, tmp_path: Path) -> None:
    one = quantized(folder, tmp_path / "one", name)
    several = quantized(as_llama(folder, tmp_path / "llama"), tmp_path / "several", name)
    sm = target("sm_86")
    assert requests(one, sm, None)[0].keys() == requests(several, sm, None)[0].keys()


def test_blocks_are_made_lower_and_never_higher() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(300, 256, generator=generator)
    spec = scheme("fp8-block").weights
    assert spec is not None
    found = quantize_weight(weight, spec, search=default_search(spec), scale_dtype=torch.float32)
    for height in (128, 64, 4, 1):
        lower = found.in_lower_blocks(height)
        assert lower.spec.block == (height, 128) and torch.equal(lower.dequantize(), found.dequantize())
    for height in (0, 3, 256):
        with pytest.raises(FormatError, match="are not cut"):
            found.in_lower_blocks(height)
