"""Published configurations of models that see and whose text is run: read as their decoders, with the right sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from isobit.errors import ModelError
from isobit.legalize.memory import kv_bytes_per_token
from isobit.models.archs import model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.workload import workload

SIGLIP = {
    "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
LINEAR = {"factor": 8.0, "rope_type": "linear"}


def gemma(**text: Any) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3", "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "text_config": {"model_type": "gemma3_text", "rope_scaling": LINEAR, "sliding_window": 1024} | text,
        "vision_config": SIGLIP,
    }  # fmt: skip


GEMMA_4B = gemma(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34)
GEMMA_27B = gemma(
    head_dim=128, hidden_size=5376, intermediate_size=21504, num_attention_heads=32, num_hidden_layers=62,
    num_key_value_heads=16, query_pre_attn_scalar=168,
)  # fmt: skip
QWEN25_7B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 3584,
    "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 128000, "max_window_layers": 28,
    "model_type": "qwen2_5_vl", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
    "vision_config": {"depth": 32, "hidden_act": "silu", "hidden_size": 1280, "model_type": "qwen2_5_vl"},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 152064,
}  # fmt: skip
# The same as transformers 4.5x saves a version of it: keys of the decoder in both places.
_TEXT = {key: value for key, value in QWEN25_7B.items() if not key.endswith(("_token_id", "_config", "architectures"))}
QWEN25_TWICE = QWEN25_7B | {
    "text_config": _TEXT | {
        "model_type": "qwen2_5_vl_text", "image_token_id": None, "video_token_id": None, "vision_token_id": 151654,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "layer_types": ["full_attention"] * 28,
    },
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
}  # fmt: skip
QWEN2_7B = QWEN25_7B | {
    "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "max_position_embeddings": 32768,
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16},
}  # fmt: skip
MISTRAL_24B: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "torch_dtype": "bfloat16", "vision_feature_layer": -1, "vision_config": {"model_type": "pixtral"},
    "text_config": {
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
        "intermediate_size": 32768, "max_position_embeddings": 131072, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0, "sliding_window": None, "use_cache": True, "vocab_size": 131072,
    },
}  # fmt: skip
SCOUT: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"], "boi_token_index": 200080, "eoi_token_index": 200081,
    "image_token_index": 200092, "model_type": "llama4", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "llama4_vision_model"},
    "text_config": {
        "_attn_implementation_autoset": True, "attention_bias": False, "attention_chunk_size": 8192,
        "attention_dropout": 0.0, "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008],
        "for_llm_compressor": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "interleave_moe_layer_step": 1, "intermediate_size": 8192,
        "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760, "model_type": "llama4_text",
        "no_rope_layers": [1, 1, 1, 0] * 12, "num_attention_heads": 40, "num_experts_per_tok": 1,
        "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16, "output_router_logits": False,
        "pad_token_id": 200018, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "router_aux_loss_coef": 0.001,
        "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "router_jitter_noise": 0.0, "torch_dtype": "bfloat16", "use_cache": True, "use_qk_norm": True,
        "vocab_size": 202048,
    },
}  # fmt: skip


def qwen3(architecture: str, **text: Any) -> dict[str, Any]:
    kind = "qwen3_vl_moe" if "Moe" in architecture else "qwen3_vl"
    return {
        "architectures": [architecture], "image_token_id": 151655, "model_type": kind, "tie_word_embeddings": False,
        "video_token_id": 151656, "vision_end_token_id": 151653, "vision_start_token_id": 151652,
        "vision_config": {"depth": 27, "model_type": kind},
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
            "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
            "max_position_embeddings": 262144, "model_type": f"{kind}_text", "num_attention_heads": 32,
            "rms_norm_eps": 1e-06, "rope_theta": 5000000, "use_cache": True, "vocab_size": 151936,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        } | text,
    }  # fmt: skip


QWEN3_8B = qwen3(
    "Qwen3VLForConditionalGeneration", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
    num_key_value_heads=8,
)  # fmt: skip
QWEN3_30B = qwen3(
    "Qwen3VLMoeForConditionalGeneration", hidden_size=2048, intermediate_size=6144, num_hidden_layers=48,
    num_key_value_heads=4, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=768, norm_topk_prob=True,
    num_experts=128, num_experts_per_tok=8,
)  # fmt: skip

# Name -> (its file, the decoder's family, its parameters in millions, bytes of a token in the cache).
PUBLISHED: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "Gemma 3 4B": (GEMMA_4B, "gemma3_text", 3880, 2 * 2 * 34 * 4 * 256),
    "Gemma 3 27B": (GEMMA_27B, "gemma3_text", 27009, 2 * 2 * 62 * 16 * 128),
    "Qwen2.5-VL 7B": (QWEN25_7B, "qwen2", 7616, 2 * 2 * 28 * 4 * 128),
    "Qwen2.5-VL 7B, twice": (QWEN25_TWICE, "qwen2", 7616, 2 * 2 * 28 * 4 * 128),
    "Qwen2-VL 7B": (QWEN2_7B, "qwen2", 7616, 2 * 2 * 28 * 4 * 128),
    "Mistral Small 3.1": (MISTRAL_24B, "mistral", 23572, 2 * 2 * 40 * 8 * 128),
    "Llama 4 Scout": (SCOUT, "llama4_text", 107770, 2 * 2 * 48 * 8 * 128),
    "Qwen3-VL 8B": (QWEN3_8B, "qwen3", 8191, 2 * 2 * 36 * 8 * 128),
    "Qwen3-VL 30B-A3B": (QWEN3_30B, "qwen3_moe", 30532, 2 * 2 * 48 * 4 * 128),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_read_as_their_decoders(name: str) -> None:
    file, family, millions, kept = PUBLISHED[name]
    config = model_config(file)
    assert config.family == family and config.dtype == "bfloat16"
    assert any("is not run here: isobit runs the text of this model alone" in note for note in config.notes) == (
        "Qwen2" not in name
    )
    size = sum(math.prod(shape) for shape in expected_tensors(config).values())
    assert round(size / 1e6) == millions
    assert kv_bytes_per_token(workload(file), "bfloat16") == kept


def test_ropes() -> None:
    for file, theta in ((QWEN25_7B, 1e6), (QWEN25_TWICE, 1e6), (QWEN2_7B, 1e6), (QWEN3_8B, 5e6), (QWEN3_30B, 5e6)):
        rope = model_config(file).layers[0].attention.rope
        assert rope is not None and (rope.kind, rope.theta) == ("default", theta)
        assert rope.sections == ((16, 24, 24) if theta == 1e6 else ())
    for wrong in ([16, 24], [16, 24, 23], [64, 0, 0], "x", None):
        with pytest.raises(ModelError, match="mrope_section"):
            model_config(QWEN25_7B | {"rope_scaling": {"type": "mrope", "mrope_section": wrong}})
    bare = {key: value for key, value in QWEN25_7B.items() if key not in ("rope_theta", "rope_scaling")}
    rope = model_config(bare).layers[0].attention.rope
    assert rope is not None and rope.theta == 1e6


def test_ties_as_they_are_said() -> None:
    assert model_config(GEMMA_4B).tie_word_embeddings and not model_config(MISTRAL_24B).tie_word_embeddings
    small = MISTRAL_24B | {"text_config": MISTRAL_24B["text_config"] | {"tie_word_embeddings": True}}
    assert model_config(small).tie_word_embeddings
    assert model_config(QWEN25_7B | {"tie_word_embeddings": True}).tie_word_embeddings
