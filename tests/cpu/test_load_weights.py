"""Loading: mixtures of formats, tied and quantized embeddings, and checkpoints that do not fit their config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, linears, quantize_tiny, tiny_model, write
from running import run
from safetensors.torch import load_file
from torch import Tensor

from isobit.errors import CheckpointError, ModelError, UsageError
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import scheme
from isobit.models.archs import model_config
from isobit.models.blueprint import classifier, expected_tensors
from isobit.models.weights import load_model

DOWN = "model.layers.1.mlp.down_proj.weight"
IDS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    tiny_model(torch.float32).save_pretrained(folder)
    return folder


def changed(source: Path, target: Path, tensors: dict[str, Tensor | None], **config: Any) -> Path:
    """A copy with tensors replaced, added or (None) removed, and config keys replaced."""
    kept = load_file(source / "model.safetensors") | tensors
    return write(target, json.loads((source / "config.json").read_text()) | config,
                 {name: tensor for name, tensor in kept.items() if tensor is not None})  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({DOWN: None}, "model.layers.1.mlp.down_proj"),
        ({"model.norm.weight": None}, "model.norm"),
        ({"lm_head.weight": None}, "lm_head"),
        ({DOWN: torch.ones(128, 255)}, "down_proj.weight.*128, 255"),
        ({"model.norm.weight": torch.ones(127)}, "model.norm.weight.*127"),
        ({"model.layers.2.mlp.down_proj.weight": torch.ones(128, 256)}, "model.layers.2.mlp.down_proj.weight"),
        ({"model.layers.0.mlp.up_proj.bias": torch.ones(256)}, "up_proj.bias.*surplus"),
        ({"model.layers.0.mlp.up_proj.weight_scale": torch.ones(256, 1)}, "up_proj.weight_scale"),
    ],
)
def test_what_does_not_fit_is_named(source: Path, tmp_path: Path, tensors: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_model(changed(source, tmp_path / "bad", tensors))


def test_a_bias_the_config_promises_must_be_there(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="q_proj.bias.*missing"):
        load_model(changed(source, tmp_path / "bad", {}, attention_bias=True))


@torch.inference_mode()
def test_leftovers_of_old_checkpoints_are_ignored(source: Path, tmp_path: Path) -> None:
    old = changed(source, tmp_path / "old", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    assert torch.equal(run(load_model(old), IDS), run(load_model(source), IDS))


@pytest.mark.parametrize("stored", [True, False])
@torch.inference_mode()
def test_a_tied_head_may_be_stored_or_not(source: Path, tmp_path: Path, stored: bool) -> None:
    table = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    head = {"lm_head.weight": table.clone() if stored else None}
    tied = load_model(changed(source, tmp_path / "tied", head, tie_word_embeddings=True))
    untied = load_model(changed(source, tmp_path / "untied", {"lm_head.weight": table.clone()}))
    assert torch.equal(run(tied, IDS), run(untied, IDS))
    assert "lm_head.weight" not in expected_tensors(tied.config)


@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_formats_may_be_mixed_down_to_embeddings(tmp_path: Path, tied: bool) -> None:
    plain = tmp_path / "plain"
    tiny_model(torch.float32, tie_word_embeddings=tied).save_pretrained(plain)
    names = ["int8-w8a16", "fp8-w8a16", "int4-g32", "int4-asym", "int2", None]
    chosen = {module: names[i % len(names)] for i, module in enumerate(linears(CONFIG))}
    chosen |= {"model.embed_tokens": "int8-w8a16"} | ({} if tied else {"lm_head": "int4"})
    assigned = {module: scheme(name) if name else None for module, name in chosen.items()}
    held = quantize_tiny(plain, tmp_path / "mixed", assigned)
    model = load_model(tmp_path / "mixed")
    for module, linear in model.linears():
        if module in chosen:
            assert isinstance(linear.weight, QTensor) == (chosen[module] is not None), module
    same = changed(plain, tmp_path / "same", {f"{module}.weight": qt.dequantize() for module, qt in held.items()})
    torch.testing.assert_close(run(model, IDS), run(load_model(same), IDS), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_large_weights_are_streamed_with_the_same_result(source: Path, tmp_path: Path) -> None:
    bf16 = tmp_path / "bf16"
    tiny_model(torch.bfloat16).save_pretrained(bf16)
    kept, streamed = load_model(bf16, keep_values=True), load_model(bf16, keep_values=False)
    weights = [dict(model.linears())["lm_head"].weight for model in (kept, streamed)]
    assert [weight.dtype for weight in weights] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(run(streamed, IDS), run(kept, IDS), rtol=0, atol=1e-5)


def test_an_unknown_dtype_is_refused(source: Path) -> None:
    with pytest.raises(UsageError, match="float64.*float32, bfloat16, float16"):
        load_model(source, dtype="float64")


def test_an_unknown_architecture_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        load_model(changed(source, tmp_path / "other", {}, architectures=["GPT2LMHeadModel"]))


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("lm_head.weight", "lm_head"), ("model.embed_tokens.weight", "embedding"), ("model.norm.weight", "norm"),
        ("model.layers.0.self_attn.q_proj.bias", "linear"), ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.mlp.gate_proj.weight", "linear"), ("model.layers.99.mlp.gate_proj.weight", "other"),
        ("model.layers.0.mlp.gate.weight", "other"), ("model.something.weight", "other"),
    ],
)  # fmt: skip
def test_kinds(tensor: str, kind: str) -> None:
    config = CONFIG | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    assert classifier(model_config(config))(tensor) == kind


def test_biases_and_norms_are_expected_where_flags_say() -> None:
    sizes = {key: value for key, value in CONFIG.items() if key not in ("architectures", "model_type")}
    qwen2 = expected_tensors(model_config({"architectures": ["Qwen2ForCausalLM"]} | sizes))
    qwen3 = expected_tensors(model_config({"architectures": ["Qwen3ForCausalLM"]} | sizes))
    attention = "model.layers.1.self_attn."
    assert qwen2[f"{attention}k_proj.bias"] == (64,) and f"{attention}o_proj.bias" not in qwen2
    assert qwen3[f"{attention}q_norm.weight"] == (32,) and f"{attention}k_proj.bias" not in qwen3
