"""What config.json has of each family of dense models besides what all have, from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isobit.checkpoint.gguf.keys import Keys
from isobit.checkpoint.gguf.model import Gguf
from isobit.checkpoint.gguf.rope import rope_keys

Config = dict[str, Any]
More = Callable[[Keys, Gguf, Config], Config]
# Blocks and width of StarCoder2 as published: all three see 4096 tokens back, and files do not say so.
_STARCODER2 = ((30, 3072), (32, 4608), (40, 6144))


def llama(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Llama, Mistral, Arcee."""
    return {"attention_bias": has(gguf, "attn_q.bias"), "mlp_bias": has(gguf, "ffn_up.bias")}


def mistral(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Mistral Small 3 under the name that llama.cpp has for its successors."""
    return {"sliding_window": None}


def ministral3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Ministral 3: queries grow with the context."""
    beta = keys.number("attention.temperature_scale")
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    found = rope_keys(keys, gguf, common["head_dim"])
    if found.get("rope_scaling", {}).get("rope_type") != "yarn":
        keys.fail("rope.scaling.type", "Ministral 3 has yarn")
    section = found["rope_scaling"] | {"rope_theta": found["rope_theta"], "llama_4_scaling_beta": beta}
    return {"rope_parameters": section | ({"mscale": 1.0, "mscale_all_dim": multiplier} if multiplier else {})}


def qwen2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Qwen2."""
    return {"use_sliding_window": False}


def qwen3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Qwen3."""
    return {"attention_bias": has(gguf, "attn_q.bias"), "use_sliding_window": False}


def seeing(text: More) -> More:
    """A family whose tokens have positions on several axes, of its text alone: there the axes agree."""

    def more(keys: Keys, gguf: Gguf, common: Config) -> Config:
        keys.numbers("rope.dimension_sections"), keys.raw("n_deepstack_layers")  # how pieces of pictures are added
        return text(keys, gguf, common)

    return more


def gemma(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Gemma."""
    return {"attention_bias": False}


def gemma2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Gemma 2."""
    largest = common["num_hidden_layers"] == 46  # the 27 billion one scales by another width than that of its heads
    scalar = common["hidden_size"] // common["num_attention_heads"] if largest else common["head_dim"]
    return gemma(keys, gguf, common) | {
        "query_pre_attn_scalar": scalar,
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def gemma3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Gemma 3."""
    largest = common["num_hidden_layers"] == 62  # as Gemma 2's
    scalar = common["hidden_size"] // common["num_attention_heads"] if largest else common["head_dim"]
    pattern = keys.raw("attention.sliding_window_pattern")
    if pattern is not None and not isinstance(pattern, int):
        keys.fail("attention.sliding_window_pattern", "isobit reads a number: every so many layers see everything")
    return gemma(keys, gguf, common) | {
        "query_pre_attn_scalar": scalar,
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "sliding_window_pattern": keys.integer("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
    }


def granite(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Granite."""
    names = {"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
             "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"}  # fmt: skip
    return llama(keys, gguf, common) | {ours: keys.number(key, 1.0) for ours, key in names.items()}


def smollm3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """SmolLM3."""
    return llama(keys, gguf, common) | {"no_rope_layer_interval": 4, "use_sliding_window": False}


def phi3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Phi-3 and 4."""
    return {"sliding_window": keys.integer("attention.sliding_window", 0, low=0) or None}


def olmo2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """OLMo 2, GLM-4."""
    return {"attention_bias": has(gguf, "attn_q.bias")}


def olmo3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """OLMo 3: what scales the angles does so in layers that see everything."""
    found = rope_keys(keys, gguf, common["head_dim"])
    whole = found.pop("rope_scaling", {"rope_type": "default"}) | found
    near = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", found["rope_theta"])}
    return olmo2(keys, gguf, common) | {
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": windowed(keys, common, 4),
        "rope_parameters": {"full_attention": whole, "sliding_attention": near},
    }


def ernie(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """ERNIE 4.5."""
    return {"use_bias": has(gguf, "attn_q.bias")}


def seed_oss(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Seed-OSS."""
    found = (("attention_bias", "attn_q"), ("attention_out_bias", "attn_output"), ("mlp_bias", "ffn_gate"))
    return {key: has(gguf, f"{part}.bias") for key, part in found}


def exaone4(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """EXAONE 4: the large ones have layers with a window, and those alone rotate."""
    window = keys.integer("attention.sliding_window", 0, low=0)
    if window:
        return {"sliding_window": window, "layer_types": windowed(keys, common, 4)}
    keys.raw("attention.sliding_window_pattern")
    return {"sliding_window": None, "layer_types": ["full_attention"] * common["num_hidden_layers"]}


def command_r(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Command R and R+."""
    return {
        "logit_scale": keys.number("logit_scale", 1.0),
        "attention_bias": has(gguf, "attn_q.bias"),
        "use_qk_norm": has(gguf, "attn_q_norm.weight"),
    }


def cohere2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Command R7B and A: of four layers one sees everything, and that one does not rotate."""
    return {
        "logit_scale": keys.number("logit_scale"),
        "attention_bias": has(gguf, "attn_q.bias"),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": windowed(keys, common, 4),
    }


def glm(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """GLM-4 of 2024 (glm-4-9b), whose file may have q, k and v as one matrix."""
    return {"attention_bias": has(gguf, "attn_q.bias")}


def hunyuan(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Hunyuan; what stretches theta is in it already."""
    return {"attention_bias": has(gguf, "attn_q.bias")}


def nemotron(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Nemotron and Minitron."""
    keys.raw("attention.layer_norm_rms_epsilon")  # the same again
    return llama(keys, gguf, common)


def stablelm(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """StableLM; where there is no norm in front of MLPs, they stand beside attention, whatever the key says."""
    keys.raw("use_parallel_residual")
    return {
        "use_parallel_residual": not has(gguf, "ffn_norm.weight"),
        "use_qkv_bias": has(gguf, "attn_q.bias"),
        "qk_layernorm": has(gguf, "attn_q_norm.weight"),
    }


def starcoder2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """StarCoder2."""
    published = (common["num_hidden_layers"], common["hidden_size"]) in _STARCODER2
    return {
        "use_bias": has(gguf, "attn_q.bias"),
        "sliding_window": keys.integer("attention.sliding_window", 4096 if published else 0, low=0) or None,
    }


def windowed(keys: Keys, common: Config, step: int) -> list[str]:
    """Which layers have a window.

    Args:
        keys: of the file.
        common: what all families have.
        step: every so many layers one has none, where the file does not say it.
    """
    pattern, layers = keys.raw("attention.sliding_window_pattern"), common["num_hidden_layers"]
    if pattern is None or isinstance(pattern, int):
        step = keys.integer("attention.sliding_window_pattern", step)
        near = [(layer + 1) % step != 0 for layer in range(layers)]
    else:
        near = [bool(one) for one in keys.numbers("attention.sliding_window_pattern")]
        if len(near) != layers:
            keys.fail("attention.sliding_window_pattern", f"expected true or false for each of {layers} layers")
    return ["sliding_attention" if one else "full_attention" for one in near]


def has(gguf: Gguf, part: str) -> bool:
    """Whether the first block has a tensor; that of queries may be in one with those of keys and values."""
    joined = part.replace("attn_q.", "attn_qkv.")
    return f"blk.0.{part}" in gguf.tensors or f"blk.0.{joined}" in gguf.tensors
