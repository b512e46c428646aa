"""The files of a model's folder that a GGUF file stands for: what is read of a folder is read of them just as well.

A path to one of them is that of the GGUF file with a name behind it, ``model.gguf/config.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isobit.checkpoint.gguf import families, tokenizer
from isobit.checkpoint.gguf.header import is_gguf
from isobit.checkpoint.gguf.model import Gguf, opened
from isobit.checkpoint.gguf.placing import Placed, placed

METHOD = "gguf"  # what quant_method says of it

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_TEXT: dict[str, Callable[[Gguf], dict[str, Any]]] = {
    "generation_config.json": tokenizer.generation_of,
    TOKENIZER: tokenizer.tokenizer_of,
    "tokenizer_config.json": tokenizer.config_of,
}
NAMES = (CONFIG, *_TEXT)


def contains(path: Path) -> bool:
    """Whether a path leads to a file that a GGUF file stands for."""
    if path.name not in _TEXT and path.name != CONFIG:
        return False
    return is_gguf(path.parent) and (path.name == CONFIG or tokenizer.has_tokenizer(opened(path.parent)))


def companions(path: Path) -> list[Path]:
    """The files beside the configuration, sorted."""
    return [path / name for name in _TEXT] if tokenizer.has_tokenizer(opened(path)) else []


def read(path: Path) -> bytes:
    """One of them.

    Raises:
        CheckpointError: the GGUF file is damaged, or its metadata is; names the file.
        Unsupported: it holds what isobit does not read.
    """
    gguf = opened(path.parent)
    made = config(gguf) if path.name == CONFIG else _TEXT[path.name](gguf)
    return (json.dumps(made, ensure_ascii=False, indent=2 if path.name == CONFIG else None) + "\n").encode()


def config(gguf: Gguf) -> dict[str, Any]:
    """config.json, with the types of the weights that are quantized."""
    made = families.config_of(gguf)
    types = {part.name.removesuffix(".weight"): part.entry.type.name for part in tensors(gguf) if is_quantized(part)}
    if types:
        most = Counter(types.values()).most_common()
        made["quantization_config"] = {
            "quant_method": METHOD,
            "format": ", ".join(name for name, _ in most),
            "types": types,
        }
    return made


def is_quantized(part: Placed) -> bool:
    """Whether a tensor is read as blocks of codes."""
    return part.entry.type.plain is None and part.beside is None  # two of them joined are numbers


def tensors(gguf: Gguf) -> list[Placed]:
    """The tensors by the names that Hugging Face's folders have."""
    _, row = families.family_of(gguf)
    return [*placed(gguf.tensors, row.names, families.shape_of(gguf))]
