"""Tiny Llama checkpoints for the tests of the quantizer: made by hand, the same in every run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, VOCAB, LAYERS = 64, 160, 96, 2

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


def tensors(dtype: torch.dtype = torch.bfloat16, layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """Random weights by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.05).to(dtype)

    found = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        found[f"{layer}.input_layernorm.weight"] = 1 + normal(HIDDEN)
        found[f"{layer}.self_attn.q_proj.weight"] = normal(HIDDEN, HIDDEN)
        found[f"{layer}.self_attn.k_proj.weight"] = normal(HIDDEN // 2, HIDDEN)
        found[f"{layer}.self_attn.v_proj.weight"] = normal(HIDDEN // 2, HIDDEN)
        found[f"{layer}.self_attn.o_proj.weight"] = normal(HIDDEN, HIDDEN)
        found[f"{layer}.post_attention_layernorm.weight"] = 1 + normal(HIDDEN)
        found[f"{layer}.mlp.gate_proj.weight"] = normal(INTERMEDIATE, HIDDEN)
        found[f"{layer}.mlp.up_proj.weight"] = normal(INTERMEDIATE, HIDDEN)
        found[f"{layer}.mlp.down_proj.weight"] = normal(HIDDEN, INTERMEDIATE)
    found["model.norm.weight"] = 1 + normal(HIDDEN)
    found["lm_head.weight"] = normal(VOCAB, HIDDEN)
    return found


def write(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: object) -> Path:
    """Writes a checkpoint of one shard, with two companion files; ``config`` overrides keys of config.json."""
    folder.mkdir(parents=True)
    save_file(tensors() if weights is None else weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, for every file in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
