"""Writing the ``quantization_config`` of ``config.json`` as compressed-tensors does; ``ctconfig`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isobit.checkpoint.ctargs import ACT_ELEMENTS, WEIGHT_ELEMENTS
from isobit.checkpoint.ctconfig import METHOD
from isobit.checkpoint.cttargets import compact, is_routed, module_class
from isobit.formats.schemes import ActSpec, Scheme, WeightSpec
from isobit.formats.table import element

LAYOUT_VERSION = "0.20.0"  # the compressed-tensors release whose layout is written, and against which it is tested


def render(assignments: Mapping[str, Scheme | None]) -> dict[str, Any]:
    """The ``quantization_config`` of a model whose modules are quantized as ``assignments`` says.

    Args:
        assignments: every linear, lm_head, router and embedding by module name, with its scheme; None (or a scheme
            that does not quantize) for modules that are kept.

    Returns:
        A dictionary for ``config.json``; empty if nothing is quantized.

    One scheme for all linears is written as the class target ``Linear``; lm_head and embeddings are always named. With
    several schemes every module is named (or matched by a pattern), because vLLM looks at class names before it looks
    at the parts of a fused layer. Groups of routed experts come first: transformers reads all experts of a checkpoint
    by the first group whose patterns name ``experts``, and those of ``shared_experts`` do, too.

    compressed-tensors has no e5m2: its "float, 8 bits" means e4m3fn, and its loaders would convert e5m2 weights to
    that, which overflows above 448. An e5m2 group is therefore written with the type ``float8_e5m2``, which
    compressed-tensors, transformers and vLLM refuse by name instead of computing something else. So are floats below
    8 bits (``float6_e3m2``), whose codes are packed like those of integers.
    """
    kept = [module for module, chosen in assignments.items() if chosen is None or chosen.weights is None]
    by_format: dict[tuple[WeightSpec, ActSpec | None], list[str]] = {}
    for module, chosen in assignments.items():
        if chosen is not None and chosen.weights is not None:
            by_format.setdefault((chosen.weights, chosen.activations), []).append(module)
    if not by_format:
        return {}
    groups, formats = {}, []
    routed_first = sorted(by_format.items(), key=lambda one: not any(is_routed(module) for module in one[1]))
    for number, ((weights, activations), modules) in enumerate(routed_first):
        if len(by_format) == 1:
            named = [module for module in modules if module_class(module) != "Linear" or module.endswith("lm_head")]
            targets = (["Linear"] if len(named) < len(modules) else []) + sorted(named)
        else:
            targets = compact(modules, assignments)
        formats.append(compression_format(weights, activations))
        groups[f"group_{number}"] = {
            "targets": targets,
            "weights": weight_args(weights),
            "input_activations": None if activations is None else _activations(activations),
            "output_activations": None,
            "format": formats[-1],
        }
    return {
        "quant_method": METHOD,
        "format": formats[0] if len(set(formats)) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": compact(kept, assignments),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": LAYOUT_VERSION,
    }


def compression_format(weights: WeightSpec, activations: ActSpec | None) -> str:
    """How compressed-tensors calls the storage of such weights.

    What is below 8 bits is always packed, weight-only integers of 8 bits too. compressed-tensors itself would give
    those with rounded activations a byte each (``int-quantized``), which makes a 4-bit checkpoint one of 8 bits.
    """
    row = element(weights.element)
    if weights.scale is not None and weights.scale.codes is not None:
        if row.bits == 8:
            return "mxfp8-quantized"
        return "mxfp4-pack-quantized" if weights.scale.powers else "nvfp4-pack-quantized"
    if row.bits == 8 and row.kind == "float":
        return "float-quantized"
    if row.bits == 8 and activations is not None:
        return "int-quantized"
    return "pack-quantized"


def _rendered(
    table: Mapping[tuple[str, int, bool], str], spec: WeightSpec | ActSpec, *, block: list[int] | None, dynamic: bool
) -> dict[str, Any]:
    kind, bits, symmetric = _kind(table, spec)
    found = {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": spec.granularity,
        "group_size": spec.group,
        "block_structure": block,
        "dynamic": dynamic,
        "actorder": None,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
    }
    if spec.scale is None:
        return found
    stored = "torch.uint8" if spec.scale.powers else "torch.float8_e4m3fn"
    found |= {"scale_dtype": stored, "zp_dtype": stored}
    if spec.scale.over is not None:
        found |= {"strategy": "tensor_group"} | ({"dynamic": "local", "observer": "static_minmax"} if dynamic else {})
    return found


def _kind(table: Mapping[tuple[str, int, bool], str], spec: WeightSpec | ActSpec) -> tuple[str, int, bool]:
    """Type, bits and symmetry. What is 4-bit floats to compressed-tensors has scales of few bits, and else our name."""
    name = element(spec.element).name
    keys = [key for key, found in table.items() if found == name]
    return next((key for key in keys if (key[0] == "float") == (spec.scale is not None)), keys[0])


def weight_args(spec: WeightSpec) -> dict[str, Any]:
    """Weights as a config group has them."""
    block = None if spec.block is None else list(spec.block)
    return _rendered(WEIGHT_ELEMENTS, spec, block=block, dynamic=False)


def _activations(spec: ActSpec) -> dict[str, Any]:
    return _rendered(ACT_ELEMENTS, spec, block=None, dynamic=spec.dynamic)
