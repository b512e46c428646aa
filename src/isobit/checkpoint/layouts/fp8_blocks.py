"""8-bit floats of DeepSeek and Qwen: codes in ``weight``, scales of blocks of them in ``weight_scale_inv``.

``config.json`` calls the method ``fp8``. Some of its checkpoints have one scale for a whole tensor or channel instead,
as ``weight_scale``: those tensors are as compressed-tensors has them. (The scale multiplies, whatever its name says.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import PER_TOKEN, block_sizes, text
from isobit.checkpoint.ctconfig import KV_CACHE, ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts import compressed, compressed_needs
from isobit.checkpoint.layouts.needs import Needs
from isobit.checkpoint.layouts.parts import Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo
from isobit.checkpoint.sections import INSTEAD
from isobit.errors import CheckpointError, SchemeError, Unsupported
from isobit.formats.schemes import ActSpec, WeightSpec

if TYPE_CHECKING:
    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

_KEYS = frozenset(
    ("quant_method", "fmt", "activation_scheme", "weight_block_size", "scale_fmt", "ignored_layers", "dequantize",
     "modules_to_not_convert", "modules_to_convert", "expert_dtype", "kv_cache_scheme", "kv_cache_quant_method")
)  # fmt: skip
_FBGEMM_KEYS = frozenset(("quant_method", "activation_scale_ub", "modules_to_not_convert"))
_LISTS = ("ignored_layers", "modules_to_not_convert", "modules_to_convert")


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    plain = "weight" in infos and infos["weight"].dtype in PLAIN_DTYPES
    return "weight" in infos and not plain and "weight_scale_inv" in infos and "weight_scale" not in infos


def _needs(parts: Parts, n: int, k: int) -> Needs:
    return compressed_needs.bytes_of(parts, n, k, "weight_scale_inv")


def _read(reader: Reader) -> LinearWeight:
    return compressed.read_bytes(reader, "weight_scale_inv")


def _parse(part: dict[str, Any]) -> Quantization:
    """The ``fp8`` method: blocks with ``weight_scale_inv``, or one scale per tensor or channel."""
    if text(part.get("fmt"), "e4m3", "fmt") != "e4m3":
        raise Unsupported(f"fp8 format {short(part['fmt'])}", ["isobit reads e4m3"], INSTEAD)
    if text(part.get("expert_dtype"), "fp8", "expert_dtype") != "fp8":
        raise Unsupported(f"experts in {short(part['expert_dtype'])}", ["isobit reads those in fp8"], INSTEAD)
    activation_scheme = text(part.get("activation_scheme"), "dynamic", "activation_scheme")
    if activation_scheme not in ("dynamic", "static"):
        raise CheckpointError(f"activation_scheme {short(activation_scheme)} is neither dynamic nor static")
    dynamic = activation_scheme == "dynamic"
    block = part.get("weight_block_size")
    notes = ignored_keys(key for key in part if key not in _KEYS)
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
    listed = {key: names(part.get(key), key) for key in _LISTS}
    return Quantization(
        groups=(Group(("Linear", *listed["modules_to_convert"]), weights, activations),),
        ignore=(*listed["ignored_layers"], *listed["modules_to_not_convert"]),
        method="fp8",
        format="float-quantized",
        notes=tuple(notes),
        ignores_parts=True,
    )


def _parse_fbgemm(part: dict[str, Any]) -> Quantization:
    """The ``fbgemm_fp8`` method: a scale per channel, activations per token, their magnitudes cut at a bound."""
    notes = ignored_keys(key for key in part if key not in _FBGEMM_KEYS)
    if part.get("activation_scale_ub") is not None:
        notes.append(
            f"FBGEMM cuts activations at {short(part['activation_scale_ub'])} (activation_scale_ub) when it rounds"
            " them; isobit does not"
        )
    return Quantization(
        (Group(("Linear",), WeightSpec("e4m3fn", "channel"), ActSpec("e4m3fn", "token")),),
        names(part.get("modules_to_not_convert"), "modules_to_not_convert"),
        "fbgemm_fp8",
        "float-quantized",
        tuple(notes),
        ignores_parts=True,
    )


def _blocks(sizes: tuple[int, int]) -> tuple[WeightSpec, ActSpec]:
    try:
        return WeightSpec("e4m3fn", "block", block=sizes), ActSpec("e4m3fn", "group", sizes[1])
    except SchemeError as error:
        raise CheckpointError(f"weight_block_size {list(sizes)}: {error}") from None


LAYOUT = Layout(
    "8-bit floats in blocks (the fp8 method)",
    "weight",
    ("weight_scale_inv", "weight_zero_point"),
    _claims,
    compressed.describe_bytes,
    _read,
    dtypes=compressed.CODE_DTYPES,
    scales=("weight_scale_inv",),
    marks=("weight_scale_inv",),
    needs=_needs,
    configs={"fp8": _parse, "fbgemm_fp8": _parse_fbgemm},
)
