"""The tensors of one linear layer, as compressed-tensors stores them, to and from a QTensor.

What a layer's weight is, its tensors decide: their dtypes, and which of them there are. The quantization config must
agree with them; it alone says how activations are rounded.

    8 bits          <prefix>.weight (F8_E4M3, F8_E5M2, I8)            <prefix>.weight_scale (or weight_scale_inv)
    fewer, or       <prefix>.weight_packed (I32, a dense bit stream)  <prefix>.weight_scale
    weight-only int <prefix>.weight_shape (I64 [2])                   <prefix>.weight_zero_point (packed along N)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobit.checkpoint.ctrender import compression_format
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo
from isobit.checkpoint.small import INTEGERS, read_vector, read_weight_shape, short_list, unreadable
from isobit.errors import CheckpointError, FormatError
from isobit.formats import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element

# The tensors that belong to a linear (or embedding), by the last part of their names.
PARTS = (
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "activation_scale",
    "input_zero_point",
    "bias",
)
CODE_DTYPES = {"F8_E4M3": "e4m3fn", "F8_E5M2": "e5m2", "I8": "int8"}
_SCALES = ("weight_scale", "weight_scale_inv")
_INPUT_SCALES = ("input_scale", "activation_scale")


@dataclass(frozen=True)
class LinearWeight:
    """The weight of one linear layer or embedding, as it is stored.

    Attributes:
        weight: ``[N, K]``: a QTensor, or a tensor of a plain floating-point dtype.
        activations: how inputs are rounded; None when they are not.
        input_scale: float32 ``[1]``, the calibrated scale of static activations, else None.
        bias: ``[N]``, or None.
        names: the tensors this was read from, for the check that every tensor of a checkpoint is used.
    """

    weight: QTensor | Tensor
    activations: ActSpec | None = None
    input_scale: Tensor | None = None
    bias: Tensor | None = None
    names: tuple[str, ...] = ()


def split_name(tensor: str) -> tuple[str, str] | None:
    """(module, part) of a tensor name that belongs to a linear, e.g. ``("lm_head", "weight_scale")``; else None."""
    module, _, part = tensor.rpartition(".")
    return (module, part) if module and part in PARTS else None


# ---------------------------------------------------------------------- writing


def module_tensors(
    prefix: str, qt: QTensor, *, activations: ActSpec | None, input_scale: Tensor | None = None
) -> dict[str, Tensor]:
    """The tensors to write for a quantized linear; :func:`read_linear` is the inverse.

    Args:
        prefix: module name, e.g. ``model.layers.0.mlp.up_proj``.
        qt: the quantized weight.
        activations: how inputs are rounded: int8 weights are stored as bytes with, and packed without, rounding.
        input_scale: one number, for static activations.
    """
    stored: dict[str, Tensor] = {}
    row = qt.element
    if compression_format(qt.spec, activations) == "pack-quantized":
        stored["weight_packed"] = qt.codes if row.bits < 8 else pack.pack(qt.codes, row)
        stored["weight_shape"] = torch.tensor(qt.shape, dtype=torch.int64)
    else:
        assert row.torch_name is not None
        stored["weight"] = qt.codes.view(getattr(torch, row.torch_name))
    stored["weight_scale"] = qt.scale
    if qt.zero is not None:
        stored["weight_zero_point"] = pack.pack(qt.zero.t().contiguous(), row).t().contiguous()
    if input_scale is not None:
        stored["input_scale"] = input_scale.reshape(1)
    return {f"{prefix}.{part}": tensor.contiguous() for part, tensor in stored.items()}


# ---------------------------------------------------------------------- reading


def read_linear(ck: Checkpoint, prefix: str, *, mmap: bool = False) -> LinearWeight:
    """Reads the weight (and bias) of the module ``prefix``, quantized or not.

    Args:
        ck: the checkpoint.
        prefix: module name.
        mmap: map large tensors into memory instead of copying them; see ``Checkpoint.read``.

    Raises:
        CheckpointError: tensors are missing, contradict each other or contradict the quantization config.
        Unsupported: the quantization config uses something isobit cannot run.
    """
    return _LinearReader(ck, prefix, mmap).read()


class _LinearReader:
    """Reads one module; keeps count of the tensors it used."""

    def __init__(self, ck: Checkpoint, prefix: str, mmap: bool) -> None:
        self.ck, self.prefix, self.mmap = ck, prefix, mmap
        self.present = {part for part in PARTS if f"{prefix}.{part}" in ck.tensors}
        self.used: list[str] = []

    def read(self) -> LinearWeight:
        if {"weight", "weight_packed"} <= self.present:
            raise self.error("weight_packed", "there is a plain weight beside it")
        if not self.present & {"weight", "weight_packed"}:
            raise self.error("weight", "is missing from this checkpoint")
        packed = "weight_packed" in self.present
        if not packed and self.info("weight").dtype in PLAIN_DTYPES:
            weight = self.plain()
            return LinearWeight(weight, bias=self.bias(weight.shape[0]), names=tuple(self.used))
        if not packed and self.info("weight").dtype not in CODE_DTYPES:
            raise self.error("weight", unreadable(self.info("weight").dtype))
        spec, activations = self.from_config("weight_packed" if packed else "weight")
        qt = self.packed(spec) if packed else self.bytes(spec)
        input_scale, bias = self.input_scale(activations), self.bias(qt.shape[0])
        self.refuse_leftovers()
        return LinearWeight(qt, activations, input_scale, bias, tuple(self.used))

    def error(self, part: str, message: str) -> CheckpointError:
        info = self.ck.tensors.get(f"{self.prefix}.{part}")
        return CheckpointError(
            message, file=self.ck.path if info is None else info.file, tensor=f"{self.prefix}.{part}"
        )

    def info(self, part: str) -> TensorInfo:
        return self.ck.info(f"{self.prefix}.{part}")

    def take(self, part: str) -> Tensor:
        name = f"{self.prefix}.{part}"
        self.used.append(name)
        return self.ck.read(name, mmap=self.mmap)

    def bias(self, n: int) -> Tensor | None:
        """The bias ``[N]``; None if there is none."""
        if "bias" not in self.present:
            return None
        self.used.append(f"{self.prefix}.bias")
        return read_vector(self.ck, f"{self.prefix}.bias", n)

    def plain(self) -> Tensor:
        self.matrix("weight")
        scales = [part for part in _SCALES if part in self.present]
        if scales:
            raise self.error(
                scales[0], f"there is a scale for a weight that is not quantized ({self.info('weight').dtype})"
            )
        return self.take("weight")

    def from_config(self, part: str) -> tuple[WeightSpec, ActSpec | None]:
        """What the quantization config says about this module."""
        quantization = self.ck.quantization
        if quantization is None:
            raise self.error(
                part,
                f"is quantized ({self.info(part).dtype}) but config.json has no quantization_config,"
                " so that nothing says how its activations are rounded",
            )
        group = quantization.group_for(self.prefix)
        if group is None or group.weights is None:
            raise self.error(
                part, f"is quantized ({self.info(part).dtype}), but quantization_config says that this module is not"
            )
        return group.weights, group.activations

    def bytes(self, spec: WeightSpec) -> QTensor:
        """An 8-bit weight: one byte per code."""
        info = self.info("weight")
        found, wanted = CODE_DTYPES[info.dtype], element(spec.element)
        narrow = found == "int8" and wanted.kind == "int" and wanted.signed and wanted.bits < 8  # one code per byte
        if found != wanted.name and not narrow:
            raise self.error("weight", f"is {info.dtype}, but quantization_config says {spec.element}")
        n, k = self.matrix("weight")
        scale_part = next((part for part in _SCALES if part in self.present), None)
        if scale_part is None:
            raise self.error("weight", f"is {info.dtype} but has no weight_scale: its values are unknown")
        if spec.granularity == "tensor" and self.info(scale_part).numel == n > 1:
            spec = replace(spec, granularity="channel")  # the fp8 method leaves open which of the two it is
        codes = self.take("weight")
        codes = codes if found == "int8" else codes.view(torch.uint8)
        if narrow:
            codes = self.in_words(codes, spec)
        scale = self.scale(scale_part, spec, n, k)
        self.symmetric_zero_point(spec)
        return self.qtensor(spec, (n, k), codes, scale, None)

    def in_words(self, codes: Tensor, spec: WeightSpec) -> Tensor:
        """Narrow codes that came one per byte, packed: compressed-tensors stores them so beside rounded activations."""
        try:
            return pack.pack(codes, spec.element)
        except FormatError as error:
            raise self.error("weight", str(error)) from None

    def packed(self, spec: WeightSpec) -> QTensor:
        """A weight of 2 to 8 bits in int32 words."""
        row = element(spec.element)
        if row.kind != "int" and row.bits == 8:
            raise self.error("weight_packed", f"packed weights of {row.name} cannot be read")
        if self.info("weight_packed").dtype != "I32":
            raise self.error("weight_packed", f"is {self.info('weight_packed').dtype}, not I32")
        n, words = self.matrix("weight_packed")
        if "weight_shape" not in self.present:
            raise self.error("weight_shape", "is missing: without it the number of inputs is unknown")
        shape = read_weight_shape(self.ck, self.prefix, self.used)
        if len(shape) != 2 or shape[0] != n or shape[1] < 1 or pack.words_per_row(shape[1], row) != words:
            raise self.error(
                "weight_packed", f"[{n}, {words}] does not hold {row.bits}-bit codes of weight_shape {list(shape)}"
            )
        k = shape[1]
        if "weight_g_idx" in self.present:
            self.refuse_act_order(spec, k)
        if "weight_scale" not in self.present:
            raise self.error("weight_packed", "has no weight_scale: its values are unknown")
        words_tensor = self.take("weight_packed")
        codes = words_tensor if row.bits < 8 else pack.unpack(words_tensor, row, k)
        scale = self.scale("weight_scale", spec, n, k)
        zero = None
        if spec.symmetric:
            self.symmetric_zero_point(spec)
        else:
            zero = self.zero_point(spec, n, k)
        return self.qtensor(spec, (n, k), codes, scale, zero)

    def matrix(self, part: str) -> tuple[int, int]:
        shape = self.info(part).shape
        if len(shape) != 2 or 0 in shape:
            raise self.error(part, f"has shape {short_list(shape)}; a weight is a matrix")
        return shape[0], shape[1]

    def scale(self, part: str, spec: WeightSpec, n: int, k: int) -> Tensor:
        """The weight scale in QTensor's shape; the shapes other tools use for the same are accepted."""
        info = self.info(part)
        if spec.group is not None and k % spec.group:
            raise self.error(part, f"the group size {spec.group} of quantization_config does not divide K = {k}")
        expected = spec.scale_shape(n, k)
        accepted: list[tuple[int, ...]] = [expected]
        if spec.granularity == "tensor":
            accepted += [(), (1, 1)]
        if spec.granularity == "channel":
            accepted.append((n,))
        if info.shape not in accepted:
            unit = {"group": f"group {spec.group}", "block": f"block {spec.block}"}.get(
                spec.granularity, spec.granularity
            )
            raise self.error(
                part,
                f"has shape {short_list(info.shape)}; a scale per {unit} of a [{n}, {k}] weight has {list(expected)}",
            )
        scale = self.take(part)
        if info.dtype == "F8_E8M0":
            scale = scale.to(torch.float32)  # powers of two: exact
        if scale.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise self.error(part, f"scales of dtype {info.dtype} cannot be read")
        if not bool(torch.isfinite(scale.float()).all()):
            raise self.error(part, "holds NaN or infinite scales")
        return scale.reshape(expected)

    def zero_point(self, spec: WeightSpec, n: int, k: int) -> Tensor:
        """Zero points as codes ``[N, K / group]``: packed along N, or (older tools) one int8 each."""
        row = element(spec.element)
        if "weight_zero_point" not in self.present:
            raise self.error("weight_zero_point", "is missing, but quantization_config says the weight is asymmetric")
        shape = spec.scale_shape(n, k)
        info = self.info("weight_zero_point")
        if info.dtype == "I32" and info.shape == (pack.words_per_row(n, row), shape[1]):
            return pack.unpack(self.take("weight_zero_point").t().contiguous(), row, n).t().contiguous()
        if info.dtype == "I8" and info.shape == shape:
            signed = self.take("weight_zero_point").to(torch.int16) + (1 << (row.bits - 1))
            if bool(((signed < 0) | (signed >= 1 << row.bits)).any()):
                raise self.error("weight_zero_point", f"holds values beyond {row.bits} bits")
            return signed.to(torch.uint8)
        raise self.error(
            "weight_zero_point",
            f"is {info.dtype} {short_list(info.shape)}; zero points of a [{n}, {k}] weight are I32"
            f" {[pack.words_per_row(n, row), shape[1]]} (packed) or I8 {list(shape)}",
        )

    def symmetric_zero_point(self, spec: WeightSpec) -> None:
        """Symmetric weights may come with zero points that are all zero."""
        if "weight_zero_point" in self.present and self.holds_numbers("weight_zero_point"):
            raise self.error("weight_zero_point", "is not zero, but quantization_config says the weight is symmetric")

    def holds_numbers(self, part: str) -> bool:
        """Whether a tensor holds anything but zeros."""
        tensor = self.take(part)
        return bool((tensor if tensor.is_complex() else tensor.float()).any())

    def refuse_act_order(self, spec: WeightSpec, k: int) -> None:
        info = self.info("weight_g_idx")
        if info.dtype not in INTEGERS or info.shape != (k,):
            raise self.error("weight_g_idx", f"is {info.dtype} {short_list(info.shape)}; group indexes are I32 [{k}]")
        index = self.take("weight_g_idx").to(torch.int64)
        in_order = spec.group is not None and torch.equal(index, torch.arange(index.numel()) // spec.group)
        if not in_order and bool((index >= 0).any()):
            raise self.error(
                "weight_g_idx",
                "the groups are not runs of neighbouring inputs (act-order, desc_act): isobit cannot run this;"
                " use a version quantized without it (actorder 'weight' or none)",
            )

    def input_scale(self, activations: ActSpec | None) -> Tensor | None:
        part = next((part for part in _INPUT_SCALES if part in self.present), None)
        if activations is None or activations.dynamic:
            return None
        if part is None:
            raise self.error("input_scale", "is missing, but quantization_config says activations have a static scale")
        if self.info(part).numel != 1:
            raise self.error(part, f"has shape {short_list(self.info(part).shape)}; a static scale is one number")
        if self.info(part).dtype not in PLAIN_DTYPES:
            raise self.error(part, f"scales of dtype {self.info(part).dtype} cannot be read")
        scale = self.take(part).to(torch.float32).reshape(1)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise self.error(part, f"is {float(scale)}: a scale is a positive number")
        if "input_zero_point" in self.present and self.holds_numbers("input_zero_point"):
            raise self.error("input_zero_point", "is not zero: asymmetric activations cannot be run")
        return scale

    def refuse_leftovers(self) -> None:
        left = sorted(part for part in self.present if f"{self.prefix}.{part}" not in self.used)
        if left:
            raise self.error(left[0], "does not fit the way quantization_config says this module is quantized")

    def qtensor(
        self, spec: WeightSpec, shape: tuple[int, int], codes: Tensor, scale: Tensor, zero: Tensor | None
    ) -> QTensor:
        try:
            return QTensor(spec, shape, codes, scale, zero)
        except FormatError as error:
            raise self.error("weight_packed" if "weight_packed" in self.present else "weight", str(error)) from None
