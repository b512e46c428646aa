"""Published ``config.json`` files of dense families beside Llama, Mistral and Qwen; facts of public models."""

from __future__ import annotations

from typing import Any


def _file(architecture: str, model_type: str, sizes: str, **keys: Any) -> dict[str, Any]:
    """A file, with the sizes that every one has: hidden, intermediate, layers, heads, key-value heads, words."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size",
    )  # fmt: skip
    return {
        "architectures": [architecture], "model_type": model_type,
        **dict(zip(names, map(int, sizes.split()), strict=True)),
        "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16",
        "transformers_version": "4.48.0", "use_cache": True, **keys,
    }  # fmt: skip


def _phi(sizes: str, **keys: Any) -> dict[str, Any]:
    phi = {"attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "bos_token_id": 1}
    return _file("Phi3ForCausalLM", "phi3", sizes, **(phi | keys))


def _gemma(sizes: str, **keys: Any) -> dict[str, Any]:
    gemma = {
        "attention_bias": False, "bos_token_id": 2, "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu",
        "max_position_embeddings": 8192, "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 10000.0,
    }  # fmt: skip
    return _file("GemmaForCausalLM", "gemma", sizes, **(gemma | keys))


def _glm(sizes: str, **keys: Any) -> dict[str, Any]:
    glm = {
        "attention_bias": True, "eos_token_id": [151329, 151336, 151338], "head_dim": 128, "pad_token_id": 151329,
        "max_position_embeddings": 32768, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }  # fmt: skip
    return _file("Glm4ForCausalLM", "glm4", sizes, **(glm | keys))


def _olmo(sizes: str, **keys: Any) -> dict[str, Any]:
    olmo = {
        "attention_bias": False, "eos_token_id": 100257, "max_position_embeddings": 4096, "pad_token_id": 100277,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False,
    }  # fmt: skip
    return _file("Olmo2ForCausalLM", "olmo2", sizes, **(olmo | keys))


def _cohere(sizes: str, **keys: Any) -> dict[str, Any]:
    cohere = {
        "attention_bias": False, "bos_token_id": 5, "eos_token_id": 255001, "layer_norm_eps": 1e-05, "pad_token_id": 0,
        "logit_scale": 0.0625, "max_position_embeddings": 8192, "model_max_length": 131072, "pretraining_tp": 1,
        "rope_theta": 8000000.0,
    }  # fmt: skip
    return _file("CohereForCausalLM", "cohere", sizes, **(cohere | keys))


def _cohere2(sizes: str, **keys: Any) -> dict[str, Any]:
    cohere = {
        "attention_bias": False, "bos_token_id": 5, "cache_implementation": "hybrid", "eos_token_id": 255001,
        "head_dim": 128, "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale": 0.25,
        "max_position_embeddings": 8192, "order_of_interleaved_layers": "local_attn_first", "pad_token_id": 0,
        "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000, "rotary_pct": 1.0,
        "sliding_window": 4096, "sliding_window_pattern": 4, "use_embedding_sharing": True,
        "use_gated_activation": True, "use_parallel_block": True, "use_parallel_embedding": True,
    }  # fmt: skip
    return _file("Cohere2ForCausalLM", "cohere2", sizes, **(cohere | keys))


def _granite(sizes: str, **keys: Any) -> dict[str, Any]:
    granite = {
        "attention_bias": False, "attention_dropout": 0.1, "attention_multiplier": 0.0078125, "bos_token_id": 0,
        "embedding_multiplier": 12.0, "eos_token_id": 0, "logits_scaling": 16.0, "max_position_embeddings": 131072,
        "mlp_bias": False, "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000000.0, "tie_word_embeddings": True,
    }  # fmt: skip
    return _file("GraniteForCausalLM", "granite", sizes, **(granite | keys))


def _starcoder(sizes: str, **keys: Any) -> dict[str, Any]:
    starcoder = {
        "attention_dropout": 0.1, "bos_token_id": 0, "embedding_dropout": 0.1, "eos_token_id": 0,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-05, "max_position_embeddings": 16384,
        "mlp_type": "default", "norm_epsilon": 1e-05, "norm_type": "layer_norm", "residual_dropout": 0.1,
        "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True,
    }  # fmt: skip
    return _file("Starcoder2ForCausalLM", "starcoder2", sizes, **(starcoder | keys))


_LONG = {"long_factor": [1.0 + one / 8 for one in range(48)], "short_factor": [1.05] * 48}

DENSE: dict[str, dict[str, Any]] = {
    "Phi 3 mini 4K": _phi("3072 8192 32 32 32 32064", eos_token_id=32000, pad_token_id=32000, rope_theta=10000.0,
                          max_position_embeddings=4096, original_max_position_embeddings=4096, rope_scaling=None,
                          sliding_window=2047, tie_word_embeddings=False),
    "Phi 3 mini 128K": _phi("3072 8192 32 32 32 32064", max_position_embeddings=131072, sliding_window=262144,
                            original_max_position_embeddings=4096, rope_scaling=_LONG | {"type": "longrope"}),
    "Phi 4": _phi("5120 17920 40 40 10 100352", eos_token_id=100265, pad_token_id=100349, rope_theta=250000,
                  max_position_embeddings=16384, original_max_position_embeddings=16384, sliding_window=None),
    "Phi 4 mini": _phi("3072 8192 32 24 8 200064", full_attn_mod=1, interpolate_factor=1, lm_head_bias=False,
                       max_position_embeddings=131072, mlp_bias=False, original_max_position_embeddings=4096,
                       partial_rotary_factor=0.75, rope_scaling=_LONG | {"type": "longrope"}, sliding_window=262144,
                       tie_word_embeddings=True),
    "Gemma 7B": _gemma("3072 24576 28 16 16 256000"),
    "Gemma 2B": _gemma("2048 16384 18 8 1 256000"),
    "CodeGemma": _gemma("3072 24576 28 16 16 256000", hidden_act="gelu_pytorch_tanh", hidden_activation=None),
    "GLM-4-9B-0414": _glm("4096 13696 40 32 2 151552"),
    "GLM-Z1-32B": _glm("6144 23040 61 48 8 151552", attention_bias=False),
    "GLM-4-9B, hf": _glm("4096 13696 40 32 2 151552", max_position_embeddings=131072, rms_norm_eps=1.5625e-07)
    | {"architectures": ["GlmForCausalLM"], "model_type": "glm"},
    "OLMo 2 7B": _olmo("4096 11008 32 32 32 100352"),
    "OLMo 2 32B": _olmo("5120 27648 64 40 8 100352"),
    "OLMo 3 7B": _olmo("4096 11008 32 32 32 100278", max_position_embeddings=65536, sliding_window=4096,
                       layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8,
                       rope_scaling={"attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
                                     "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn"})
    | {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3"},
    "Command R": _cohere("8192 22528 40 64 64 256000"),
    "Command R+": _cohere("12288 33792 64 96 8 256000", logit_scale=0.8333333333333334, rope_theta=75000000.0,
                          use_qk_norm=True),
    "Aya 23 8B": _cohere("4096 14336 32 32 8 256000", use_qk_norm=False, rope_theta=10000.0),
    "Command R7B": _cohere2("4096 14336 32 32 8 256000"),
    "Command A": _cohere2("12288 36864 64 96 8 256000", max_position_embeddings=131072),
    "Granite 3.1 8B": _granite("4096 12800 40 32 8 49155"),
    "Granite 3.0 2B": _granite("2048 8192 40 32 8 49155", attention_multiplier=0.015625, logits_scaling=8.0,
                               max_position_embeddings=4096, rope_theta=10000),
    "Seed-OSS 36B": _file("SeedOssForCausalLM", "seed_oss", "5120 27648 64 80 8 155136", attention_bias=True,
                          attention_out_bias=False, bos_token_id=0, eos_token_id=2, head_dim=128, mlp_bias=False,
                          max_position_embeddings=524288, pad_token_id=1, residual_dropout=0.1, rms_norm_eps=1e-06,
                          rope_scaling={"rope_type": "default"}, rope_theta=10000000.0, tie_word_embeddings=False),
    "ERNIE 4.5 0.3B": _file("Ernie4_5ForCausalLM", "ernie4_5", "1024 3072 18 16 2 103424", bos_token_id=1,
                            eos_token_id=2, head_dim=128, max_position_embeddings=131072, pad_token_id=0,
                            rms_norm_eps=1e-05, rope_scaling=None, rope_theta=500000.0, tie_word_embeddings=True,
                            use_bias=False),
    "StarCoder2 3B": _starcoder("3072 12288 30 24 2 49152"),
    "StarCoder2 15B": _starcoder("6144 24576 40 48 4 49152", rope_theta=100000),
    "Helium 2B": _file("HeliumForCausalLM", "helium", "2560 7040 24 20 20 48000", attention_bias=False, bos_token_id=1,
                       eos_token_id=2, head_dim=128, max_position_embeddings=4096, mlp_bias=False, pad_token_id=3,
                       rms_norm_eps=1e-08, rope_theta=100000.0, tie_word_embeddings=False),
    "Nemotron Mini 4B": _file("NemotronForCausalLM", "nemotron", "3072 9216 32 24 8 256000", attention_bias=False,
                              bos_token_id=2, eos_token_id=3, head_dim=128, hidden_act="relu2", mlp_bias=False,
                              max_position_embeddings=4096, norm_eps=1e-05, partial_rotary_factor=0.5,
                              rope_theta=10000, tie_word_embeddings=False),
    "StableLM 2 1.6B": _file("StableLmForCausalLM", "stablelm", "2048 5632 24 32 32 100352", bos_token_id=100257,
                             eos_token_id=100257, layer_norm_eps=1e-05, max_position_embeddings=4096,
                             partial_rotary_factor=0.25, qk_layernorm=False, rope_theta=10000,
                             tie_word_embeddings=False, use_parallel_residual=False, use_qkv_bias=True),
    "AFM 4.5B": _file("ArceeForCausalLM", "arcee", "2560 18432 36 20 4 128004", attention_bias=False,
                      bos_token_id=128000, eos_token_id=128001, head_dim=128, hidden_act="relu2", mlp_bias=False,
                      max_position_embeddings=4096, rms_norm_eps=1e-05, rope_theta=10000.0, tie_word_embeddings=False),
}  # fmt: skip
