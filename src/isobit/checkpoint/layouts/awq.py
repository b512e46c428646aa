"""AWQ (AutoAWQ, llm-awq): 4-bit codes with zero points, in two orders.

    gemm  qweight I32 [K, N / 8]   qzeros I32 [G, N / 8]  scales F16 [G, N]      eight outputs a word, even ones first
    gemv  qweight I32 [N, K / 8]   qzeros I32 [N, W]      scales F16 [N, 8 * W]  eight inputs a word, G of 8 * W used

A weight is ``(code - zero) * scale``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts import integers
from isobit.checkpoint.layouts.gptq import how_of, require
from isobit.checkpoint.layouts.integers import Found, group_of, whole_number, yes_or_no
from isobit.checkpoint.layouts.needs import Need
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.sections import INSTEAD
from isobit.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

_PARTS = ("qzeros", "scales")
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of eight neighbouring outputs in a word, lowest bits first
_SCALE_DTYPES = ("F16", "BF16", "F32")
_VERSIONS = ("gemm", "gemv")
_KEYS = frozenset(
    """quant_method bits w_bit group_size q_group_size zero_point version backend modules_to_not_convert do_fuse
    fuse_max_seq_len modules_to_fuse exllama_config sym desc_act checkpoint_format format lm_head meta
    pack_dtype autoround_version data_type iters low_gpu_mem_usage nsamples seqlen batch_size provider
    block_name_to_quantize enable_quanted_input to_quant_block_names""".split()
)  # fmt: skip


def _parse(section: dict[str, Any]) -> Quantization:
    said = next((section[key] for key in ("version", "format", "checkpoint_format") if section.get(key)), None)
    version = text(said, "gemm", "version").lower()
    if version not in _VERSIONS:
        raise Unsupported(f"AWQ in version {short(version)}", [f"isobit reads {' and '.join(_VERSIONS)}"], INSTEAD)
    bits = whole_number(section, ("bits", "w_bit"))
    group = whole_number(section, ("group_size", "q_group_size"), 128)
    symmetric = not yes_or_no(section, "zero_point", True)
    how = integers.integers(bits, group, symmetric, "itself", (4,))
    return Quantization(
        (group_of(("Linear",), how),),
        names(section.get("modules_to_not_convert"), "modules_to_not_convert"),
        "awq",
        version,
        (*ignored_keys(key for key in section if key not in _KEYS),),
        ignores_parts=True,
    )


def _shapes(infos: Mapping[str, TensorInfo]) -> tuple[tuple[int, int], ...] | None:
    """Those of codes, zero points and scales; None unless all are matrices."""
    found = [infos[part].shape for part in ("qweight", *_PARTS) if part in infos]
    if len(found) < 3 or any(len(shape) != 2 for shape in found):
        return None
    return tuple((shape[0], shape[1]) for shape in found)


def _claims_gemm(infos: Mapping[str, TensorInfo]) -> bool:
    shapes = _shapes(infos)
    if shapes is None or "g_idx" in infos:
        return False
    codes, zeros, scales = shapes
    return codes[1] == zeros[1] and 8 * codes[1] == scales[1] and zeros[0] == scales[0]


def _claims_gemv(infos: Mapping[str, TensorInfo]) -> bool:
    shapes = _shapes(infos)
    if shapes is None or "g_idx" in infos:
        return False
    codes, zeros, scales = shapes
    return codes[0] == zeros[0] == scales[0] and 8 * zeros[1] == scales[1]


def _describe_gemm(parts: Parts) -> Described:
    k, words = parts.infos["qweight"].shape
    return integers.describe(parts, 8 * words, k)


def _describe_gemv(parts: Parts) -> Described:
    n, words = parts.infos["qweight"].shape
    return integers.describe(parts, n, 8 * words)


def _needs_gemm(parts: Parts, n: int, k: int) -> tuple[Need, ...]:
    how = None if parts.group is None else parts.group.integers
    if how is None:
        return ()
    groups, words = -(-k // (how.group or k)), -(-n // 8)
    return (
        Need("qweight", ("I32",), ((k, words),)),
        Need("qzeros", ("I32",), ((groups, words),)),
        Need("scales", _SCALE_DTYPES, ((groups, n),)),
    )


def _needs_gemv(parts: Parts, n: int, k: int) -> tuple[Need, ...]:
    how = None if parts.group is None else parts.group.integers
    if how is None:
        return ()
    least, zeros = math.ceil(math.ceil(k / (how.group or k)) / 8), parts.infos.get("qzeros")
    held = max(least, zeros.shape[1]) if zeros is not None and len(zeros.shape) == 2 else least
    return (
        Need("qweight", ("I32",), ((n, -(-k // 8)),)),
        Need("qzeros", ("I32",), ((n, held),)),
        Need("scales", _SCALE_DTYPES, ((n, 8 * held),)),
    )


def _read_gemm(reader: Reader) -> LinearWeight:
    from isobit.formats import pack

    how = how_of(reader, "awq")
    k, n = reader.infos["qweight"].shape[0], 8 * reader.infos["qweight"].shape[1]
    groups = -(-k // (how.group or k))
    require(reader, "qweight", ("I32",), (k, n // 8))
    require(reader, "qzeros", ("I32",), (groups, n // 8))
    require(reader, "scales", _SCALE_DTYPES, (groups, n))
    rows, _ = reader.span(n, k)
    words = slice(rows.start // 8, -(-rows.stop // 8))
    within = slice(rows.start - 8 * words.start, rows.stop - 8 * words.start)
    codes = _in_order(reader.take("qweight", None, words))[:, within]
    zero = _in_order(reader.take("qzeros", None, words))[:, within].short().t().contiguous()
    scale = integers.checked_scale(reader, "scales", reader.take("scales", None, rows).t().contiguous())
    return integers.weight_of(
        reader, "qweight", how, n, k, Found(pack.pack(codes.t().contiguous(), "uint4"), scale, zero)
    )


def _in_order(words: Tensor) -> Tensor:
    """Codes of words ``[rows, n / 8]``, uint8 ``[rows, n]`` in the order of the outputs."""
    from isobit.formats import pack

    n = 8 * words.shape[1]
    codes = pack.unpack(words.contiguous(), "uint4", n).view(len(words), -1, 8)
    return codes[:, :, list(_PLACES)].reshape(len(words), n)


def _read_gemv(reader: Reader) -> LinearWeight:
    from isobit.formats import pack

    how = how_of(reader, "awq")
    n, width = reader.matrix("qweight")
    k, held = 8 * width, reader.infos["qzeros"].shape[1]
    groups = -(-k // (how.group or k))
    require(reader, "qweight", ("I32",), (n, width))
    require(reader, "qzeros", ("I32",), (n, max(held, -(-groups // 8))))
    require(reader, "scales", _SCALE_DTYPES, (n, 8 * held))
    rows, _ = reader.span(n, k)
    words = reader.take("qweight", rows)
    zero = pack.unpack(reader.take("qzeros", rows), "uint4", 8 * held)[:, :groups].short()
    scale = reader.take("scales", rows)[:, :groups].contiguous()
    return integers.weight_of(
        reader, "qweight", how, n, k, Found(words, integers.checked_scale(reader, "scales", scale), zero)
    )


GEMM = Layout(
    "AWQ (gemm)", "qweight", _PARTS, _claims_gemm, _describe_gemm, _read_gemm,
    dtypes=("I32",), scales=("scales",), marks=("qweight",),
    configs=dict.fromkeys(("awq", "awq_marlin"), _parse), needs=_needs_gemm, methods=("awq",),
)  # fmt: skip
GEMV = Layout(
    "AWQ (gemv)", "qweight", _PARTS, _claims_gemv, _describe_gemv, _read_gemv,
    dtypes=("I32",), scales=("scales",), marks=("qweight",), needs=_needs_gemv, methods=("awq gemv", "awq"),
)  # fmt: skip
