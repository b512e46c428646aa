"""GGUF files (version 3) with random float16 weights of a Llama's shape, and the sizes of the tensors in one.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from shapes import POOL, Shape, random_stretches

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9  # types of metadata values
SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
F32, F16 = 0, 1  # types of tensors
ALL_F16 = 1  # general.file_type

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(tensor: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` as GGUF calls it: ``blk.3.ffn_up.weight``."""
    module = tensor.removesuffix(".weight")
    if module.startswith("model.layers."):
        index, _, part = module.removeprefix("model.layers.").partition(".")
        return f"blk.{index}.{NAMES[part]}.weight"
    return f"{NAMES[module]}.weight"


def metadata(shape: Shape) -> dict[str, str | int | float]:
    """What llama.cpp asks for; the model has token ids and no tokenizer."""
    return {
        "general.architecture": "llama",
        "general.name": shape.title,
        "general.file_type": ALL_F16,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.mlp,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.hidden // shape.heads,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": shape.vocab,
        "tokenizer.ggml.model": "no_vocab",
    }


def write_random(path: Path, shape: Shape) -> None:
    """Writes the file: matrices in float16, norms (ones) in float32. It appears under its name when it is whole."""
    tensors = shape.tensors()
    infos, offset = b"", 0
    for name, size in tensors.items():
        kind = F32 if len(size) == 1 else F16
        dims = struct.pack(f"<{len(size)}Q", *reversed(size))
        infos += _string(gguf_name(name)) + struct.pack("<I", len(size)) + dims + struct.pack("<IQ", kind, offset)
        offset += _padded(_nbytes(size))
    values = b"".join(_string(key) + _value(value) for key, value in metadata(shape).items())
    header = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata(shape))) + values + infos
    weights = random_stretches(torch.float16, min(POOL, shape.read_weights))
    unfinished = path.with_suffix(".part")
    with open(unfinished, "wb") as file:
        file.write(header + bytes(_padded(len(header)) - len(header)))
        for size in tensors.values():
            if len(size) == 1:
                file.write(struct.pack("<f", 1.0) * size[0])
            else:
                weights.write(file, _nbytes(size))
            file.write(bytes(_padded(_nbytes(size)) - _nbytes(size)))
    os.replace(unfinished, path)


def _nbytes(size: tuple[int, ...]) -> int:
    return 4 * size[0] if len(size) == 1 else 2 * size[0] * size[1]


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    return struct.pack("<If", FLOAT32, value) if isinstance(value, float) else struct.pack("<II", UINT32, value)


def tensor_bytes(path: Path) -> dict[str, int]:
    """Tensor name -> bytes in the file, padding included.

    Raises:
        ValueError: not a GGUF file of version 3.
    """
    with open(path, "rb") as file:
        if file.read(4) != MAGIC or _number(file, "I") != VERSION:
            raise ValueError(f"{path} is not a GGUF file of version {VERSION}")
        count, values = _number(file, "Q"), _number(file, "Q")
        for _ in range(values):
            _skip_string(file)
            _skip_value(file, _number(file, "I"))
        offsets = {}
        for _ in range(count):
            name = file.read(_number(file, "Q")).decode()
            file.seek(8 * _number(file, "I") + 4, os.SEEK_CUR)  # its shape and type
            offsets[name] = _number(file, "Q")
        size = path.stat().st_size - _padded(file.tell())
    ordered = sorted(offsets, key=lambda name: offsets[name])
    ends = [offsets[name] for name in ordered[1:]] + [size]
    return {name: end - offsets[name] for name, end in zip(ordered, ends, strict=True)}


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0])


def _skip_string(file: BinaryIO) -> None:
    file.seek(_number(file, "Q"), os.SEEK_CUR)


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == STRING:
        _skip_string(file)
    elif kind == ARRAY:
        inner, count = _number(file, "I"), _number(file, "Q")
        for _ in range(count):
            _skip_value(file, inner)
    else:
        file.seek(SCALAR_SIZES[kind], os.SEEK_CUR)
