"""Published mixtures, and what is published under another name: a plan with as many numbers as transformers' model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from isobit.errors import ModelError
from isobit.legalize.memory import kv_bytes_per_token
from isobit.models.archs import model_config
from isobit.models.blueprint import is_behind
from isobit.models.planning import plans
from isobit.models.workload import workload

PHI = {
    "architectures": ["PhiMoEForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "bos_token_id": 1,
    "auto_map": {"AutoModelForCausalLM": "modeling_phimoe.PhiMoEForCausalLM"}, "eos_token_id": 32000,
    "hidden_act": "silu", "hidden_dropout": 0.0, "hidden_size": 4096, "initializer_range": 0.02,
    "input_jitter_noise": 0.01, "intermediate_size": 6400, "lm_head_bias": True, "max_position_embeddings": 131072,
    "model_type": "phimoe", "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 16, "original_max_position_embeddings": 4096,
    "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "router_aux_loss_coef": 0.0,
    "rope_scaling": {"long_factor": [1.0 + one for one in range(64)], "long_mscale": 1.243163121016122,
                     "original_max_position_embeddings": 4096, "short_factor": [1.05] * 64,
                     "short_mscale": 1.243163121016122, "type": "longrope"},
    "router_jitter_noise": 0.01, "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3", "use_cache": True, "vocab_size": 32064,
}  # fmt: skip
GRANITE4 = {
    "architectures": ["GraniteMoeHybridForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attention_multiplier": 0.015625, "bos_token_id": 100257, "embedding_multiplier": 12, "eos_token_id": 100257,
    "hidden_act": "silu", "hidden_size": 2560, "init_method": "mup", "initializer_range": 0.1,
    "intermediate_size": 8192, "layer_types": ["attention"] * 40, "logits_scaling": 10, "mamba_chunk_size": 256,
    "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 40, "mamba_d_state": 256, "mamba_expand": 2,
    "mamba_n_groups": 1, "mamba_n_heads": 128, "mamba_proj_bias": False, "max_position_embeddings": 131072,
    "model_type": "granitemoehybrid", "normalization_function": "rmsnorm", "num_attention_heads": 40,
    "num_experts_per_tok": 0, "num_hidden_layers": 40, "num_key_value_heads": 8, "num_local_experts": 0,
    "output_router_logits": False, "pad_token_id": 100256, "position_embedding_type": "rope",
    "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000000,
    "router_aux_loss_coef": 0.01, "shared_intermediate_size": 8192, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 100352,
}  # fmt: skip
SHARED = {
    "architectures": ["GraniteMoeSharedForCausalLM"], "model_type": "granitemoeshared", "attention_bias": False,
    "attention_multiplier": 0.015625, "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 1024,
    "intermediate_size": 512, "logits_scaling": 6.0, "max_position_embeddings": 4096, "num_attention_heads": 16,
    "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
    "residual_multiplier": 0.22, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "shared_intermediate_size": 1024,
    "tie_word_embeddings": True, "vocab_size": 49155,
}  # fmt: skip
# Beside each, billions of numbers and those of a token.
FILES = {
    "Phi 3.5 MoE": (PHI, 41.87, 6.64),
    "Granite 4 micro": (GRANITE4, 3.40, 3.40),
    "Granite 4, no positions": (GRANITE4 | {"position_embedding_type": "nope"}, 3.40, 3.40),
    "Granite 4, experts that attend": (GRANITE4 | {"num_local_experts": 8, "num_experts_per_tok": 2}, 23.54, 8.44),
    "Granite 3 with a shared expert": (SHARED, 1.41, 0.504),
}  # fmt: skip


def theirs(config: dict[str, Any]) -> Any:
    """transformers' model, without memory."""
    name = config["architectures"][0].replace("PhiMoE", "Phimoe")
    keys = {key: value for key, value in copy.deepcopy(config).items() if key not in ("architectures", "auto_map")}
    cls = getattr(transformers, name)
    with torch.device("meta"):
        return cls(cls.config_class(**keys))


@pytest.mark.parametrize("name", FILES)
def test_parameters_and_cache(name: str) -> None:
    config, whole, active = FILES[name]
    work, model = workload(config), theirs(config)
    assert work.parameters == sum(one.numel() for one in model.parameters())
    assert work.parameters / 1e9 == pytest.approx(whole, abs=0.005)
    kept = sum(
        layer.self_attn.k_proj.out_features + layer.self_attn.v_proj.out_features for layer in model.model.layers
    )
    assert kv_bytes_per_token(work, "bfloat16") == 2 * kept
    said = f"{active:.2f} billion" if active >= 1 else f"{1000 * active:.0f}"
    assert (active == whole) == (" of them for a token" not in work.title), work.title
    assert active == whole or said in work.title, work.title


