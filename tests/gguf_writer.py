"""GGUF files for tests: small, and wrong in whatever way is asked for."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

U32, F32, BOOL, STRING, ARRAY, I32, U64 = 4, 6, 7, 8, 9, 5, 10


@dataclass(frozen=True)
class Raw:
    """A tensor as bytes: ``sizes`` in the file's order (columns first), ``offset`` where it is not to be right."""

    name: str
    type: int
    sizes: Sequence[int]
    data: bytes
    offset: int | None = None


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(found: Any) -> bytes:
    """Type and bytes of a value."""
    kind, data = _value(found)
    return struct.pack("<I", kind) + data


def _value(found: Any) -> tuple[int, bytes]:
    if isinstance(found, bytes):  # as it is, with its type in front
        return int.from_bytes(found[:4], "little"), found[4:]
    if isinstance(found, bool):
        return BOOL, struct.pack("<B", found)
    if isinstance(found, int):
        return (U32, struct.pack("<I", found)) if 0 <= found < 1 << 32 else (U64, struct.pack("<Q", found))
    if isinstance(found, float):
        return F32, struct.pack("<f", found)
    if isinstance(found, str):
        return STRING, text(found)
    kinds = [_value(one) for one in found]
    kind = kinds[0][0] if kinds else I32
    return ARRAY, struct.pack("<IQ", kind, len(kinds)) + b"".join(data for _, data in kinds)


def gguf(
    metadata: Mapping[str, Any] | Iterable[tuple[str, Any]],
    tensors: Sequence[Raw],
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file; ``counts`` are the numbers of tensors and keys that it claims."""
    pairs = [*(metadata.items() if isinstance(metadata, Mapping) else metadata)]
    head = magic + struct.pack("<I", version) + struct.pack("<QQ", *(counts or (len(tensors), len(pairs))))
    head += b"".join(text(key) + value(one) for key, one in pairs)
    data = b""
    for tensor in tensors:
        data += bytes(-len(data) % alignment)
        offset = len(data) if tensor.offset is None else tensor.offset
        head += text(tensor.name) + struct.pack("<I", len(tensor.sizes))
        head += struct.pack(f"<{len(tensor.sizes)}Q", *tensor.sizes) + struct.pack("<IQ", tensor.type, offset)
        data += tensor.data
    return head + bytes(-len(head) % alignment) + data


def zeros(name: str, *shape: int, type: int = 0, block: int = 1, nbytes: int = 4) -> Raw:
    """A tensor of zeros of a shape (rows first)."""
    return Raw(name, type, shape[::-1], bytes(math.prod(shape) // block * nbytes))


LLAMA = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.block_count": 1,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
}

LLAMA_SHAPES = {
    "token_embd.weight": (40, 64),
    "output_norm.weight": (64,),
    "output.weight": (40, 64),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_k.weight": (32, 64),
    "blk.0.attn_v.weight": (32, 64),
    "blk.0.attn_output.weight": (64, 64),
    "blk.0.ffn_norm.weight": (64,),
    "blk.0.ffn_gate.weight": (96, 64),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.ffn_down.weight": (64, 96),
}


def llama_tensors() -> list[Raw]:
    """The tensors of a Llama of one layer: Q8_0 matrices of zeros, embeddings in float32."""
    plain = ("token_embd.weight", "output.weight")
    return [
        zeros(name, *shape) if len(shape) == 1 or name in plain else zeros(name, *shape, type=8, block=32, nbytes=34)
        for name, shape in LLAMA_SHAPES.items()
    ]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
