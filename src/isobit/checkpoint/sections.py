"""The part of a ``config.json`` that speaks of quantization, and the name of the method that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isobit.checkpoint.jsonfile import short
from isobit.errors import CheckpointError

SECTIONS = ("quantization_config", "compression_config")
COMPRESSED_TENSORS = "compressed-tensors"
ALTERNATIVE = "use a compressed-tensors version of this one"
INSTEAD = f"quantize the original model with isobit, or {ALTERNATIVE}"


def section(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The part of a ``config.json`` that speaks of quantization, with its key; None if there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    for holder in (config, config.get("text_config")):
        for key in SECTIONS:
            found = holder.get(key) if isinstance(holder, Mapping) else None
            if found is not None and not isinstance(found, dict):
                raise CheckpointError(f"{key} must be a JSON object, not {short(found)}")
            if found:
                return key, found
    return None


def method_name(key: str, found: Mapping[str, Any]) -> str | None:
    """What a section says its method is, in lower case; None where it does not say and is not compressed-tensors'.

    Raises:
        CheckpointError: ``quant_method`` is no text.
    """
    name = found.get("quant_method")
    if name is None and (found.get("load_in_8bit") is True or found.get("load_in_4bit") is True):
        return "bitsandbytes"  # as transformers takes it
    if name is None:
        return COMPRESSED_TENSORS if "config_groups" in found or key == "compression_config" else None
    if not isinstance(name, str):
        raise CheckpointError(f"{key}: quant_method must be a text, not {short(name)}")
    return name.strip().lower()
