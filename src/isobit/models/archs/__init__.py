"""The families isobit runs: architecture name (``config.json``) -> the file here that reads it.

A new family is one file with ``from_hf(fields) -> ModelConfig`` and ``tiny() -> dict`` (the keys of a tiny random test
model), and its line in this table.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from isobit.errors import ModelError
from isobit.models.config import Fields, ModelConfig

ARCHS: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def family(name: str) -> Any:
    """The module of a family."""
    return importlib.import_module(f"isobit.models.archs.{name}")


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a ``config.json``, whatever its family.

    Raises:
        ModelError: the architecture is unknown, or a key is missing, wrong or asks for what is not implemented.
    """
    architecture = _architecture(config)
    if architecture not in ARCHS:
        close = difflib.get_close_matches(architecture, ARCHS, n=1, cutoff=0.8)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ModelError(
            f"config.json: architecture {architecture!r} is not implemented; isobit runs {', '.join(ARCHS)}.{hint}"
        )
    return family(ARCHS[architecture]).from_hf(Fields(config))  # type: ignore[no-any-return]


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if names is None:
        by_type = {kind: architecture for architecture, kind in ARCHS.items()}
        kind = config.get("model_type")
        if isinstance(kind, str) and kind in by_type:
            return by_type[kind]
        raise ModelError(f"config.json: architectures is missing and model_type is {kind!r}: nothing says what this is")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ModelError(f"config.json: architectures = {names!r}: expected a list with one name")
    return names[0]
