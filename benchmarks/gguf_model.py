"""The bundled model as a GGUF file in float16, tokenizer included: the same model for llama.cpp's tools.

llama.cpp keeps the rows of q and k in the order of rotations of neighbouring pairs; Hugging Face's Llama rotates
halves.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import gguf_file
import torch
from gguf_file import ALIGNMENT, ARRAY, F16, F32, STRING
from safetensors.torch import load_file

INT32, BOOL = 5, 7
NORMAL, CONTROL = 1, 3  # kinds of tokens


def write(path: Path, folder: Path) -> None:
    """Writes the file of a Llama's folder whose tokenizer is byte-level BPE."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    values = {key: gguf_file._value(value) for key, value in shape(config).items()} | vocabulary(config, tokenizer)
    tensors = {name: _ready(name, weight, config) for name, weight in load_file(folder / "model.safetensors").items()}
    infos, offset = b"", 0
    for name, data in tensors.items():
        size = tuple(data.shape)
        kind = F32 if data.dtype == torch.float32 else F16
        dims = struct.pack(f"<{len(size)}Q", *reversed(size))
        named = gguf_file._string(gguf_file.gguf_name(name))
        infos += named + struct.pack("<I", len(size)) + dims + struct.pack("<IQ", kind, offset)
        offset += gguf_file._padded(data.numel() * data.element_size())
    body = b"".join(gguf_file._string(key) + value for key, value in values.items())
    header = gguf_file.MAGIC + struct.pack("<IQQ", gguf_file.VERSION, len(tensors), len(values)) + body + infos
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for data in tensors.values():
            raw = data.contiguous().numpy().tobytes()
            file.write(raw + bytes(-len(raw) % ALIGNMENT))
    os.replace(unfinished, path)


def shape(config: dict[str, int]) -> dict[str, str | int | float]:
    """The model's sizes as llama.cpp asks for them."""
    return {
        "general.architecture": "llama",
        "general.name": "bundled",
        "general.file_type": gguf_file.ALL_F16,
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": float(config["rope_theta"]),
        "llama.vocab_size": config["vocab_size"],
    }


def vocabulary(config: dict[str, int], tokenizer: dict[str, object]) -> dict[str, bytes]:
    """Its tokens and merges, as values of metadata."""
    model: dict[str, object] = tokenizer["model"]  # type: ignore[assignment]
    ids: dict[str, int] = dict(model["vocab"])  # type: ignore[call-overload]
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}  # type: ignore[attr-defined]
    names = [f"<unused{place}>" for place in range(config["vocab_size"])]
    for name, id in (ids | special).items():
        names[id] = name
    kinds = [CONTROL if place in special.values() else NORMAL for place in range(len(names))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]  # type: ignore[attr-defined]
    texts = {"tokenizer.ggml.tokens": names, "tokenizer.ggml.merges": merges}
    arrays = {key: _array(STRING, [gguf_file._string(text) for text in found]) for key, found in texts.items()}
    return arrays | {
        "tokenizer.ggml.model": gguf_file._value("gpt2"),
        "tokenizer.ggml.pre": gguf_file._value("gpt-2"),
        "tokenizer.ggml.token_type": _array(INT32, [struct.pack("<i", kind) for kind in kinds]),
        "tokenizer.ggml.bos_token_id": gguf_file._value(config["bos_token_id"]),
        "tokenizer.ggml.eos_token_id": gguf_file._value(config["eos_token_id"]),
        "tokenizer.ggml.add_bos_token": struct.pack("<I?", BOOL, False),
    }


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)


def _ready(name: str, weight: torch.Tensor, config: dict[str, int]) -> torch.Tensor:
    """A weight as llama.cpp has it: norms in float32, all else in float16."""
    if weight.ndim == 1:
        return weight.float()
    for part, heads in (("q_proj", config["num_attention_heads"]), ("k_proj", config["num_key_value_heads"])):
        if part in name:
            rows, columns = weight.shape
            weight = weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
    return weight.half()