def test_layers_with_a_state_are_refused_by_name() -> None:
    hybrid = GRANITE4 | {"layer_types": ["mamba"] * 35 + ["attention"] * 5}
    for config in (hybrid, {key: value for key, value in GRANITE4.items() if key != "layer_types"}):
        with pytest.raises(ModelError, match=r"recurrent state \(Mamba 2\).*granite-4\.0-micro.*llama\.cpp") as error:
            model_config(config)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="expected one for each of 40 layers, found 3"):
        model_config(GRANITE4 | {"layer_types": ["attention"] * 3})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_experts_per_tok": 4}, "num_experts_per_tok = 4: transformers takes 2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": PHI["rope_scaling"] | {"type": "yarn", "factor": 4.0}}, "rope type yarn"),
        ({"rope_scaling": PHI["rope_scaling"] | {"attention_factor": 1.2}}, "attention_factor = 1.2: .*short_mscale"),
        ({"rope_scaling": {k: v for k, v in PHI["rope_scaling"].items() if k != "long_mscale"}}, "long_mscale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_phi_moe_cannot_mean(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        model_config(PHI | keys)


def test_longer_contexts_of_phi_moe_have_the_long_factors_and_the_plan_says_so() -> None:
    work, _ = plans(PHI, targets=["h100"], scheme_names=["fp8"], calibration=False)
    assert any("--context 4096 has the former" in note for note in work.notes)
    rope = model_config(PHI).layers[0].attention.rope
    assert rope is not None and rope.long_attention_factor == rope.attention_factor == 1.243163121016122
    other = PHI["rope_scaling"] | {"long_mscale": 1.5}
    found = model_config(PHI | {"rope_scaling": other}).layers[0].attention.rope
    assert found is not None and (found.attention_factor, found.long_attention_factor) == (1.243163121016122, 1.5)


EVERY = {"hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": True}
# Files with keys that the model's own code reads, or nobody, and how many billions of numbers their authors speak of.
WRITTEN: dict[str, tuple[dict[str, Any], float]] = {
    "MiniMax-M2": (EVERY | {
        "architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "hidden_size": 3072,
        "intermediate_size": 1536, "num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8,
        "vocab_size": 200064, "attn_type_list": [1] * 62, "head_dim": 128, "layernorm_full_attention_beta": 1.0,
        "layernorm_linear_attention_beta": 1.0, "layernorm_mlp_beta": 1.0, "max_position_embeddings": 196608,
        "mlp_intermediate_size": 8192, "mtp_transformer_layers": 1, "num_experts_per_tok": 8, "num_local_experts": 256,
        "num_mtp_modules": 3, "qk_norm_type": "per_layer", "rms_norm_eps": 1e-06, "rope_theta": 5000000,
        "rotary_dim": 64, "router_jitter_noise": 0.0, "scoring_func": "sigmoid", "shared_intermediate_size": 0,
        "shared_moe_mode": "sigmoid", "sliding_window": None, "use_mtp": True, "use_qk_norm": True,
        "use_routing_bias": True,
    }, 228.69),
    "Hunyuan-A13B": (EVERY | {
        "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "hidden_size": 4096,
        "intermediate_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128167, "add_classification_head": False, "attention_bias": False, "attention_head_dim": 128,
        "cla_share_factor": 2, "class_num": 0, "dense_list": [4096, 0], "eod_token_id": 127967, "head_dim": 128,
        "group_limited_greedy": False, "im_end_id": 6, "im_newline_id": 12, "im_start_id": 5, "mask_init_id": 12,
        "max_position_embeddings": 32768, "mlp_bias": False, "moe_drop_tokens": False, "n_group": False,
        "moe_intermediate_size": [3072] * 32, "moe_layer_num_skipped": 0, "moe_topk": [8] * 32, "norm_topk_prob": True,
        "norm_type": "rms", "num_experts": 64, "num_experts_per_tok": 8, "num_media_embeds": 257, "pad_id": 127961,
        "num_shared_expert": [1] * 32, "org_vocab_size": 128167, "pool_type": "last", "rms_norm_eps": 1e-05,
        "position_embedding_xdrope": False, "rope_theta": 10000.0, "routed_scaling_factor": 1.0,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "type": "dynamic"},
        "skip_cls_token": False, "text_end_id": 7, "text_start_id": 6, "tie_word_embeddings": True,
        "topk_group": False, "use_cla": False, "use_mixed_mlp_moe": True, "use_mla": False, "use_qk_norm": True,
        "use_rotary_pos_emb": True, "video_end_id": 10, "video_start_id": 9, "vit_add_patchemb_bias": False,
    }, 80.39),
    "ERNIE 4.5 21B-A3B": (EVERY | {
        "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "hidden_size": 2560,
        "intermediate_size": 12288, "num_hidden_layers": 28, "num_attention_heads": 20, "num_key_value_heads": 4,
        "vocab_size": 103424, "max_position_embeddings": 131072, "moe_capacity": [64, 64, 64], "moe_gate": "topk",
        "moe_intermediate_size": 1536, "moe_k": 6, "moe_layer_interval": 1, "moe_layer_start_index": 1,
        "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_use_aux_free": True, "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "use_bias": False, "use_rmsnorm": True,
    }, 21.83),
    "Qwen3-Coder-480B": (EVERY | {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 6144,
        "intermediate_size": 8192, "num_hidden_layers": 62, "num_attention_heads": 96, "num_key_value_heads": 8,
        "vocab_size": 151936, "decoder_sparse_step": 1, "head_dim": 128, "max_position_embeddings": 262144,
        "mlp_only_layers": [], "moe_intermediate_size": 2560, "norm_topk_prob": True, "num_experts": 160,
        "num_experts_per_tok": 8, "qkv_bias": False, "rms_norm_eps": 1e-06, "rope_theta": 10000000,
        "shared_expert_intermediate_size": 0, "use_qk_norm": True, "use_sliding_window": False,
    }, 480.15),
    "Minitron 8B": (EVERY | {
        "architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "hidden_size": 4096, "hidden_act": "relu2",
        "intermediate_size": 16384, "num_hidden_layers": 32, "num_attention_heads": 48, "num_key_value_heads": 8,
        "vocab_size": 256000, "head_dim": 128, "max_position_embeddings": 4096, "norm_eps": 1e-05,
        "partial_rotary_factor": 0.5, "rope_percent": 0.5, "rope_theta": 10000,
    }, 8.27),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_keys_of_their_own_code_stand_in_nobodys_way(name: str) -> None:
    config, size = WRITTEN[name]
    assert workload(config).parameters / 1e9 == pytest.approx(size, abs=0.005)


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("MiniMax-M2", {"attn_type_list": [0] * 8 + [1] * 54}, "attn_type_list"),
        ("MiniMax-M2", {"layernorm_mlp_beta": 2.0}, "layernorm_mlp_beta = 2.0"),
        ("Hunyuan-A13B", {"moe_topk": [8] * 31 + [4]}, "moe_topk"),
        ("Hunyuan-A13B", {"use_cla": True}, "use_cla = True"),
        ("Hunyuan-A13B", {"routed_scaling_factor": 2.5}, "routed_scaling_factor = 2.5"),
        ("Qwen3-Coder-480B", {"use_qk_norm": False}, "use_qk_norm = False"),
        ("Minitron 8B", {"rope_percent": 0.25}, "rope_percent = 0.25"),
        ("Qwen3-Coder-480B", {"rope_scaling": {"type": "yarn", "factor": 4.0, "attn_factor": 0.8782488562869419,
                                               "original_max_position_embeddings": 32768}},
         "attn_factor = 0.878.*: vLLM .* write attention_factor: 1 in its place"),
    ],
)  # fmt: skip
def test_keys_that_would_count_are_still_refused(name: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        model_config(WRITTEN[name][0] | keys)


def test_tensors_that_guess_are_left_out_by_number_and_by_name() -> None:
    config = model_config(WRITTEN["ERNIE 4.5 21B-A3B"][0])
    assert is_behind("model.layers.28.mlp.up_proj.weight", config) and is_behind("model.mtp_block.0.x", config)
    assert not any(is_behind(f"model.layers.{number}.x", config) for number in (2, 27, 29))
    without = model_config(
        {k: v for k, v in WRITTEN["ERNIE 4.5 21B-A3B"][0].items() if k != "num_nextn_predict_layers"}
    )
    assert not is_behind("model.mtp_block.0.x", without)
