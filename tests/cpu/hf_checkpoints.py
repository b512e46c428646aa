"""Tiny checkpoints for the tests of reading and writing: by transformers, by us, and files that lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobit.checkpoint import ctrender, linear
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import Scheme
from isobit.quantizer.grid import quantize_weight, stored_scale_dtype

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def linears(config: Mapping[str, Any] = CONFIG) -> list[str]:
    """Module names of the linears of a Llama model, without lm_head."""
    attention = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    mlp = [f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    return [f"model.layers.{i}.{name}" for i in range(config["num_hidden_layers"]) for name in attention + mlp]


def tiny_model(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """A random transformers Llama model; its weights are the same in every run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**(CONFIG | changes | {"dtype": str(dtype).removeprefix("torch.")}))
    return LlamaForCausalLM(config).to(dtype).eval()


def save_tiny(folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """Saves a tiny model as transformers does."""
    tiny_model(dtype, **changes).save_pretrained(folder)
    return folder


Shards = Mapping[str, Mapping[str, Tensor]]


def write(folder: Path, config: dict[str, Any], shards: Shards | Mapping[str, Tensor]) -> Path:
    """Writes config.json and one model.safetensors, or several shards (file name -> tensors) with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if all(isinstance(value, Tensor) for value in shards.values()):
        save_file(dict(shards), folder / "model.safetensors", {"format": "pt"})  # type: ignore[arg-type]
        return folder
    weight_map = {}
    for name, tensors in shards.items():
        save_file(dict(tensors), folder / name, {"format": "pt"})  # type: ignore[arg-type]
        weight_map.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def quantize_tiny(source: Path, target: Path, assignments: Mapping[str, Scheme | None]) -> dict[str, QTensor]:
    """Quantizes a saved tiny model with our own code and writes it; returns the quantized weights by module."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    result = {}
    for module, scheme in assignments.items():
        if scheme is None or scheme.weights is None:
            continue
        weight = tensors.pop(f"{module}.weight")
        scale_dtype = stored_scale_dtype(weight.dtype, scheme.weights)
        qt = quantize_weight(weight, scheme.weights, search="absmax", scale_dtype=scale_dtype)
        static = scheme.activations is not None and not scheme.activations.dynamic
        input_scale = torch.tensor([0.03125]) if static else None
        result[module] = qt
        tensors |= linear.module_tensors(module, qt, activations=scheme.activations, input_scale=input_scale)
    config["quantization_config"] = ctrender.render(assignments)
    write(target, config, tensors)
    return result


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header (bytes, or an object to encode), data, and claimed header length."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data
