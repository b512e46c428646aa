"""Models in GGUF: every family's logits equal transformers', from names and orders that llama.cpp's converter gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model, save, token_ids
from gguf import GGMLQuantizationType, quants
from gguf_writer import Raw, gguf, write
from running import run

import isobit
from isobit.checkpoint.gguf.rope import llama3_factors
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import IsobitError
from isobit.models.weights import load_model

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "block_sparse_moe.gate": "ffn_gate_inp", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
}  # fmt: skip
GEMMA2_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
POST_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.router": "ffn_gate_inp", "self_attn": "attn_sinks",
}  # fmt: skip
GLM4_NAMES = NAMES | {
    "post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm",
}  # fmt: skip
F32, ROUTER = 0, "mlp.gate.weight"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows whose rotation pairs the halves of a head, as llama.cpp wants them: neighbours."""
    width = rows.shape[0] // heads
    order = [head * width + half * width // 2 + pair
             for head in range(heads) for pair in range(width // 2) for half in (0, 1)]  # fmt: skip
    return rows[order]


def width_of(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_of(config: Any) -> dict[str, Any]:
    """Of the layers that see everything, where there are others."""
    found: dict[str, Any] = config.rope_parameters
    return found.get("full_attention", found)


def keys_of(config: Any, arch: str) -> dict[str, Any]:
    head_dim = width_of(config)
    rope = rope_of(config)
    found = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": rope["rope_theta"],
        "attention.key_length": head_dim, "attention.value_length": head_dim,
        "rope.dimension_count": head_dim, "vocab_size": config.vocab_size,
    }  # fmt: skip
    if rope["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        found |= {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": 1.2,
                  "rope.dimension_count": int(head_dim * rope["partial_rotary_factor"])}  # fmt: skip
    if arch == "granite":
        found |= {"attention.scale": config.attention_multiplier, "embedding_scale": config.embedding_multiplier,
                  "residual_scale": config.residual_multiplier, "logit_scale": config.logits_scaling}  # fmt: skip
    if getattr(config, "num_experts_per_tok", None):
        found |= {"expert_count": getattr(config, "num_experts", None) or config.num_local_experts,
                  "expert_used_count": config.num_experts_per_tok}  # fmt: skip
    if arch in ("qwen2moe", "qwen3moe"):
        found |= {"expert_feed_forward_length": config.moe_intermediate_size}
    if arch == "qwen2moe":
        found |= {"expert_shared_feed_forward_length": config.shared_expert_intermediate_size}
    if rope.get("partial_rotary_factor") and arch == "glm4":
        found["rope.dimension_count"] = int(head_dim * rope["partial_rotary_factor"])
    if arch == "gpt-oss":
        found |= {"expert_feed_forward_length": config.intermediate_size}
    if arch in ("gemma3", "phi3", "gpt-oss"):
        found |= {"attention.sliding_window": config.sliding_window}
    if arch == "gemma3":
        found |= {"attention.sliding_window_pattern": 2}
    if rope["rope_type"] == "yarn":
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": rope["factor"],
                  "rope.scaling.original_context_length": rope["original_max_position_embeddings"]}  # fmt: skip
    if arch == "gemma2":
        found |= {"attention.sliding_window": config.sliding_window,
                  "attn_logit_softcapping": config.attn_logit_softcapping,
                  "final_logit_softcapping": config.final_logit_softcapping}  # fmt: skip
    arch = "llama" if arch == "mixtral" else arch
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in found.items()}


def raw(name: str, value: np.ndarray, kind: str) -> Raw:
    """A tensor in some type; vectors, and what is written in float32, as they are."""
    if kind == "F32" or value.ndim == 1:
        return Raw(name, F32, value.shape[::-1], np.ascontiguousarray(value, dtype=np.float32).tobytes())
    type = GGMLQuantizationType[kind]
    return Raw(name, int(type), value.shape[::-1], quants.quantize(value.astype(np.float32), type).tobytes())


