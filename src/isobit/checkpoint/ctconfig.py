"""Reading the ``quantization_config`` of ``config.json``, as compressed-tensors and transformers do.

``parse`` reads compressed-tensors configs of any version and the ``fp8`` method of DeepSeek and Qwen. Which tensors
are quantized is decided by the tensors themselves (see ``layout``); the config says how activations are rounded and
serves as a cross-check. ``ctreview`` holds it against the modules of a model; ``ctrender`` writes such a section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from isobit.checkpoint.ctargs import PER_TOKEN, act_spec, block_sizes, text, unknown_keys, weight_spec
from isobit.checkpoint.cttargets import Lookup
from isobit.checkpoint.jsonfile import bare, short
from isobit.checkpoint.methods import INSTEAD, READ, method_name, refuse_unread, section
from isobit.errors import CheckpointError, SchemeError, Unsupported
from isobit.formats.patterns import PatternError, compiled
from isobit.formats.schemes import ActSpec, WeightSpec, scheme

METHOD = READ[0]

_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision", None)
_PLAIN_FORMATS = ("dense", "fakequant")  # of checkpoints whose weights are stored as they are
_KEYS = frozenset(
    ("quant_method", "format", "quantization_status", "config_groups", "ignore", "kv_cache_scheme", "version",
     "global_compression_ratio", "sparsity_config", "transform_config", "moe_sparsity_config", "run_compressed",
     "dequantize", "use_optimized_inference")
)  # fmt: skip
_GROUP_KEYS = frozenset(("targets", "weights", "input_activations", "output_activations", "format"))
_FP8_KEYS = frozenset(
    ("quant_method", "fmt", "activation_scheme", "weight_block_size", "scale_fmt", "ignored_layers", "dequantize",
     "modules_to_not_convert", "modules_to_convert", "expert_dtype", "kv_cache_scheme", "kv_cache_quant_method")
)  # fmt: skip
_FP8_LISTS = ("ignored_layers", "modules_to_not_convert", "modules_to_convert")
KV_CACHE = "the checkpoint asks for a quantized KV cache; isobit keeps the KV cache in the model's dtype"
_WHOLE_MODEL = ("Linear", "Embedding", "Module")
_MOST_GROUPS = 10_000


class Group(NamedTuple):
    """One config group.

    Attributes:
        targets: module names, ``re:`` patterns of names, or class names (``Linear``, ``Embedding``).
        weights: how the weights are stored; None when they are not quantized.
        activations: how activations are rounded before the linear; None when they are not.
        inputs_only: whether it rounds the inputs of modules whose weights it leaves alone (attention's, say).
        outputs: whether it rounds outputs (of k_proj and v_proj, that is, keys and values).
    """

    targets: tuple[str, ...]
    weights: WeightSpec | None
    activations: ActSpec | None
    inputs_only: bool = False
    outputs: bool = False


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's config says about its quantization.

    Attributes:
        groups: the config groups.
        ignore: modules that are not quantized although a group targets them; names, ``re:`` patterns, class names.
        method: ``compressed-tensors`` or ``fp8``.
        format: the compression format, e.g. ``pack-quantized``.
        notes: what people should know: what the checkpoint asks for and isobit, or another engine, does otherwise.
        stored: modules whose tensors have other names in their file, with their names there, which the config may use.
    """

    groups: tuple[Group, ...]
    ignore: tuple[str, ...]
    method: str
    format: str
    notes: tuple[str, ...] = ()
    stored: Mapping[str, str] = field(default_factory=dict, hash=False)

    def names(self, module: str) -> tuple[str, ...]:
        """What the config may call a module: its name in the file, and a model's own name for it."""
        stored = self.stored.get(module, module)
        return (module,) if stored == module else (stored, module)

    def group_for(self, module: str) -> Group | None:
        """The group of a module by its name (``model.layers.0.mlp.up_proj``); None if it is not quantized.

        Exact names come before patterns, patterns before class names, and patterns in the order of their letters; of
        groups with the same target the last has it. All of this as in compressed-tensors 0.20.
        """
        if module not in self._found:
            target = None if self.ignores(module) else self.targets.find(*self.names(module))
            self._found[module] = None if target is None else self.owner[target]
        return self._found[module]

    def ignores(self, module: str) -> bool:
        """Whether the config says that a module is not quantized."""
        if self.method == "fp8":
            return any(self._skips(name) for name in self.names(module))
        return self._ignored.find(*self.names(module)) is not None

    @cached_property
    def targets(self) -> Lookup:
        """The targets of all groups, in the order of the file."""
        return Lookup((target for group in self.groups for target in group.targets), "targets of config_groups")

    @cached_property
    def owner(self) -> dict[str, Group]:
        """The group of each target."""
        return {target: group for group in self.groups for target in group.targets}

    @cached_property
    def _found(self) -> dict[str, Group | None]:
        return {}

    @cached_property
    def _ignored(self) -> Lookup:
        return Lookup(self.ignore, "ignore")

    @cached_property
    def _skipped(self) -> frozenset[str]:
        return frozenset(self.ignore)

    @cached_property
    def _skip_patterns(self) -> Lookup:
        """Entries of the fp8 method that are patterns; they end where a part of a name ends, as in transformers."""
        texts = (entry.removeprefix("re:") for entry in self.ignore)
        special = [entry for entry in texts if re.search(r"[][(){}*+?|^$\\]", entry) and _is_pattern(entry)]
        return Lookup((f"re:(?:{entry})(?:(?<=\\.)|(?=\\.|$))" for entry in special), "modules_to_not_convert")

    def _skips(self, module: str) -> bool:
        """The rule of the fp8 method: names, parts of names between dots, ends of names; patterns."""
        if not self.ignore:
            return False
        parts = module.split(".")
        inner = (".".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1))
        ends = (module[begin:] for begin in range(len(module)))
        if any(name in self._skipped for name in (*inner, *ends)):
            return True
        return self._skip_patterns.find(module) is not None


