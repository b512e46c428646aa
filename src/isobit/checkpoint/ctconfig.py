"""Reading the ``quantization_config`` of ``config.json``, as compressed-tensors does.

Which tensors are quantized is decided by the tensors themselves (see ``layouts``); the config says how activations are
rounded and serves as a cross-check. ``ctreview`` holds it against the modules of a model; ``ctrender`` writes such a
section.
"""

from __future__ import annotations

from typing import Any

from isobit.checkpoint.ctargs import act_spec, unknown_keys, weight_spec, with_zero_points
from isobit.checkpoint.jsonfile import bare, short
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.sections import COMPRESSED_TENSORS, INSTEAD
from isobit.errors import CheckpointError, SchemeError, Unsupported
from isobit.formats.schemes import scheme

METHOD = COMPRESSED_TENSORS

_FORMATS = (
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "pack-quantized",
    "mixed-precision",
    "mxfp4-pack-quantized",
    "nvfp4-pack-quantized",
    "mxfp8-quantized",
    None,
)
_PLAIN_FORMATS = ("dense", "fakequant")  # of checkpoints whose weights are stored as they are
_KEYS = frozenset(
    ("quant_method", "format", "quantization_status", "config_groups", "ignore", "kv_cache_scheme", "version",
     "global_compression_ratio", "sparsity_config", "transform_config", "moe_sparsity_config", "run_compressed",
     "dequantize", "use_optimized_inference")
)  # fmt: skip
_GROUP_KEYS = frozenset(("targets", "weights", "input_activations", "output_activations", "format"))
KV_CACHE = "the checkpoint asks for a quantized KV cache; isobit keeps the KV cache in the model's dtype"
_WHOLE_MODEL = ("Linear", "Embedding", "Module")
_MOST_GROUPS = 10_000


def parse(part: dict[str, Any]) -> Quantization:
    """Reads a section of compressed-tensors, of any version.

    Raises:
        CheckpointError: it is malformed.
        Unsupported: it asks for something that isobit cannot run.
    """
    named = part.get("config_groups")
    if not isinstance(named, dict) or (not named and not part.get("kv_cache_scheme")):
        raise CheckpointError("quantization_config has no config_groups")
    if len(named) > _MOST_GROUPS:
        raise CheckpointError(f"quantization_config has {len(named):,} config_groups; isobit reads {_MOST_GROUPS:,}")
    notes: list[str] = []
    groups = tuple(_group(name, value, notes) for name, value in named.items())
    _refuse_extras(part, any(group.weights is not None for group in groups))
    if part.get("kv_cache_scheme"):
        notes.append(KV_CACHE)
    notes += ignored_keys(key for key in part if key not in _KEYS)
    return Quantization(
        groups=groups,
        ignore=names(part.get("ignore"), "ignore"),
        method=METHOD,
        format=str(part.get("format") or "mixed-precision"),
        notes=tuple(dict.fromkeys(notes)),
    )


def _refuse_extras(part: dict[str, Any], quantized: bool) -> None:
    reasons = []
    sparsity, moe = part.get("sparsity_config"), part.get("moe_sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format", "dense") in ("dense", None)):
        named = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
        reasons.append(f"it is sparse ({bare(named)})")
    if moe:
        reasons.append("its experts are sparse (moe_sparsity_config)")
    if part.get("transform_config"):
        reasons.append("its weights are rotated (transform_config)")
    stored = part.get("format")
    if stored in _PLAIN_FORMATS:
        if quantized:
            reasons.append(f"its weights are stored as they are (format {stored!r}), to be rounded while it runs")
    elif stored not in _FORMATS:
        reasons.append(f"format {short(stored)} is none of {', '.join(str(name) for name in _FORMATS[:-1])}")
    if reasons:
        raise Unsupported("this compressed-tensors checkpoint", reasons, INSTEAD)


def _group(name: str, value: Any, notes: list[str]) -> Group:
    where = f"config_groups.{bare(name)}"
    if isinstance(value, list):  # {"FP8_DYNAMIC": ["Linear"]}: a preset name and its targets
        try:
            preset = scheme(name[:80])
        except SchemeError:
            raise Unsupported(f"preset {short(name)} in config_groups", ["isobit does not know it"], INSTEAD) from None
        return Group(names(value, where), preset.weights, preset.activations)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must be a JSON object, not {short(value)}")
    targets = names(value.get("targets"), f"{where}.targets")
    weights, activations, outputs = (value.get(k) for k in ("weights", "input_activations", "output_activations"))
    if value.get("format") not in (*_FORMATS, *_PLAIN_FORMATS):
        raise Unsupported(f"config group {short(name)}", [f"its format is {short(value['format'])}"], INSTEAD)
    if outputs and not all(_of_attention(target) for target in targets):
        raise Unsupported(f"config group {short(name)}", ["it quantizes the outputs of layers"], INSTEAD)
    inputs_only = weights is None and activations is not None
    if inputs_only and any(target in _WHOLE_MODEL for target in targets):
        raise rounds_inputs_only(f"config group {short(name)}")
    notes += ignored_keys(key for key in value if key not in _GROUP_KEYS)
    notes += ignored_keys(key for args in (weights, activations) for key in unknown_keys(args))
    wide = None if weights is None else with_zero_points(weights, f"{where}.weights")
    if wide is not None and activations is not None:
        reasons = ["it rounds the inputs of 8-bit weights with zero points, which isobit does not compute"]
        raise Unsupported(f"config group {short(name)}", reasons, INSTEAD)
    if wide is not None:
        return Group(targets, None, None, integers=wide, widened=str(wide))
    spec = None
    if activations is not None and weights is not None:
        spec, said = act_spec(activations, f"{where}.input_activations")
        notes += said
    stored = None if weights is None else weight_spec(weights, f"{where}.weights")
    return Group(targets, stored, spec, inputs_only, bool(outputs))


def rounds_inputs_only(what: str) -> Unsupported:
    """The refusal of linear layers whose inputs are rounded while their weights are not quantized."""
    return Unsupported(
        what,
        ["it rounds the inputs of layers whose weights are not quantized, which isobit does not compute"],
        "use the original model, or quantize it with isobit",
    )


def _of_attention(target: str) -> bool:
    """Whether a target means attention, its keys or values: what is rounded there is what a KV cache holds."""
    return target.rstrip("$").endswith(("k_proj", "v_proj", "attn", "Attention"))


def ignored_keys(keys: Any) -> list[str]:
    """A note of keys that isobit does not know, if there are any."""
    unknown = list(dict.fromkeys(str(key) for key in keys))
    if not unknown:
        return []
    listed = ", ".join(bare(key) for key in unknown[:4]) + (", ..." if len(unknown) > 4 else "")
    return [f"quantization_config has keys that isobit does not know and does not follow: {listed}"]


def names(value: Any, what: str) -> tuple[str, ...]:
    """A list of names; none for null.

    Raises:
        CheckpointError: it is no such list.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{what} must be a list of names, not {short(value)}")
    return tuple(value)