def write_gguf(path: Path, model: Any, arch: str, kind: str = "F32", **more: Any) -> Path:
    """A transformers model as llama.cpp's converter writes it."""
    config, names = model.config, GEMMA2_NAMES if arch in ("gemma2", "gemma3") else NAMES
    names = GLM4_NAMES if arch == "glm4" else names
    names = POST_NAMES if arch in ("olmo2", "seed_oss", "gpt-oss") else names
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors: list[Raw] = []
    for stored, tensor in model.state_dict().items():
        if stored == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, end = stored.rpartition(".")
        value = tensor.float().numpy()
        if arch == "gpt-oss" and ".experts." in stored:
            tensors += gpt_oss_experts(stored, value, kind)
            continue
        if end == "sinks":
            end = "weight"
        if value.ndim == 3:  # of all experts, gate above up; the file has one of each role
            prefix = f"blk.{module.split('.')[2]}.ffn_"
            gate = value[:, : value.shape[1] // 2] if stored.endswith("gate_up_proj") else None
            roles = {"down": value} if gate is None else {"gate": gate, "up": value[:, gate.shape[1] :]}
            tensors += [raw(f"{prefix}{role}_exps.weight", part, kind) for role, part in roles.items()]
            continue
        if arch in ("llama", "mixtral", "granite", "smollm3") and module.rpartition(".")[2] in heads:
            value = interleaved(value, heads[module.rpartition(".")[2]])
        if arch.startswith("gemma") and "norm" in module:
            value = value + 1
        layer = module.removeprefix("model.layers.").partition(".")
        name = f"blk.{layer[0]}.{names[layer[2]]}" if layer[2] and module.startswith("model.layers.") else names[module]
        tensors.append(raw(f"{name}.{end}", value, "F32" if stored.endswith(ROUTER) else kind))
    rope = rope_of(config)
    if rope["rope_type"] == "longrope":
        for name in ("long", "short"):
            tensors.append(raw(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"]), "F32"))
    if rope["rope_type"] == "llama3":
        factors = llama3_factors(rope["rope_theta"], config.head_dim, rope["factor"],
                                 rope["original_max_position_embeddings"])  # fmt: skip
        tensors.append(raw("rope_freqs.weight", np.array(factors, dtype=np.float32), "F32"))
    return write(path, gguf(keys_of(config, arch) | more, tensors))


def gpt_oss_experts(stored: str, value: np.ndarray, kind: str) -> list[Raw]:
    """Experts of a layer as the converter writes them: gate and up apart, rows of outputs."""
    prefix = f"blk.{stored.split('.')[2]}.ffn_"
    end = "bias" if stored.endswith("_bias") else "weight"
    value = value if end == "bias" else value.transpose(0, 2, 1)  # [experts, outputs, inputs]
    roles = {"gate": value[:, ::2], "up": value[:, 1::2]} if "gate_up_proj" in stored else {"down": value}
    return [
        raw(f"{prefix}{role}_exps.{end}", np.ascontiguousarray(part), "F32" if end == "bias" else kind)
        for role, part in roles.items()
    ]


GEMMA3 = {
    "num_hidden_layers": 3, "layer_types": None, "sliding_window_pattern": 2, "query_pre_attn_scalar": 64,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip
MOE = {"use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", {"sliding_window": None}),
    "qwen2moe": ("Qwen2MoeForCausalLM", MOE | {"norm_topk_prob": False}),
    "qwen3moe": ("Qwen3MoeForCausalLM", MOE | {"norm_topk_prob": True, "rope_parameters": None}),
    "qwen2": ("Qwen2ForCausalLM", {"use_sliding_window": False}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gemma3": ("Gemma3ForCausalLM", GEMMA3),
    "granite": ("GraniteForCausalLM", {"attention_bias": False}),
    "phi3": ("Phi3ForCausalLM", {}),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 5, "no_rope_layers": None, "no_rope_layer_interval": 4}),
    "glm4": ("Glm4ForCausalLM", {}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {"use_bias": False}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "seed_oss": ("SeedOssForCausalLM", {}),
    "gpt-oss": ("GptOssForCausalLM", {"swiglu_limit": 7.0}),  # which files do not say
    "gemma": ("GemmaForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 64}),
}


@pytest.mark.parametrize("arch", CASES)
@torch.inference_mode()
def test_logits_equal_transformers(tmp_path: Path, arch: str) -> None:
    architecture, changes = CASES[arch]
    model, ids = make_model(architecture, **changes), token_ids(100)
    path = write_gguf(tmp_path / "m.gguf", model, arch)
    assert float((run(load_model(path), ids) - model(ids).logits).abs().max()) < 1e-4
    config, own = Checkpoint.open(path).config, model.config.to_dict()
    assert "quantization_config" not in config and config["dtype"] == "float32"
    for key in ("hidden_size", "vocab_size", "rms_norm_eps", "tie_word_embeddings", "num_key_value_heads"):
        assert config[key] == own[key], key


@pytest.mark.parametrize(
    ("arch", "kind"),
    [("llama", kind) for kind in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "MXFP4")]
    + [("qwen3moe", "Q8_0"), ("qwen3moe", "Q5_1")],
)
@torch.inference_mode()
def test_quantized_weights_are_those_of_the_file(tmp_path: Path, arch: str, kind: str) -> None:
    """The same logits as a folder that holds the numbers which gguf dequantizes."""
    model, ids = make_model(CASES[arch][0], **CASES[arch][1]), token_ids(40)
    path, type = write_gguf(tmp_path / "m.gguf", model, arch, kind), GGMLQuantizationType[kind]
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and not name.endswith(ROUTER):
            value = parameter.numpy()
            parameter.copy_(
                torch.from_numpy(quants.dequantize(quants.quantize(value, type), type)).reshape(value.shape)
            )
    folder = save(model, tmp_path / "folder")
    found, wanted = (run(load_model(one), ids) for one in (path, folder))
    assert float((found - wanted).abs().max()) < 1e-4


def test_info_and_plan(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_model("LlamaForCausalLM"), "llama", "Q8_0")
    info = isobit.info(path)
    assert (info.architecture, info.quantization) == ("LlamaForCausalLM", "gguf (Q8_0)")
    assert {use.scheme for use in info.schemes if use.kind == "linear"} == {"q8_0"}
    assert info.linear_bits_per_weight == pytest.approx(8.5)


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    model = make_model("LlamaForCausalLM")
    path = write_gguf(tmp_path / "m.gguf", model, "llama")
    write(tmp_path / "mmproj-m.gguf", b"GGUF")
    assert Checkpoint.open(tmp_path).path == path
    write(tmp_path / "n.gguf", path.read_bytes())
    with pytest.raises(IsobitError, match=r"holds several GGUF files, name the one that is meant: m\.gguf, n\.gguf"):
        Checkpoint.open(tmp_path)
    save(model, tmp_path)
    assert Checkpoint.open(tmp_path).path == tmp_path  # a folder's own weights come first


def test_a_tensor_is_missing_or_surplus(tmp_path: Path) -> None:
    model = make_model("LlamaForCausalLM")
    path = write_gguf(tmp_path / "m.gguf", model, "llama")
    data = path.read_bytes()
    write(path, data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(IsobitError) as caught:
        load_model(path)
    assert "'blk.1.ffn_up.weight' is missing" in str(caught.value) and "blk.1.ffn_xx.weight" in str(caught.value)
