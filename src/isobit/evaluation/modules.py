"""The modules of a checkpoint, from names, dtypes and shapes of its tensors: what each holds and in which scheme.

Tensors are grouped by the module they belong to. How a quantized weight is stored is a row of :data:`STORAGES`; another
tool's layout is another row. Nothing is loaded; the two numbers of a ``weight_shape`` tensor are the only data read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from isobit.checkpoint.ctconfig import Quantization
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.small import read_weight_shape
from isobit.errors import CheckpointError, SchemeError
from isobit.formats.schemes import GROUPED, SCHEMES, ActSpec, Scheme, WeightSpec, scheme
from isobit.formats.table import ELEMENTS

ELEMENT_OF_DTYPE = {
    "F8_E4M3": "e4m3fn",
    "F8_E5M2": "e5m2",
    "F8_E4M3FNUZ": "e4m3fnuz",
    "F8_E5M2FNUZ": "e5m2fnuz",
    "I8": "int8",
}
DTYPE_NAMES = {"BF16": "bf16", "F16": "f16", "F32": "f32", "F64": "f64"}
_PACKED_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Storage:
    """How a quantized weight is stored.

    Attributes:
        codes: what the name of the tensor with the codes ends in.
        parts: the names beside it that belong to it.
        label: what to call it when it isn't one of isobit's own layouts; None for those.
        codes_per_byte: for labelled layouts, weights per byte of codes; None when the config's ``bits`` says.
    """

    codes: str
    parts: tuple[str, ...]
    label: str | None = None
    codes_per_byte: int | None = None


STORAGES = (
    # compressed-tensors, and the block-wise FP8 of DeepSeek and Qwen.
    Storage("weight_packed", ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale")),
    Storage("weight", ("weight_scale", "weight_scale_inv", "weight_zero_point", "input_scale", "weight_scale_2")),
    # Layouts that isobit describes but doesn't run.
    Storage("weight_packed", ("weight_scale", "weight_global_scale", "input_global_scale"), "nvfp4", 2),
    Storage("qweight", ("qzeros", "scales", "g_idx"), "packed"),
    Storage("_blocks", ("_scales",), "mxfp4", 2),
)


@dataclass(frozen=True)
class Module:
    """One weight of the model with all that belongs to it.

    Attributes:
        name: the module, e.g. ``model.layers.0.mlp.up_proj``; a tensor's own name where it is no module's weight.
        kind: ``linear``, ``lm_head``, ``embedding`` or ``other``.
        scheme: the scheme's name, or the dtype's where it isn't quantized.
        weights: how many numbers it stands for.
        nbytes: bytes it takes.
    """

    name: str
    kind: str
    scheme: str
    weights: int
    nbytes: int


def find_modules(checkpoint: Checkpoint, quantization: Quantization | None) -> list[Module]:
    """Every weight of a checkpoint, each tensor counted once.

    Args:
        checkpoint: the opened checkpoint.
        quantization: what its configuration says, where that could be read: names the rounding of activations.
    """
    groups: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in checkpoint.tensors.items():
        prefix, part = _split(name)
        groups[prefix][part] = info
    found: list[Module] = []
    for prefix, parts in groups.items():
        found += _modules_of(prefix, parts, checkpoint, quantization)
    return found


def _split(name: str) -> tuple[str, str]:
    """A tensor's module and its role there; expert tensors of gpt-oss end in ``_blocks`` and ``_scales``."""
    for suffix in ("_blocks", "_scales"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    prefix, _, part = name.rpartition(".")
    return prefix, part


def _modules_of(
    prefix: str, parts: dict[str, TensorInfo], checkpoint: Checkpoint, quantization: Quantization | None
) -> list[Module]:
    storage = _storage(parts)
    if storage is None:
        return [_plain(prefix, part, info) for part, info in parts.items()]
    owned = [parts[name] for name in (storage.codes, *storage.parts) if name in parts]
    if storage.label is None:
        group = None if quantization is None else quantization.group_for(prefix)
        shape, spec = _spec(prefix, parts, checkpoint, group.weights if group else None)
        name, weights = _scheme_name(spec, parts, group.activations if group else None), math.prod(shape)
    else:
        name, weights = _foreign(storage, parts[storage.codes], checkpoint)
    quantized = Module(prefix, _kind(prefix, 2), name, weights, sum(info.nbytes for info in owned))
    rest = [_plain(prefix, part, info) for part, info in parts.items() if info not in owned]
    return [quantized, *rest]


def _storage(parts: dict[str, TensorInfo]) -> Storage | None:
    """How these tensors store a quantized weight; None if they don't."""
    for storage in reversed(STORAGES):
        if storage.codes in parts and any(part in parts for part in storage.parts if part != "input_scale"):
            if storage.label == "nvfp4" and "weight_global_scale" not in parts:
                continue
            return storage
    return None


def _plain(prefix: str, part: str, info: TensorInfo) -> Module:
    name = prefix if part == "weight" and prefix else ".".join(filter(None, (prefix, part)))
    kind = _kind(prefix, len(info.shape)) if part == "weight" else "other"
    dtype = DTYPE_NAMES.get(info.dtype, info.dtype.lower())
    return Module(name, kind, dtype, math.prod(info.shape), info.nbytes)


def _kind(module: str, dimensions: int) -> str:
    """What a weight is, by its module's name, for any architecture."""
    last = module.rpartition(".")[2]
    if dimensions < 2:
        return "other"
    if last in ("lm_head", "embed_out") or (last == "output" and "layers" not in module):
        return "lm_head"
    if "embed" in last or last in ("wte", "wpe"):
        return "embedding"
    return "linear"


def _spec(
    prefix: str, parts: dict[str, TensorInfo], checkpoint: Checkpoint, configured: WeightSpec | None
) -> tuple[tuple[int, ...], WeightSpec | None]:
    """Shape and storage of a quantized weight; no spec when its tensors fit no format isobit knows.

    What the config says is taken where the tensors agree: a 64-row weight in one block doesn't show the block's height.
    """
    scale = parts.get("weight_scale") or parts.get("weight_scale_inv")
    shape: tuple[int, ...]
    if "weight_packed" in parts:
        if len(parts["weight_packed"].shape) != 2:
            return parts["weight_packed"].shape, None
        n, words = parts["weight_packed"].shape
        shape = (n, _width(prefix, checkpoint) if "weight_shape" in parts else words * 8)
        bits = next((b for b in _PACKED_BITS if -(-shape[1] * b // 32) == words), None)
        element = None if bits is None else f"int{bits}"
        said = None if configured is None else ELEMENTS[configured.element]
        if said is not None and said.kind == "float" and -(-shape[1] * said.bits // 32) == words:
            element = said.name  # the words alone do not show what the codes are
    else:
        shape = tuple(parts["weight"].shape)
        element = ELEMENT_OF_DTYPE.get(parts["weight"].dtype)
    if element is None or scale is None or len(shape) != 2 or 0 in (*shape, *scale.shape):
        return shape, None
    # Integers below 8 bits may be stored one per byte: then the dtype shows int8, and the config their width.
    possible = ("int8", "int4", "int3", "int2") if element == "int8" else (element,)
    if configured is not None and configured.element.removeprefix("u") in possible and _fits(configured, shape, scale):
        return shape, configured
    try:
        return shape, _granularity(element, shape, tuple(scale.shape), "weight_zero_point" not in parts)
    except SchemeError:  # such as int8 with a zero point: described by its dtypes instead
        return shape, None


def _width(prefix: str, checkpoint: Checkpoint) -> int:
    """The number of inputs that ``weight_shape`` gives; 0 where it gives none, for a weight that fits no format."""
    try:
        shape = read_weight_shape(checkpoint, prefix, [])
    except CheckpointError:
        return 0
    return max(0, shape[1]) if len(shape) == 2 else 0


def _fits(spec: WeightSpec, shape: tuple[int, ...], scale: TensorInfo) -> bool:
    n, k = shape
    return (spec.group is None or k % spec.group == 0) and math.prod(spec.scale_shape(n, k)) == scale.numel


def _granularity(element: str, shape: tuple[int, ...], scale: tuple[int, ...], symmetric: bool) -> WeightSpec | None:
    """The spec of a weight whose config says nothing, or something else, from the shape of its scales."""
    n, k = shape
    element = element if symmetric else f"u{element}"
    if math.prod(scale) == 1 and n > 1:
        return WeightSpec(element, "tensor", symmetric=symmetric)
    if scale in ((n,), (n, 1)):
        return WeightSpec(element, "channel", symmetric=symmetric)
    if len(scale) == 2 and scale[0] == n and k % scale[1] == 0:
        return WeightSpec(element, "group", k // scale[1], symmetric=symmetric)
    if len(scale) == 2:
        return WeightSpec(element, "block", block=(_block(n, scale[0]), _block(k, scale[1])), symmetric=symmetric)
    return None


def _block(size: int, blocks: int) -> int:
    """The edge of a block, given how many cover ``size``: a power of two where one fits, as every tool uses."""
    least = -(-size // blocks)
    power = 1 << (least - 1).bit_length()
    return power if -(-size // power) == blocks else least


def _scheme_name(spec: WeightSpec | None, parts: dict[str, TensorInfo], activations: ActSpec | None) -> str:
    """The name of the scheme with these weights and activations, or a description of them."""
    if spec is None:
        codes = parts.get("weight_packed") or parts["weight"]
        return f"{codes.dtype.lower()} with scales"
    for row in (*SCHEMES.values(), *_grouped(spec)):
        if row.weights == spec and row.activations == activations:
            return row.name
    size = spec.group or ("x".join(map(str, spec.block)) if spec.block else "")
    words = f"{spec.element} per {spec.granularity}{f' {size}' if size else ''}"
    if activations is None:
        return words
    return f"{words}, activations {activations.element} per {activations.granularity}"


def _grouped(spec: WeightSpec) -> list[Scheme]:
    """The schemes that take a group size, with this spec's."""
    return [] if spec.group is None or spec.group % 8 else [scheme(f"{name}-g{spec.group}") for name in GROUPED]


def _foreign(storage: Storage, codes: TensorInfo, checkpoint: Checkpoint) -> tuple[str, int]:
    """Name and number of weights of a layout that isobit doesn't run."""
    if storage.codes_per_byte is not None:
        return str(storage.label), codes.nbytes * storage.codes_per_byte
    config = checkpoint.config.get("quantization_config")
    config = config if isinstance(config, dict) else {}
    bits = config.get("bits") or config.get("w_bit")
    bits = bits if isinstance(bits, int) and 1 <= bits <= 8 else 4
    method = config.get("quant_method", storage.label)
    return f"{method} {bits}-bit", codes.nbytes * 8 // bits
