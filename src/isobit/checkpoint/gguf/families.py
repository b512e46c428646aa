"""The families that are read from GGUF files: what Hugging Face's config.json says of such a model.

The configuration is made here and read where those of folders are, so that nothing is understood twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isobit.checkpoint.gguf import dense, mixtures, names
from isobit.checkpoint.gguf.dense import Config
from isobit.checkpoint.gguf.keys import Keys
from isobit.checkpoint.gguf.model import Gguf
from isobit.checkpoint.gguf.names import Names
from isobit.checkpoint.gguf.placing import Shape
from isobit.checkpoint.gguf.rope import rope_keys
from isobit.checkpoint.shown import bare, short
from isobit.errors import CheckpointError, Unsupported

_LISTED = 5
_ROUTER = ".ffn_gate_inp"  # float32 in every file


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
        eps: the epsilon of its norms: the key of config.json, and that of the file.
    """

    architecture: str
    model_type: str
    names: Names
    more: Callable[[Keys, Gguf, Config], Config]
    activation: tuple[str, str] = ("hidden_act", "silu")
    scaling: tuple[tuple[str, Any], ...] = ()
    eps: tuple[str, str] = ("rms_norm_eps", "attention.layer_norm_rms_epsilon")


_GELU = ("hidden_activation", "gelu_pytorch_tanh")
_RELU2 = ("hidden_act", "relu2")
_NORM = "attention.layer_norm_epsilon"
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", "llama", names.LLAMA, dense.llama),
    "mixtral": Family("MixtralForCausalLM", "mixtral", names.MIXTRAL, mixtures.mixtral),
    "mistral3": Family("MistralForCausalLM", "mistral", names.LLAMA, dense.mistral),
    "ministral3": Family("Ministral3ForCausalLM", "ministral3", names.LLAMA, dense.ministral3),
    "llama4": Family("Llama4ForCausalLM", "llama4_text", names.LLAMA4, mixtures.llama4),
    "arcee": Family("ArceeForCausalLM", "arcee", names.LLAMA, dense.llama, _RELU2),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", names.PLAIN, dense.qwen2),
    "qwen2moe": Family("Qwen2MoeForCausalLM", "qwen2_moe", names.QWEN_MOE, mixtures.qwen2_moe),
    "qwen2vl": Family("Qwen2ForCausalLM", "qwen2", names.PLAIN, dense.seeing(dense.qwen2)),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", names.PLAIN, dense.qwen3),
    "qwen3moe": Family("Qwen3MoeForCausalLM", "qwen3_moe", names.QWEN_MOE, mixtures.qwen3_moe),
    "qwen3vl": Family("Qwen3ForCausalLM", "qwen3", names.PLAIN, dense.seeing(dense.qwen3)),
    "qwen3vlmoe": Family("Qwen3MoeForCausalLM", "qwen3_moe", names.QWEN_MOE, dense.seeing(mixtures.qwen3_moe)),
    "gemma": Family("GemmaForCausalLM", "gemma", names.GEMMA, dense.gemma, _GELU),
    "gemma2": Family("Gemma2ForCausalLM", "gemma2", names.GEMMA2, dense.gemma2, _GELU),
    "gemma3": Family("Gemma3ForCausalLM", "gemma3_text", names.GEMMA2, dense.gemma3, _GELU),
    "granite": Family("GraniteForCausalLM", "granite", names.LLAMA, dense.granite),
    "granitemoe": Family("GraniteMoeForCausalLM", "granitemoe", names.GRANITE_MOE, mixtures.granite_moe),
    "phi3": Family("Phi3ForCausalLM", "phi3", names.PHI3, dense.phi3),
    "chatglm": Family("GlmForCausalLM", "glm", names.GLM, dense.glm),
    "glm4": Family("Glm4ForCausalLM", "glm4", names.GLM4, dense.olmo2),
    "glm4moe": Family("Glm4MoeForCausalLM", "glm4_moe", names.GLM4_MOE, mixtures.glm4_moe),
    "deepseek2": Family("DeepseekV2ForCausalLM", "deepseek_v2", names.DEEPSEEK, mixtures.deepseek_v2),
    "deepseek3": Family("DeepseekV3ForCausalLM", "deepseek_v3", names.DEEPSEEK, mixtures.deepseek_v3),
    "ernie4_5": Family("Ernie4_5ForCausalLM", "ernie4_5", names.PLAIN, dense.ernie),
    "ernie4_5-moe": Family("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", names.ERNIE_MOE, mixtures.ernie_moe),
    "olmo2": Family("Olmo2ForCausalLM", "olmo2", names.OLMO2, dense.olmo2),
    "olmo3": Family("Olmo3ForCausalLM", "olmo3", names.OLMO2, dense.olmo3),
    "olmoe": Family("OlmoeForCausalLM", "olmoe", names.OLMOE, mixtures.olmoe),
    "seed_oss": Family("SeedOssForCausalLM", "seed_oss", names.SEED_OSS, dense.seed_oss),
    "gpt-oss": Family("GptOssForCausalLM", "gpt_oss", names.GPT_OSS, mixtures.gpt_oss, scaling=(("truncate", False),)),
    "smollm3": Family("SmolLM3ForCausalLM", "smollm3", names.LLAMA, dense.smollm3),
    "exaone4": Family("Exaone4ForCausalLM", "exaone4", names.OLMO2, dense.exaone4),
    "command-r": Family("CohereForCausalLM", "cohere", names.PLAIN, dense.command_r, eps=("layer_norm_eps", _NORM)),
    "cohere2": Family("Cohere2ForCausalLM", "cohere2", names.PLAIN, dense.cohere2, eps=("layer_norm_eps", _NORM)),
    "hunyuan-dense": Family("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", names.HUNYUAN, dense.hunyuan),
    "hunyuan-moe": Family("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", names.HUNYUAN_MOE, mixtures.hunyuan_moe),
    "minimax-m2": Family("MiniMaxM2ForCausalLM", "minimax_m2", names.MINIMAX_M2, mixtures.minimax_m2),
    "nemotron": Family(
        "NemotronForCausalLM", "nemotron", names.NEMOTRON, dense.nemotron, _RELU2, eps=("norm_eps", _NORM)
    ),
    "stablelm": Family("StableLmForCausalLM", "stablelm", names.PLAIN, dense.stablelm, eps=("layer_norm_eps", _NORM)),
    "starcoder2": Family(
        "Starcoder2ForCausalLM", "starcoder2", names.STARCODER2, dense.starcoder2, ("hidden_act", "gelu_pytorch_tanh"),
        eps=("norm_epsilon", _NORM),
    ),
}  # fmt: skip

