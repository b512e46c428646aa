"""Configurations of published GLMs that see, as far as they are known: what stands in their files, not more."""

from __future__ import annotations

from typing import Any

_TOWER = {
    "hidden_size": 1536, "depth": 24, "num_heads": 12, "attention_bias": False, "hidden_act": "silu",
    "hidden_dropout_prob": 0.0, "initializer_range": 0.02, "image_size": 336, "patch_size": 14, "out_hidden_size": 4096,
    "rms_norm_eps": 1e-05, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
}  # fmt: skip
_IDS = {
    "image_start_token_id": 151339, "image_end_token_id": 151340, "video_start_token_id": 151341,
    "video_end_token_id": 151342,
}  # fmt: skip
_DENSE = {
    "attention_bias": True, "attention_dropout": 0.0, "pad_token_id": 151329, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 13696, "max_position_embeddings": 65536, "num_attention_heads": 32,
    "num_hidden_layers": 40, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "use_cache": True, "vocab_size": 151552,
    "eos_token_id": [151329, 151336, 151338, 151348], "partial_rotary_factor": 0.5,
}  # fmt: skip
_OLD_ROPE = {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]}}
_NEW_ROPE = {
    "rope_type": "default", "rope_theta": 500000, "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5,
}  # fmt: skip

# The first files have the decoder's keys beside the tower's.
GLM41V: dict[str, Any] = {
    "architectures": ["Glm4vForConditionalGeneration"], "model_type": "glm4v", **_DENSE, **_IDS,
    "image_token_id": 151343, "video_token_id": 151344, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]}, "torch_dtype": "bfloat16",
    "transformers_version": "4.53.0.dev0", "vision_config": _TOWER | {"intermediate_size": 13696},
}  # fmt: skip
AUTOGLM: dict[str, Any] = {
    "architectures": ["Glm4vForConditionalGeneration"], "model_type": "glm4v", **_IDS, "image_token_id": 151343,
    "video_token_id": 151344, "tie_word_embeddings": False, "transformers_version": "4.57.1", "dtype": "bfloat16",
    "text_config": _DENSE | _OLD_ROPE | {"model_type": "glm4v_text", "dtype": "bfloat16", "image_token_id": 151343,
                                         "image_start_token_id": 151339, "image_end_token_id": 151340},
    "vision_config": _TOWER | {"intermediate_size": 13696, "model_type": "glm4v"},
}  # fmt: skip
FLASH: dict[str, Any] = {
    "architectures": ["Glm4vForConditionalGeneration"], "model_type": "glm4v", **_IDS, "image_token_id": 151363,
    "video_token_id": 151364, "tie_word_embeddings": False, "transformers_version": "5.0.0.dev0", "dtype": "bfloat16",
    "text_config": _DENSE | {"model_type": "glm4v_text", "max_position_embeddings": 131072,
                             "rope_parameters": _NEW_ROPE, "tie_word_embeddings": False},
    "vision_config": _TOWER | {"intermediate_size": 13696, "model_type": "glm4v_vision"},
}  # fmt: skip

_EXPERTS = {
    "attention_bias": True, "attention_dropout": 0.0, "pad_token_id": 151329, "eos_token_id": [151329, 151336, 151338],
    "first_k_dense_replace": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 10944, "max_position_embeddings": 65536, "model_type": "glm4v_moe_text",
    "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 96, "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "routed_scaling_factor": 1.0, "topk_group": 1,
    "use_cache": True, "use_qk_norm": False, "vocab_size": 151552,
}  # fmt: skip
_MOE = {
    "architectures": ["Glm4vMoeForConditionalGeneration"], "model_type": "glm4v_moe", **_IDS, "image_token_id": 151363,
    "video_token_id": 151364, "tie_word_embeddings": False,
}  # fmt: skip
GLM45V: dict[str, Any] = _MOE | {
    "torch_dtype": "bfloat16", "transformers_version": "4.55.0.dev0",
    "text_config": _EXPERTS | _OLD_ROPE | {"torch_dtype": "bfloat16"},
    "vision_config": _TOWER | {"intermediate_size": 10944, "model_type": "glm4v_moe"},
}  # fmt: skip
GLM46V: dict[str, Any] = _MOE | {
    "dtype": "bfloat16", "transformers_version": "5.0.0rc0",
    "text_config": {key: value for key, value in _EXPERTS.items() if key != "partial_rotary_factor"}
    | {"max_position_embeddings": 131072, "rope_parameters": _NEW_ROPE, "dtype": "bfloat16"},
    "vision_config": _TOWER | {"intermediate_size": 10944, "model_type": "glm4v_moe_vision"},
}  # fmt: skip


def fp8_ignored(layers: int, depth: int, dense: int = 1) -> list[str]:
    """What GLM-4.6V-FP8 leaves out: modules, and parameters by their own names."""
    found = ["lm_head", "model.language_model.embed_tokens", "model.language_model.norm"]
    for layer in range(layers):
        prefix = f"model.language_model.layers.{layer}"
        found += [f"{prefix}.{name}" for name in ("input_layernorm", "post_attention_layernorm")]
        found += [f"{prefix}.self_attn.{name}_proj.bias" for name in "qkv"]
        if layer >= dense:
            found += [f"{prefix}.mlp.gate.weight", f"{prefix}.mlp.gate.e_score_correction_bias"]
    for block in range(depth):
        found += [f"model.visual.blocks.{block}.{name}" for name in ("attn.qkv", "attn.proj", "norm1", "norm2")]
        found += [f"model.visual.blocks.{block}.mlp.{name}_proj" for name in ("gate", "up", "down")]
    found += [f"model.visual.merger.{name}" for name in ("proj", "gate_proj", "up_proj", "down_proj")]
    return [*found, "model.visual.patch_embed.proj", "model.visual.downsample", "model.visual.post_layernorm"]


def fp8(ignored: list[str]) -> dict[str, Any]:
    """Its quantization_config."""
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "kv_cache_scheme": None, "global_compression_ratio": None, "ignore": ignored,
        "config_groups": {"group_0": {
            "targets": ["Linear"], "output_activations": None,
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "group_size": None,
                        "dynamic": False, "observer": "minmax", "actorder": None, "block_structure": None},
            "input_activations": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token",
                                  "group_size": None, "dynamic": True, "observer": None, "actorder": None,
                                  "block_structure": None}}},
    }  # fmt: skip


GLM46V_FP8: dict[str, Any] = GLM46V | {"quantization_config": fp8(fp8_ignored(46, 24))}

SEEING: dict[str, dict[str, Any]] = {
    "GLM-4.1V-9B": GLM41V, "AutoGLM-Phone-9B": AUTOGLM, "GLM-4.6V-Flash": FLASH, "GLM-4.5V": GLM45V, "GLM-4.6V": GLM46V,
    "GLM-4.6V-FP8": GLM46V_FP8,
}  # fmt: skip
