"""gpt-oss's MXFP4 (``quant_method: mxfp4``): the experts of a layer together, two 4-bit floats a byte.

    <stack>_blocks  U8 [experts, N, K / 32, 16], or [experts, N, K / 2]; the first code of a byte in its low bits
    <stack>_scales  U8 [experts, N, K / 32], codes of e8m0

The bytes of one expert's rows are those of compressed-tensors' MXFP4: :mod:`isobit.models.stacks` names them so, and
:mod:`~isobit.checkpoint.layouts.few_bit_scales` reads them. A row here describes stacks that no model asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.formats.scales import POWERS
from isobit.formats.schemes import WeightSpec

GROUP = 32
SPEC = WeightSpec("e2m1", "group", GROUP, scale=POWERS)
_KEYS = frozenset({"quant_method", "modules_to_not_convert", "dequantize"})


def _parse(section: dict[str, Any]) -> Quantization:
    notes = ignored_keys(key for key in section if key not in _KEYS)
    skipped = names(section.get("modules_to_not_convert"), "modules_to_not_convert")
    group = Group(("Linear",), SPEC, None)
    return Quantization((group,), skipped, "mxfp4", "mxfp4-blocks", tuple(notes), ignores_parts=True)


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return "_blocks" in infos and "_scales" in infos


def _describe(parts: Parts) -> Described:
    info = parts.infos["_blocks"]
    return Described(info.shape, 2 * info.nbytes, label="mxfp4-w16")


LAYOUT = Layout(
    "MXFP4 blocks", "_blocks", ("_scales",), _claims, _describe, configs={"mxfp4": _parse}, dot=False,
)  # fmt: skip
