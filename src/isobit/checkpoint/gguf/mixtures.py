"""What config.json has of each family with experts besides what all have, from the metadata of a GGUF file."""

from __future__ import annotations

from isobit.checkpoint.gguf.dense import Config, granite, has, qwen2, qwen3
from isobit.checkpoint.gguf.keys import Keys
from isobit.checkpoint.gguf.model import Gguf
from isobit.checkpoint.gguf.rope import rope_keys

_SOFTMAX, _SIGMOID = 1, 2  # expert_gating_func
_GLM_LITE = (47, 48)  # layers of GLM-4.7-Flash, whose first files do not say that its router takes a sigmoid
_GLM_VOCAB = 154880
# Blocks and experts of DeepSeek V2 and V3 as published -> groups of experts, and of how many of them a token's are.
_GROUPS = {(60, 160): (8, 3), (61, 256): (8, 4)}
_MAVERICK = 128  # experts of the Llama 4 that has no norm of queries and keys


def mixtral(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Mixtral."""
    return _counts(keys, "num_local_experts") | {"sliding_window": None}


def qwen2_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Qwen2 with experts."""
    keys.raw("expert_shared_count")
    return qwen2(keys, gguf, common) | _counts(keys, "num_experts") | {
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length"),
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }  # fmt: skip


def qwen3_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Qwen3 with experts."""
    return qwen3(keys, gguf, common) | _counts(keys, "num_experts") | {
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "norm_topk_prob": keys.flag("expert_weights_norm", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }  # fmt: skip


def gpt_oss(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """gpt-oss."""
    return _counts(keys, "num_local_experts") | {
        "attention_bias": has(gguf, "attn_q.bias"),
        "intermediate_size": keys.integer("expert_feed_forward_length"),
        "sliding_window": keys.integer("attention.sliding_window"),
    }


def olmoe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """OLMoE."""
    return _counts(keys, "num_experts") | {
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "attention_bias": has(gguf, "attn_q.bias"),
    }


def granite_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Granite with experts."""
    found = granite(keys, gguf, common) | _counts(keys, "num_local_experts")
    del found["mlp_bias"]
    return found


def hunyuan_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Hunyuan A13B: one expert of all tokens, as wide as the others."""
    size = keys.integer("expert_feed_forward_length")
    if keys.integer("expert_shared_feed_forward_length", size) != size:
        keys.fail("expert_shared_feed_forward_length", f"experts are {size} wide, and transformers has one width")
    if keys.integer("expert_shared_count", 1) != 1:
        keys.fail("expert_shared_count", "Hunyuan has one")
    count = keys.integer("expert_count")
    return {
        "num_experts": count, "moe_topk": keys.integer("expert_used_count", high=count), "intermediate_size": size,
        "attention_bias": has(gguf, "attn_q.bias"),
    }  # fmt: skip


def ernie_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """ERNIE 4.5 with experts."""
    keys.raw("expert_shared_feed_forward_length")  # a number that says nothing: the tensors are as wide as all of them
    _gating(keys, _SOFTMAX)
    count = keys.integer("expert_count")
    return {
        "moe_num_experts": count,
        "moe_k": keys.integer("expert_used_count", high=count),
        "moe_layer_interval": keys.integer("interleave_moe_layer_step", 1),
        "moe_layer_start_index": keys.integer("leading_dense_block_count", 0, low=0),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "moe_num_shared_experts": keys.integer("expert_shared_count", 0, low=0),
    }


def glm4_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """GLM-4.5, 4.6 and 4.7."""
    _gating(keys, _SIGMOID)
    return _sigmoid(keys, gguf, common) | {
        "attention_bias": has(gguf, "attn_q.bias"),
        "use_qk_norm": has(gguf, "attn_q_norm.weight"),
        "norm_topk_prob": keys.flag("expert_weights_norm", True),
        "n_shared_experts": keys.integer("expert_shared_count", 1),
    }


def minimax_m2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """MiniMax-M2: what says how much of a head rotates is a number of dimensions."""
    _gating(keys, _SIGMOID)
    return _counts(keys, "num_local_experts") | {
        "intermediate_size": keys.integer("expert_feed_forward_length", common["intermediate_size"]),
        "rotary_dim": keys.integer("rope.dimension_count", common["head_dim"]),
    }


def llama4(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Llama 4: chunks of 8192 tokens, and growth of queries in steps of as many, which files do not say."""
    count = keys.integer("expert_count")
    if keys.raw("attention.sliding_window") is not None:
        keys.fail("attention.sliding_window", "Llama 4 with experts has chunks")
    return _counts(keys, "num_local_experts") | {
        "intermediate_size": keys.integer("expert_feed_forward_length"),
        "intermediate_size_mlp": common["intermediate_size"],
        "interleave_moe_layer_step": keys.integer("interleave_moe_layer_step"),
        "use_qk_norm": count != _MAVERICK,
        "attention_bias": has(gguf, "attn_q.bias"),
    }


def is_sigmoid(keys: Keys, gguf: Gguf) -> bool:
    """Whether a model of DeepSeek's kind has the router of V3."""
    said = keys.raw("expert_gating_func")
    if said is not None:
        return keys.integer("expert_gating_func", high=_SIGMOID) == _SIGMOID
    table, blocks = gguf.tensors.get("token_embd.weight"), keys.integer("block_count")
    if table is not None and table.shape[:1] == (_GLM_VOCAB,) and blocks in _GLM_LITE:
        return True
    if any(name.endswith(".exp_probs_b.bias") for name in gguf.tensors):
        keys.fail("expert_gating_func", "routers have a correction, as V3 has beside a sigmoid: convert it again")
    return False


def deepseek_v2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """DeepSeek V2, V2.5 and V2-Lite."""
    found = _latent(keys, gguf, common) | _experts_of_latent(keys)
    keys.raw("expert_gating_func")
    if keys.flag("expert_weights_norm", False):
        keys.fail("expert_weights_norm", "transformers leaves the weights of V2's experts as they are")
    return found | {"topk_method": "group_limited_greedy" if found.get("n_group", 1) > 1 else "greedy"}


def deepseek_v3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """DeepSeek V3 and R1, Kimi K2, GLM-4.7-Flash."""
    keys.raw("expert_gating_func")
    found = _latent(keys, gguf, common) | _experts_of_latent(keys)
    return found | {
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "num_nextn_predict_layers": _guessing(keys),
    }


def _latent(keys: Keys, gguf: Gguf, common: Config) -> Config:
    """Latent attention. Files of before 2025-04 have the widths of heads where the others have those of the latent."""
    latent, rotated = keys.integer("attention.kv_lora_rank"), keys.integer("rope.dimension_count")
    key, value = keys.integer("attention.key_length"), keys.integer("attention.value_length")
    query = keys.integer("attention.key_length_mla", key)
    if query <= rotated:
        keys.fail("attention.key_length", f"expected more than the {rotated} of a head that rotate")
    low = keys.raw("attention.q_lora_rank")
    del common["head_dim"]
    found = rope_keys(keys, gguf, rotated)
    section = found.pop("rope_scaling", {"rope_type": "default"}) | found
    if section["rope_type"] == "yarn":  # a tenth of mscale_all_dim, and mscale is the same in all of these models
        multiplier = keys.number("rope.scaling.yarn_log_multiplier") * 10
        mscale = round(multiplier, 6)
        section |= {"mscale": mscale, "mscale_all_dim": mscale}
    return {
        "rope_parameters": section,
        "num_key_value_heads": common["num_attention_heads"],
        "q_lora_rank": None if low is None else keys.integer("attention.q_lora_rank"),
        "kv_lora_rank": latent,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": query - rotated,
        "v_head_dim": keys.integer("attention.value_length_mla", value),
        "attention_bias": False,
    }


def _experts_of_latent(keys: Keys) -> Config:
    dense = keys.integer("leading_dense_block_count", 0, low=0)
    found: Config = {"first_k_dense_replace": dense}
    if keys.integer("expert_count", 0, low=0) == 0:
        keys.raw("expert_feed_forward_length"), keys.raw("expert_shared_count")
        return found | {"n_routed_experts": None}
    return found | _counts(keys, "n_routed_experts") | _groups(keys) | {
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "n_shared_experts": keys.integer("expert_shared_count", 0, low=0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
    }  # fmt: skip


def _sigmoid(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return _counts(keys, "n_routed_experts") | _groups(keys) | {
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "first_k_dense_replace": keys.integer("leading_dense_block_count", 0, low=0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0),
        "num_nextn_predict_layers": _guessing(keys),
    }  # fmt: skip


def _guessing(keys: Keys) -> int:
    return keys.integer("nextn_predict_layers", 0, low=0)


def _groups(keys: Keys) -> Config:
    """Groups of experts; files of before 2025-11 do not say them."""
    published = _GROUPS.get((keys.integer("block_count"), keys.integer("expert_count")), (1, 1))
    groups, chosen = ("expert_group_count", "expert_group_used_count"), published
    found = [keys.integer(key, usual, low=0) or 1 for key, usual in zip(groups, chosen, strict=True)]
    return {"n_group": found[0], "topk_group": found[1]}


def _counts(keys: Keys, name: str) -> Config:
    count = keys.integer("expert_count")
    return {name: count, "num_experts_per_tok": keys.integer("expert_used_count", high=count)}


def _gating(keys: Keys, wanted: int) -> None:
    if keys.integer("expert_gating_func", wanted, low=0) not in (0, wanted):
        names = {_SOFTMAX: "softmax", _SIGMOID: "sigmoid"}
        keys.fail("expert_gating_func", f"isobit runs this family with a {names[wanted]} ({wanted})")
