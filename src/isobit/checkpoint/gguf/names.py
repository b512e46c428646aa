"""What GGUF calls the tensors of a model, and what Hugging Face's folders do: one table of names, a row a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA2_LAYER = LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3_LAYER = LAYER | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_POST_LAYER = LAYER | {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_SEED_LAYER = LAYER | {"post_attention_norm": "post_attention_layernorm"}
_GLM4_LAYER = LAYER | {
    "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}  # fmt: skip
_HUNYUAN_LAYER = LAYER | {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
_STARCODER2_LAYER = LAYER | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_LATENT_LAYER = LAYER | {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
}


def _mixture(
    layer: Mapping[str, str], place: str = "mlp", router: str = "gate", shared: str | None = None,
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> tuple[Mapping[str, str], Mapping[str, str]]:  # fmt: skip
    """Names of a family with experts, and of the matrices of one expert.

    Args:
        layer: names of what is not its experts'.
        place: of the MLP within a layer.
        router: within that.
        shared: the expert of all tokens, within that; None where there is none.
        parts: gate, up and down of an expert.
    """
    roles = dict(zip(("ffn_gate", "ffn_up", "ffn_down"), parts, strict=True))
    plain = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
    found = dict(layer) | {"ffn_gate_inp": f"{place}.{router}"}
    if shared is not None:
        found |= {f"{role}_shexp": f"{place}.{shared}.{name}" for role, name in plain.items()}
        found |= {"ffn_gate_inp_shexp": f"{place}.shared_expert_gate"}
    return found, {role: f"{place}.experts.{{}}.{name}" for role, name in roles.items()}


@dataclass(frozen=True)
class Names:
    """How a family's tensors are called and laid out.

    Attributes:
        layer: name within a block -> name within a layer.
        experts: the same of the matrices of one expert, with a place for its number.
        pairs: parts whose rows lie so that rotation pairs neighbours, where Hugging Face's pairs the halves of a head.
        offset: what was added to the weights of norms.
        whole: vectors that have their module's name in a layer: name within a block -> that.
        rows: vectors that are the one row of a matrix in a layer, and may have lost that axis.
        latent: whether keys and values are made of a latent, by two matrices in the file and one in a layer.
    """

    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    experts: Mapping[str, str] = field(default_factory=dict)
    pairs: tuple[str, ...] = ()
    offset: float = 0.0
    whole: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    latent: bool = False


_PAIRS = ("attn_q", "attn_k")
_W = ("w1", "w3", "w2")
_CORRECTION = "e_score_correction_bias"
_PROBS = "exp_probs_b"
_FEED = {role: name.replace("mlp.", "feed_forward.") for role, name in LAYER.items()}

LLAMA = Names(pairs=_PAIRS)
PLAIN = Names()
GEMMA = Names(offset=1.0)
GEMMA2 = Names(_GEMMA2_LAYER, offset=1.0)
PHI3 = Names(_PHI3_LAYER)
GLM = Names(LAYER | {"ffn_up": "mlp.gate_up_proj"})
GLM4 = Names(_GLM4_LAYER)
OLMO2 = Names(_POST_LAYER)
SEED_OSS = Names(_SEED_LAYER)
STARCODER2 = Names(_STARCODER2_LAYER)
NEMOTRON = Names(offset=1.0)
HUNYUAN = Names(_HUNYUAN_LAYER)

MIXTRAL = Names(*_mixture(LAYER, "block_sparse_moe", parts=_W), _PAIRS)
QWEN_MOE = Names(*_mixture(LAYER, shared="shared_expert"), rows=("ffn_gate_inp_shexp",))
GPT_OSS = Names(*_mixture(_SEED_LAYER, router="router"), whole={"attn_sinks": "self_attn.sinks"})
OLMOE = Names(*_mixture(LAYER))
GRANITE_MOE = Names(*_mixture(LAYER, "block_sparse_moe", "router.layer", parts=_W), _PAIRS)
HUNYUAN_MOE = Names(*_mixture(_HUNYUAN_LAYER, router="gate.wg", shared="shared_mlp"))
ERNIE_MOE = Names(
    *_mixture(LAYER, shared="shared_experts"), whole={_PROBS: f"mlp.moe_statics.{_CORRECTION}"}, rows=(_PROBS,)
)
GLM4_MOE = Names(*_mixture(_SEED_LAYER, shared="shared_experts"), whole={_PROBS: f"mlp.gate.{_CORRECTION}"})
MINIMAX_M2 = Names(
    *_mixture(LAYER, "block_sparse_moe", parts=_W), whole={_PROBS: f"block_sparse_moe.{_CORRECTION}"}
)  # fmt: skip
LLAMA4 = Names(*_mixture(_FEED, "feed_forward", "router", "shared_expert"))
DEEPSEEK = Names(
    *_mixture(_LATENT_LAYER, shared="shared_experts"), whole={_PROBS: f"mlp.gate.{_CORRECTION}"}, latent=True
)
