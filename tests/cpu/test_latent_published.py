"""Published configurations of models with latent attention: numbers and bytes are those of transformers' own models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from isobit.legalize.advice import recommendation
from isobit.legalize.ops import Lowering
from isobit.models.archs import model_config
from isobit.models.planning import plans

V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config",
                 "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu",
    "hidden_size": 7168, "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128,
    "vocab_size": 129280,
}  # fmt: skip
LITE = V3 | {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "aux_loss_alpha": 0.001, "seq_aux": True,
    "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1, "hidden_size": 2048,
    "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1, "n_routed_experts": 64,
    "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16, "num_key_value_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "q_lora_rank": None, "routed_scaling_factor": 1.0,
    "rope_scaling": V3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707}, "scoring_func": "softmax",
    "topk_method": "greedy", "vocab_size": 102400, "num_nextn_predict_layers": 0,
}  # fmt: skip
KIMI = V3 | {
    "model_type": "kimi_k2", "aux_loss_alpha": 0.001, "seq_aux": True, "bos_token_id": 163584, "eos_token_id": 163585,
    "first_k_dense_replace": 1, "max_position_embeddings": 262144, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 384, "num_attention_heads": 64, "num_key_value_heads": 64, "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-05, "routed_scaling_factor": 2.827, "rope_theta": 50000.0, "vocab_size": 163840,
    "rope_scaling": V3["rope_scaling"] | {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 64.0},
}  # fmt: skip
FLASH: dict[str, Any] = {
    "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "attention_bias": False,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10240,
    "kv_lora_rank": 512, "max_position_embeddings": 202752, "moe_intermediate_size": 1536, "n_group": 1,
    "topk_group": 1, "n_routed_experts": 64, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 20,
    "num_experts_per_tok": 4, "num_hidden_layers": 47, "num_key_value_heads": 20, "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 1.0, "q_lora_rank": 768, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000, "routed_scaling_factor": 1.8, "tie_word_embeddings": False,
    "topk_method": "noaux_tc", "v_head_dim": 256, "vocab_size": 154880, "dtype": "bfloat16",
}  # fmt: skip
PUBLISHED = {"DeepSeek V3": V3, "DeepSeek V2 Lite": LITE, "Kimi K2": KIMI, "GLM-4.7-Flash": FLASH}
# Billions of numbers, and KiB of a token's cache in bf16.
SIZES = {
    "DeepSeek V3": (671.03, 68.625), "DeepSeek V2 Lite": (15.71, 30.375), "Kimi K2": (1026.41, 68.625),
    "GLM-4.7-Flash": (29.94, 52.875),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_and_bytes_are_those_of_transformers_model(name: str) -> None:
    config = PUBLISHED[name]
    work, found = plans(config, targets=["h200"], scheme_names=["bf16"])
    kind = config["architectures"][0]
    own = {key: value for key, value in config.items() if key not in ("architectures", "auto_map", "model_type")}
    with torch.device("meta"):
        model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**own))
    router = [number for name, number in model.named_buffers() if name.endswith("e_score_correction_bias")]
    theirs = sum(math.prod(number.shape) for number in [*model.parameters(), *router])
    assert work.parameters == theirs and round(work.parameters / 1e9, 2) == SIZES[name][0]
    assert found[0][0].memory.kv_per_token / 1024 == SIZES[name][1]
    scale = model.model.layers[0].self_attn.scaling
    assert model_config(config).layers[0].attention.scale == pytest.approx(scale, rel=1e-12)


def test_a_plan_says_how_many_cards_hold_what_one_does_not() -> None:
    _, found = plans(KIMI, targets=["h200"], scheme_names=["int4"])
    assert "The memory of 4 such cards holds" in recommendation(found[0])
    (attention,) = [decision for op, decision in found[0][0].ops if op.kind == "attention"]
    assert isinstance(attention, Lowering) and not attention.notes, "it has kernels of its own there"
    (attention,) = [decision for op, decision in plans(KIMI, targets=["t4"], scheme_names=["int4"])[1][0][0].ops
                    if op.kind == "attention"]  # fmt: skip
    assert isinstance(attention, Lowering) and any("PyTorch" in note for note in attention.notes), attention.notes


@pytest.mark.parametrize(("name", "dense"), [("DeepSeek V3", 3), ("Kimi K2", 1)])
def test_the_fp8_method_leaves_routers_and_the_head_as_they_are(name: str, dense: int) -> None:
    """As their published files hold them, whose configurations list nothing that is not converted."""
    section = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    config = PUBLISHED[name] | {"quantization_config": section, "num_hidden_layers": 5}
    work, ((found,),) = plans(config, targets=["h100"])
    assert work.stored is not None
    plain = ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(dense, 5))]
    assert all(work.stored(module) == (None, None) for module in plain)
    assert all(work.stored(f"model.layers.{dense}.{one}")[0] is not None for one in (
        "self_attn.o_proj", "mlp.experts.3.up_proj", "mlp.shared_experts.down_proj"))  # fmt: skip
    named, ((other,),) = plans(
        config | {"quantization_config": section | {"modules_to_convert": ["lm_head"]}}, targets=["h100"]
    )
    assert named.stored is not None and named.stored("lm_head")[0] is not None
    numbers = config["vocab_size"] * config["hidden_size"]
    assert found.memory.weights - other.memory.weights == pytest.approx(numbers, rel=0.001)
