"""Families with other options and sizes than their tiny models: logits equal transformers', decoding equals prefill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_model, save, token_ids
from running import run

from isobit.models.weights import load_model

SMALL = {
    "hidden_size": 96, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 3,
    "num_hidden_layers": 3, "vocab_size": 301,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "short_factor": [1.0] * 12,
        "long_factor": [1.5 + one / 5 for one in range(12)]}  # fmt: skip
FULL, NEAR = "full_attention", "sliding_attention"

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ArceeForCausalLM": [
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": PLAIN, "tie_word_embeddings": True},
    ],
    "CohereForCausalLM": [
        {},
        {"use_qk_norm": False, "attention_bias": True, "logit_scale": 0.3},
        {"num_key_value_heads": 6, "tie_word_embeddings": False},
    ],
    "Cohere2ForCausalLM": [
        {"num_hidden_layers": 5, "layer_types": None, "sliding_window": 7},
        {"attention_bias": True, "layer_types": [FULL, NEAR, FULL]},
    ],
    "Ernie4_5ForCausalLM": [
        {"use_bias": False, "tie_word_embeddings": True, "head_dim": 16},
        {"head_dim": None},
    ],
    "GemmaForCausalLM": [
        {"attention_bias": True, "head_dim": 32},
        {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 1, "tie_word_embeddings": False, "head_dim": 16},
    ],
    "GlmForCausalLM": [
        {"attention_bias": False, "head_dim": 32},
        {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 1.0}},
    ],
    "Glm4ForCausalLM": [{"head_dim": 16}, {"hidden_act": "gelu", "head_dim": 64}],
    "GraniteForCausalLM": [
        {"attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.05, "embedding_multiplier": 3.3},
        {"logits_scaling": 16.0, "hidden_act": "gelu", "tie_word_embeddings": True},
    ],
    "HeliumForCausalLM": [
        {"head_dim": 16, "mlp_bias": True, "attention_bias": True},
        {"head_dim": 16, "tie_word_embeddings": True},
    ],
    "HyperCLOVAXForCausalLM": [
        {"use_post_norm": False, "attention_bias": True, "mlp_bias": True, "attention_multiplier": None},
        {"tie_word_embeddings": True, "head_dim": 32},
    ],
    "NemotronForCausalLM": [
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
        {"tie_word_embeddings": True, "num_key_value_heads": 6,
         "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    ],
    "Olmo2ForCausalLM": [
        {"attention_bias": True},
        {"hidden_act": "gelu_new", "num_key_value_heads": 2, "tie_word_embeddings": True},
    ],
    "Olmo3ForCausalLM": [
        {"num_hidden_layers": 5, "layer_types": None, "sliding_window": 5, "rope_parameters": None},
        {"layer_types": [FULL] * 3},
    ],
    "Phi3ForCausalLM": [
        {"rope_parameters": PLAIN, "sliding_window": None},
        {"num_attention_heads": 3, "num_key_value_heads": 1, "original_max_position_embeddings": 32,
         "max_position_embeddings": 128, "rope_parameters": LONG, "tie_word_embeddings": True},
    ],
    "SeedOssForCausalLM": [
        {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "head_dim": 16},
        {"head_dim": None, "tie_word_embeddings": True},
    ],
    "StableLmForCausalLM": [
        {"use_qkv_bias": False, "use_parallel_residual": False},
        {"tie_word_embeddings": True, "hidden_act": "gelu"},
    ],
    "Starcoder2ForCausalLM": [
        {"use_bias": False, "sliding_window": None},
        {"hidden_act": "gelu", "tie_word_embeddings": False},
        {"hidden_act": "silu"},
    ],
}  # fmt: skip
CASES = [(name, number) for name, options in OPTIONS.items() for number in range(len(options))]


@pytest.mark.parametrize(("architecture", "number"), CASES)
@torch.inference_mode()
def test_options(architecture: str, number: int, tmp_path: Path) -> None:
    model = make_model(architecture, **(SMALL | OPTIONS[architecture][number]))
    ours, ids = load_model(save(model, tmp_path)), token_ids(60, vocab=301)
    whole = run(ours, ids)
    assert (whole - model(ids).logits).abs().max() <= 1e-4
    cache = ours.new_cache(2, 60)
    steps = [run(ours, ids[:, :41], cache), *(run(ours, ids[:, at : at + 1], cache) for at in range(41, 60))]
    assert (torch.cat(steps, 1) - whole).abs().max() <= 1e-4