# Architectures of llama.cpp that are two families: name there -> row of the other, and when it is that one.
_OTHER: Mapping[str, tuple[str, Callable[[Keys, Gguf], bool]]] = {
    "llama": ("mixtral", lambda keys, gguf: keys.integer("expert_count", 0, low=0) > 0),
    "mistral3": ("ministral3", lambda keys, gguf: keys.number("attention.temperature_scale", 0.0) != 0.0),
    "olmo2": ("olmo3", lambda keys, gguf: keys.integer("attention.sliding_window", 0, low=0) > 0),
    "deepseek2": ("deepseek3", mixtures.is_sigmoid),
}
_ROWS_ONLY = frozenset(name for name, _ in _OTHER.values())  # which no file says

# Keys of a family that say nothing of what is computed, or something that the tensors say.
_HARMLESS = frozenset({"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.causal"})
# Keys that change nothing with these values.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0,), "expert_used_count": (0,), "expert_shared_count": (0,), "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,), "logit_scale": (0.0, 1.0), "expert_weights_scale": (0.0, 1.0), "pooling_type": (0,),
    "residual_scale": (1.0,), "embedding_scale": (1.0,), "attention.sliding_window": (0,),
    "nextn_predict_layers": (0,), "expert_group_count": (0, 1), "expert_group_used_count": (0, 1),
    "attention.shared_kv_layers": (0,), "leading_dense_block_count": (0,), "expert_shared_feed_forward_length": (0,),
    "rope.scaling.yarn_ext_factor": (1.0,), "rope.scaling.yarn_log_multiplier": (0.0,),
}  # fmt: skip


def family_of(gguf: Gguf) -> tuple[str, Family]:
    """What llama.cpp calls the architecture of a model, and its row.

    Raises:
        CheckpointError: the file does not say it.
        Unsupported: isobit does not read this family from GGUF.
    """
    named = Keys(gguf).text("general.architecture")
    if named not in FAMILIES or named in _ROWS_ONLY:
        known = ", ".join(name for name in FAMILIES if name not in _ROWS_ONLY)
        raise Unsupported(
            f"a GGUF file of the architecture {bare(named)} ({gguf.path.name})",
            [f"isobit reads those of {known}", "the model's own folder of safetensors may be one that isobit runs"],
        )
    other, applies = _OTHER.get(named, (named, None))
    return named, FAMILIES[other if applies is not None and applies(Keys(gguf, f"{named}."), gguf) else named]


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
    if "rope_parameters" not in common:
        common |= rope_keys(keys, gguf, common["head_dim"])
    if "rope_scaling" in common:
        common["rope_scaling"] = common["rope_scaling"] | dict(row.scaling)
    _require_understood(keys, gguf)
    return common


def shape_of(gguf: Gguf) -> Shape:
    """Heads and layers."""
    named, row = family_of(gguf)
    keys = Keys(gguf, f"{named}.")
    heads = keys.integer("attention.head_count")
    kv_heads = keys.integer("attention.head_count_kv", heads)
    layers, guessing = keys.integer("block_count"), keys.integer("nextn_predict_layers", 0, low=0)
    if guessing >= layers:
        keys.fail("nextn_predict_layers", f"there are {layers} blocks in all")
    return Shape(heads, kv_heads, layers - guessing)


def _common(keys: Keys, gguf: Gguf, row: Family) -> Config:
    hidden, shape = keys.integer("embedding_length"), shape_of(gguf)
    for key in ("attention.head_count", "attention.head_count_kv", "block_count", "nextn_predict_layers"):
        keys.raw(key)
    head_dim = keys.integer("attention.key_length", max(1, hidden // shape.heads))
    if not row.names.latent and keys.integer("attention.value_length", head_dim) != head_dim:
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
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": head_dim,
        row.activation[0]: row.activation[1],
        row.eps[0]: keys.number(row.eps[1]),
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
        if len(entry.shape) > 1 and entry.type.plain in sizes and _ROUTER not in entry.name:
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
