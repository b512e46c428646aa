"""A transformers model as llama.cpp's converter writes it: the rules of the families that came later, a row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from gguf_writer import Raw, gguf, write

F32 = 0
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PARTS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
    "mlp.gate": "ffn_gate_inp", "mlp.gate.wg": "ffn_gate_inp", "mlp.router": "ffn_gate_inp",
}  # fmt: skip
BEHIND = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
SHARED = ("shared_experts", "shared_expert", "shared_mlp")
CORRECTION = "e_score_correction_bias"


@dataclass(frozen=True)
class Rules:
    """How one family is written.

    Attributes:
        architecture: of transformers.
        keys: of the file, without the family's prefix, beside those that all have.
        changes: of the tiny configuration.
        named: the architecture of the file.
        parts: names of parts that differ.
        turned: whether rows of q and k lie as neighbours.
        raised: what is added to norms.
        transposed: whether experts have inputs first.
    """

    architecture: str
    keys: Callable[[Any], dict[str, Any]]
    named: str
    changes: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    turned: bool = False
    raised: float = 0.0
    transposed: bool = False


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows whose rotation pairs the halves of a head, as llama.cpp wants them: neighbours."""
    width = rows.shape[0] // heads
    order = [head * width + half * width // 2 + pair
             for head in range(heads) for pair in range(width // 2) for half in (0, 1)]  # fmt: skip
    return rows[order]


def raw(name: str, value: np.ndarray, kind: str) -> Raw:
    """A tensor in some type; vectors, and what is written in float32, as they are."""
    if kind == "F32" or value.ndim == 1:
        return Raw(name, F32, value.shape[::-1], np.ascontiguousarray(value, dtype=np.float32).tobytes())
    type = GGMLQuantizationType[kind]
    return Raw(name, int(type), value.shape[::-1], quants.quantize(value.astype(np.float32), type).tobytes())


def common_keys(config: Any) -> dict[str, Any]:
    """What every file says."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    found = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": rope["rope_theta"], "attention.key_length": head_dim, "attention.value_length": head_dim,
        "vocab_size": config.vocab_size,
    }  # fmt: skip
    partial = getattr(config, "partial_rotary_factor", None) or rope.get("partial_rotary_factor")
    if partial:
        found["rope.dimension_count"] = int(head_dim * partial)
    for ours, theirs in (("layer_norm_rms_epsilon", ("rms_norm_eps",)),
                         ("layer_norm_epsilon", ("layer_norm_eps", "norm_epsilon", "norm_eps"))):  # fmt: skip
        found |= {f"attention.{ours}": getattr(config, name) for name in theirs if hasattr(config, name)}
    if rope["rope_type"] == "yarn":
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": rope["factor"],
                  "rope.scaling.original_context_length": rope["original_max_position_embeddings"]}  # fmt: skip
        found |= {f"rope.scaling.yarn_{key}": rope[key] for key in ("beta_fast", "beta_slow") if rope.get(key)}
    counts = [getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")]
    if any(counts):
        found |= {"expert_count": next(filter(None, counts)),
                  "expert_used_count": getattr(config, "moe_topk", None) or config.num_experts_per_tok}  # fmt: skip
    return found


def convert(path: Path, model: Any, rules: Rules, kind: str = "F32", **more: Any) -> Path:
    """Writes a model.

    Args:
        path: where to.
        model: of transformers, in float32.
        rules: of its family.
        kind: type of its matrices.
        more: keys in place of others, without prefix; None takes one away.
    """
    config, tensors = model.config, list[Raw]()
    keys = common_keys(config) | rules.keys(config) | more
    for stored, tensor in model.state_dict().items():
        if stored != "lm_head.weight" or not config.tie_word_embeddings:
            tensors += written(stored, tensor.float().numpy(), config, rules, kind)
    metadata = {f"{rules.named}.{key}": value for key, value in keys.items() if value is not None}
    return write(path, gguf({"general.architecture": rules.named} | metadata, tensors))


def written(stored: str, value: np.ndarray, config: Any, rules: Rules, kind: str) -> list[Raw]:
    """One of transformers' tensors in the file."""
    module, _, end = stored.rpartition(".")
    if module in OUTSIDE:
        raised = rules.raised if (module, end) == ("model.norm", "weight") else 0.0
        return [raw(f"{OUTSIDE[module]}.{end}", value + raised, kind)]
    layer, _, inner = stored.removeprefix("model.layers.").partition(".")
    block, inner = f"blk.{layer}.", inner.replace("block_sparse_moe.", "mlp.").replace("feed_forward.", "mlp.")
    module = inner.rpartition(".")[0]
    if end == CORRECTION:
        return [raw(f"{block}exp_probs_b.bias", value, "F32")]
    if value.ndim == 3:
        return experts(block, inner, value.transpose(0, 2, 1) if rules.transposed else value, kind)
    if module == "self_attn.kv_b_proj" and "attn_kv_b" not in rules.parts:
        return halves(block, value, config, kind)
    for shared in SHARED:
        if module.startswith(f"mlp.{shared}."):
            return [raw(f"{block}ffn_{module.rpartition('.')[2].removesuffix('_proj')}_shexp.{end}", value, kind)]
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    if rules.turned and module in heads:
        value = interleaved(value, heads[module])
    name = (PARTS | rules.parts)[module]
    raised = rules.raised if name.endswith("norm") and end == "weight" else 0.0
    return [raw(f"{block}{name}.{end}", value + raised, "F32" if name == "ffn_gate_inp" else kind)]


def experts(block: str, inner: str, value: np.ndarray, kind: str) -> list[Raw]:
    """Of all experts: gate above up, which the file has apart."""
    half = value.shape[1] // 2
    roles = {"gate": value[:, :half], "up": value[:, half:]} if "gate_up" in inner else {"down": value}
    return [raw(f"{block}ffn_{role}_exps.weight", np.ascontiguousarray(part), kind) for role, part in roles.items()]


def halves(block: str, value: np.ndarray, config: Any, kind: str) -> list[Raw]:
    """What makes keys and values of a latent, as two: of each head, the first transposed."""
    apart = value.reshape(config.num_attention_heads, -1, value.shape[1])
    keys, values = apart[:, : config.qk_nope_head_dim], apart[:, config.qk_nope_head_dim :]
    return [
        raw(f"{block}attn_k_b.weight", np.ascontiguousarray(keys.transpose(0, 2, 1)), kind),
        raw(f"{block}attn_v_b.weight", np.ascontiguousarray(values), kind),
    ]
