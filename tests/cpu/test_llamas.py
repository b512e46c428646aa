"""Llamas by other names: transformers runs them as Llamas, under the name of their own or saved as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import save, token_ids
from running import run
from transformers import AutoConfig, AutoModelForCausalLM

from isobit.errors import ModelError
from isobit.models.archs import LLAMAS, model_config
from isobit.models.weights import load_model

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "InternLM3": ("internlm3", {}),
    "InternLM3 with biases and a rope that grows": (
        "internlm3",
        {"attention_bias": True, "mlp_bias": True,
         "rope_parameters": {"rope_type": "dynamic", "factor": 6.0, "rope_theta": 5e5}},
    ),
    "IQuest-Coder": ("iquestcoder", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_they_equal_transformers_under_both_names(case: str, tmp_path: Path) -> None:
    kind, keys = CASES[case]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **keys)).float().eval()
    for parameter in model.parameters():
        parameter.uniform_(-0.2, 0.2)
    folder, ids = save(model, tmp_path), token_ids(40)
    wanted, path = model(ids).logits, folder / "config.json"
    saved = json.loads(path.read_text())
    assert saved["architectures"] == ["LlamaForCausalLM"] and saved["model_type"] == kind
    own = next(name for name, file in LLAMAS.items() if file == kind)
    for names in (["LlamaForCausalLM"], [own], None):
        path.write_text(json.dumps(saved | {"architectures": names}))
        loaded = load_model(folder)
        assert loaded.config.family == kind
        assert (run(loaded, ids) - wanted).abs().max() <= 1e-4


def test_published_internlm3_and_what_it_cannot_mean() -> None:
    published = {
        "architectures": ["InternLM3ForCausalLM"], "attention_dropout": 0.0, "bias": False, "bos_token_id": 1,
        "auto_map": {"AutoConfig": "configuration_internlm3.InternLM3Config",
                     "AutoModel": "modeling_internlm3.InternLM3Model",
                     "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM"},
        "eos_token_id": [2, 128131], "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 10240, "max_position_embeddings": 32768,
        "model_type": "internlm3", "num_attention_heads": 32, "num_hidden_layers": 48, "num_key_value_heads": 2,
        "pad_token_id": 2, "qkv_bias": False, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "rope_theta": 50000000, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.47.1", "use_cache": True, "vocab_size": 128512,
    }  # fmt: skip
    config = model_config(published)
    assert config.max_context == 32768 and config.layers[0].attention.kept.heads == 2
    assert any("dynamic changes nothing up to 32768" in note for note in config.notes)
    for changes, said in (
        ({"qkv_bias": True}, "qkv_bias = True and bias = False"),
        ({"attention_bias": True}, "qkv_bias = False: attention_bias = True means the same"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
    ):
        with pytest.raises(ModelError, match=said):
            model_config(published | changes)
