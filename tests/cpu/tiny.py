"""A tiny random model with a tokenizer of its own, made once per test session, for tests that run whole commands."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, VOCAB, LAYERS = 640, 300, 2


def save_model(folder: Path, *, seed: int = 0, vocab: int = VOCAB, context: int = 256) -> Path:
    """A random Llama checkpoint in bfloat16 with a byte-level tokenizer. Every scheme of the demo fits its shapes."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 10, "num_key_value_heads": 2, "head_dim": 64,
        "intermediate_size": HIDDEN, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": context, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 0, "eos_token_id": 0, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(seed, vocab), folder / "model.safetensors", {"format": "pt"})
    save_tokenizer(folder)
    return folder


def _weights(seed: int, vocab: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * 2 / columns**0.5).bfloat16()

    found = {"model.embed_tokens.weight": random(vocab, HIDDEN), "model.norm.weight": torch.ones(HIDDEN).bfloat16()}
    for i in range(LAYERS):
        prefix = f"model.layers.{i}"
        for name, rows in (("q_proj", 640), ("k_proj", 128), ("v_proj", 128), ("o_proj", 640)):
            found[f"{prefix}.self_attn.{name}.weight"] = random(rows, HIDDEN)
        for name in ("gate_proj", "up_proj", "down_proj"):
            found[f"{prefix}.mlp.{name}.weight"] = random(HIDDEN, HIDDEN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{name}.weight"] = torch.ones(HIDDEN).bfloat16()
    return found


def save_tokenizer(folder: Path, *, reverse: bool = False) -> None:
    """A tokenizer with a token per byte and an end-of-text token; ``reverse`` numbers the bytes backwards."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse)
    vocab = {"<|endoftext|>": 0} | {symbol: number + 1 for number, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
