"""Files beside ``config.json`` in which other tools say how weights are quantized, where it does not say so itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isobit.checkpoint.files import is_there
from isobit.checkpoint.jsonfile import read_json
from isobit.checkpoint.sections import section
from isobit.errors import CheckpointError

_LARGEST = 16 << 20  # bytes


def _whole(content: dict[str, Any], method: str) -> dict[str, Any]:
    return {"quant_method": method, **content}


def _of_modelopt(content: dict[str, Any]) -> dict[str, Any] | None:
    """None where it speaks of a key-value cache alone."""
    part = content.get("quantization")
    if not isinstance(part, dict) or part.get("quant_algo", "") in (None, "NO_QUANT"):
        return None
    return {"quant_method": "modelopt", **part}


# File -> what makes a section of its contents.
_FILES: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "quantize_config.json": lambda content: _whole(content, "gptq"),
    "quant_config.json": lambda content: _whole(content, "awq") if {"w_bit", "bits"} & content.keys() else None,
    "hf_quant_config.json": _of_modelopt,
    "quanto_qmap.json": lambda content: {"quant_method": "quanto", "quantization_map": content},
    "quantization_map.json": lambda content: {"quant_method": "quanto", "quantization_map": content},
    "quantization_config.json": lambda content: content if "quant_method" in content else None,
}

ADOPTED = tuple(_FILES)


def adopted(config: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """A ``config.json``, with the section on quantization that a file beside it holds where it has none of its own.

    Args:
        config: its contents.
        folder: where it lies; None when there is nothing but the configuration.

    Raises:
        CheckpointError: such a file holds no JSON object.
    """
    if folder is None or _said(config):
        return config
    for name, made in _FILES.items():
        if is_there(folder / name):
            found = made(read_json(folder / name, _LARGEST))
            if found:
                return {**config, "quantization_config": found}
    return config


def _said(config: Mapping[str, Any]) -> bool:
    try:
        return section(config) is not None
    except CheckpointError:
        return True  # whoever reads it will say what is wrong with it
