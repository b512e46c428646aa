"""The families that are read from GGUF files: what Hugging Face's config.json says of such a model.

The configuration is made here and read where those of folders are, so that nothing is understood twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isobit.checkpoint.gguf import names
from isobit.checkpoint.gguf.keys import Keys
from isobit.checkpoint.gguf.model import Gguf
from isobit.checkpoint.gguf.names import Names
from isobit.checkpoint.gguf.rope import rope_keys
from isobit.checkpoint.shown import bare, short
from isobit.errors import CheckpointError, Unsupported

Config = dict[str, Any]
_LISTED = 5


@dataclass(frozen=True)
class Family:
    """One of llama.cpp's architectures.

    Attributes:
        architecture: what Hugging Face calls it.
        model_type: the same, short.
        names: how its tensors are called.
        more: what its config.json has besides what all have.
        activation: of its MLP, and the key that says it.
        scaling: what it has in a scaling of the rotary embedding that files do not say.
    """

    architecture: str
    model_type: str
    names: Names
    more: Callable[[Keys, Gguf, Config], Config]
    activation: tuple[str, str] = ("hidden_act", "silu")
    scaling: tuple[tuple[str, Any], ...] = ()


def _llama(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {"attention_bias": "blk.0.attn_q.bias" in gguf.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in gguf.tensors}


def _mixtral(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "sliding_window": None,
    }


def _qwen2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {"use_sliding_window": False}


def _qwen3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {"attention_bias": "blk.0.attn_q.bias" in gguf.tensors, "use_sliding_window": False}


def _qwen2_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    keys.raw("expert_shared_count")
    return _qwen2(keys, gguf, common) | {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length"),
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _qwen3_moe(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return _qwen3(keys, gguf, common) | {
        "num_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "norm_topk_prob": keys.flag("expert_weights_norm", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {"attention_bias": False}


def _gemma2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    largest = common["num_hidden_layers"] == 46  # the 27 billion one scales by another width than that of its heads
    scalar = common["hidden_size"] // common["num_attention_heads"] if largest else common["head_dim"]
    return _gemma(keys, gguf, common) | {
        "query_pre_attn_scalar": scalar,
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    largest = common["num_hidden_layers"] == 62  # as Gemma 2's
    scalar = common["hidden_size"] // common["num_attention_heads"] if largest else common["head_dim"]
    pattern = keys.raw("attention.sliding_window_pattern")
    if pattern is not None and not isinstance(pattern, int):
        keys.fail("attention.sliding_window_pattern", "isobit reads a number: every so many layers see everything")
    return _gemma(keys, gguf, common) | {
        "query_pre_attn_scalar": scalar,
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "sliding_window_pattern": keys.integer("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
    }


def _granite(keys: Keys, gguf: Gguf, common: Config) -> Config:
    names = {"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
             "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"}  # fmt: skip
    return _llama(keys, gguf, common) | {ours: keys.number(key, 1.0) for ours, key in names.items()}


def _smollm3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return _llama(keys, gguf, common) | {"no_rope_layer_interval": 4, "use_sliding_window": False}


def _phi3(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {"sliding_window": keys.integer("attention.sliding_window", 0, low=0) or None}


def _olmo2(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {"attention_bias": "blk.0.attn_q.bias" in gguf.tensors}


def _ernie(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {"use_bias": "blk.0.attn_q.bias" in gguf.tensors}


def _seed_oss(keys: Keys, gguf: Gguf, common: Config) -> Config:
    found = (("attention_bias", "attn_q"), ("attention_out_bias", "attn_output"), ("mlp_bias", "ffn_gate"))
    return {key: f"blk.0.{part}.bias" in gguf.tensors for key, part in found}


def _gpt_oss(keys: Keys, gguf: Gguf, common: Config) -> Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "num_local_experts": keys.integer("expert_count"),
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "intermediate_size": keys.integer("expert_feed_forward_length"),
        "sliding_window": keys.integer("attention.sliding_window"),
    }


_GELU = ("hidden_activation", "gelu_pytorch_tanh")
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", "llama", names.LLAMA, _llama),
    "mixtral": Family("MixtralForCausalLM", "mixtral", names.MIXTRAL, _mixtral),  # llama.cpp calls it llama, too
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", names.PLAIN, _qwen2),
    "qwen2moe": Family("Qwen2MoeForCausalLM", "qwen2_moe", names.QWEN_MOE, _qwen2_moe),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", names.PLAIN, _qwen3),
    "qwen3moe": Family("Qwen3MoeForCausalLM", "qwen3_moe", names.QWEN_MOE, _qwen3_moe),
    "gemma": Family("GemmaForCausalLM", "gemma", names.GEMMA, _gemma, _GELU),
    "gemma2": Family("Gemma2ForCausalLM", "gemma2", names.GEMMA2, _gemma2, _GELU),
    "gemma3": Family("Gemma3ForCausalLM", "gemma3_text", names.GEMMA2, _gemma3, _GELU),
    "granite": Family("GraniteForCausalLM", "granite", names.LLAMA, _granite),
    "phi3": Family("Phi3ForCausalLM", "phi3", names.PHI3, _phi3),
    "glm4": Family("Glm4ForCausalLM", "glm4", names.GLM4, _olmo2),
    "ernie4_5": Family("Ernie4_5ForCausalLM", "ernie4_5", names.PLAIN, _ernie),
    "olmo2": Family("Olmo2ForCausalLM", "olmo2", names.OLMO2, _olmo2),
    "seed_oss": Family("SeedOssForCausalLM", "seed_oss", names.SEED_OSS, _seed_oss),
    "gpt-oss": Family("GptOssForCausalLM", "gpt_oss", names.GPT_OSS, _gpt_oss, scaling=(("truncate", False),)),
    "smollm3": Family("SmolLM3ForCausalLM", "smollm3", names.LLAMA, _smollm3),
}

# Keys of a family that say nothing of what is computed, or something that the tensors say.
_HARMLESS = frozenset({"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.causal"})
# Keys that change nothing with these values.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0,), "expert_used_count": (0,), "expert_shared_count": (0,), "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,), "logit_scale": (0.0, 1.0), "expert_weights_scale": (0.0, 1.0), "pooling_type": (0,),
    "residual_scale": (1.0,), "embedding_scale": (1.0,), "attention.sliding_window": (0,),
    "nextn_predict_layers": (0,), "expert_group_count": (0, 1), "expert_group_used_count": (0, 1),
    "attention.shared_kv_layers": (0,), "leading_dense_block_count": (0,),
}  # fmt: skip


def family_of(gguf: Gguf) -> tuple[str, Family]:
    """What llama.cpp calls the architecture of a model, and its row.

    Raises:
        CheckpointError: the file does not say it.
        Unsupported: isobit does not read this family from GGUF.
    """
    named = Keys(gguf).text("general.architecture")
    row = FAMILIES.get(named)
    if named == "llama" and Keys(gguf, "llama.").integer("expert_count", 0, low=0):
        row = FAMILIES["mixtral"]
    if row is None or named == "mixtral":
        known = ", ".join(name for name in FAMILIES if name != "mixtral")
        raise Unsupported(
            f"GGUF files of the architecture {bare(named)} ({gguf.path.name})",
            [f"isobit reads those of {known}", "the model's own folder of safetensors may be one that isobit runs"],
        )
    return named, row


def config_of(gguf: Gguf) -> Config:
    """A config.json that says what the metadata of a file does, without what its tensors are stored as.

    Raises:
        CheckpointError: a key is missing, wrong, or asks for what is not understood; names the file.
        Unsupported: see :func:`family_of`.
    """
    named, row = family_of(gguf)
    keys = Keys(gguf, f"{named}.")
    common = _common(keys, gguf, row)
    common |= row.more(keys, gguf, common)
    common |= rope_keys(keys, gguf, common["head_dim"])
    if "rope_scaling" in common:
        common["rope_scaling"] = common["rope_scaling"] | dict(row.scaling)
    _require_understood(keys, gguf)
    return common


def heads_of(gguf: Gguf) -> tuple[int, int]:
    """Query heads and key-value heads."""
    named, _ = family_of(gguf)
    keys = Keys(gguf, f"{named}.")
    heads = keys.integer("attention.head_count")
    return heads, keys.integer("attention.head_count_kv", heads)


def _common(keys: Keys, gguf: Gguf, row: Family) -> Config:
    hidden, (heads, kv_heads) = keys.integer("embedding_length"), heads_of(gguf)
    keys.raw("attention.head_count"), keys.raw("attention.head_count_kv")
    head_dim = keys.integer("attention.key_length", max(1, hidden // heads))
    if keys.integer("attention.value_length", head_dim) != head_dim:
        keys.fail("attention.value_length", f"values as wide as keys ({head_dim}) are what this family has")
    table = gguf.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CheckpointError("is missing, or no matrix", file=gguf.path, tensor="token_embd.weight")
    config: Config = {
        "architectures": [row.architecture],
        "model_type": row.model_type,
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length", 0, low=0),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        row.activation[0]: row.activation[1],
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": keys.integer("context_length", high=1 << 31),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": _dtype(gguf),
    }
    return config | _ids(gguf)


def _ids(gguf: Gguf) -> Config:
    keys = Keys(gguf, "tokenizer.ggml.")
    found = {}
    for name, key in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")):
        if keys.raw(key) is not None:
            found[name] = keys.integer(key, low=0)
    return found


def _dtype(gguf: Gguf) -> str:
    """What the matrices that are not quantized are stored in, most of them; bfloat16 where there are none."""
    sizes = {"BF16": 0, "F16": 0, "F32": 0}
    for entry in gguf.tensors.values():
        if len(entry.shape) > 1 and entry.type.plain in sizes:
            sizes[entry.type.plain] += entry.nbytes
    largest = max(sizes, key=lambda name: sizes[name])
    return {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[largest if sizes[largest] else "BF16"]


def _require_understood(keys: Keys, gguf: Gguf) -> None:
    left = {
        key: value
        for key, value in keys.unread().items()
        if key not in _HARMLESS and not (key in _NEUTRAL and value in _NEUTRAL[key])
    }
    if left:
        listed = ", ".join(f"{bare(key)} = {short(value, 40)}" for key, value in [*left.items()][:_LISTED])
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        raise Unsupported(
            f"this GGUF file ({gguf.path.name})",
            [f"its metadata asks for what isobit does not read in this family: {listed}{more}"],
        )