def _is_pattern(entry: str) -> bool:
    try:
        compiled(entry)
    except PatternError:
        return False
    return True


def parse(config: Mapping[str, Any]) -> Quantization | None:
    """Reads the quantization config of a model's ``config.json``; None if it has none.

    Raises:
        CheckpointError: the config is malformed.
        Unsupported: another method, or a part of this one that isobit cannot run.
    """
    refuse_unread(config)
    found = section(config)
    if found is None:
        return None
    result = _parse_fp8(found[1]) if method_name(*found) == "fp8" else _parse_compressed_tensors(found[1])
    _ = result.targets, result._ignored if result.method == METHOD else result._skip_patterns  # patterns are read now
    return result


# ---------------------------------------------------------------------- compressed-tensors


def _parse_compressed_tensors(part: dict[str, Any]) -> Quantization:
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
    notes += _ignored_keys(key for key in part if key not in _KEYS)
    return Quantization(
        groups=groups,
        ignore=_names(part.get("ignore"), "ignore"),
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
        return Group(_names(value, where), preset.weights, preset.activations)
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must be a JSON object, not {short(value)}")
    targets = _names(value.get("targets"), f"{where}.targets")
    weights, activations, outputs = (value.get(k) for k in ("weights", "input_activations", "output_activations"))
    if value.get("format") not in (*_FORMATS, *_PLAIN_FORMATS):
        raise Unsupported(f"config group {short(name)}", [f"its format is {short(value['format'])}"], INSTEAD)
    if outputs and not all(_of_attention(target) for target in targets):
        raise Unsupported(f"config group {short(name)}", ["it quantizes the outputs of layers"], INSTEAD)
    inputs_only = weights is None and activations is not None
    if inputs_only and any(target in _WHOLE_MODEL for target in targets):
        raise rounds_inputs_only(f"config group {short(name)}")
    notes += _ignored_keys(key for key in value if key not in _GROUP_KEYS)
    notes += _ignored_keys(key for args in (weights, activations) for key in unknown_keys(args))
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


def _ignored_keys(keys: Any) -> list[str]:
    unknown = list(dict.fromkeys(str(key) for key in keys))
    if not unknown:
        return []
    listed = ", ".join(bare(key) for key in unknown[:4]) + (", ..." if len(unknown) > 4 else "")
    return [f"quantization_config has keys that isobit does not know and does not follow: {listed}"]


def _names(value: Any, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"{what} must be a list of names, not {short(value)}")
    return tuple(value)


# ---------------------------------------------------------------------- the fp8 method


def _parse_fp8(part: dict[str, Any]) -> Quantization:
    """DeepSeek's and Qwen's ``fp8`` method: blocks with ``weight_scale_inv``, or one scale per tensor."""
    if text(part.get("fmt"), "e4m3", "fmt") != "e4m3":
        raise Unsupported(f"fp8 format {short(part['fmt'])}", ["isobit reads e4m3"], INSTEAD)
    activation_scheme = text(part.get("activation_scheme"), "dynamic", "activation_scheme")
    if activation_scheme not in ("dynamic", "static"):
        raise CheckpointError(f"activation_scheme {short(activation_scheme)} is neither dynamic nor static")
    dynamic = activation_scheme == "dynamic"
    block = part.get("weight_block_size")
    notes = _ignored_keys(key for key in part if key not in _FP8_KEYS)
    if block is not None:
        if not dynamic:
            raise CheckpointError("weight_block_size with static activations is not defined")
        weights, activations = _blocks(block_sizes(block, "weight_block_size"))
    elif dynamic:
        weights, activations = WeightSpec("e4m3fn", "tensor"), ActSpec("e4m3fn", "token")
        notes.append(PER_TOKEN)
    else:
        weights, activations = WeightSpec("e4m3fn", "tensor"), ActSpec("e4m3fn", "tensor", dynamic=False)
    if text(part.get("scale_fmt"), "", "scale_fmt") == "ue8m0":
        notes.append("the model was trained with activation scales that are powers of two; isobit uses exact ones")
    if part.get("kv_cache_scheme") or part.get("kv_cache_quant_method"):
        notes.append(KV_CACHE)
    listed = {key: _names(part.get(key), key) for key in _FP8_LISTS}
    return Quantization(
        groups=(Group(("Linear", *listed["modules_to_convert"]), weights, activations),),
        ignore=(*listed["ignored_layers"], *listed["modules_to_not_convert"]),
        method="fp8",
        format="float-quantized",
        notes=tuple(notes),
    )


def _blocks(sizes: tuple[int, int]) -> tuple[WeightSpec, ActSpec]:
    try:
        return WeightSpec("e4m3fn", "block", block=sizes), ActSpec("e4m3fn", "group", sizes[1])
    except SchemeError as error:
        raise CheckpointError(f"weight_block_size {list(sizes)}: {error}") from None
