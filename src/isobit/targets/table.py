"""Every target as one row, what is refused by name, and the search by name. A new GPU is a new row here."""

from __future__ import annotations

import difflib
import itertools
import re
from typing import NoReturn

from isobit.errors import Unsupported, UsageError
from isobit.targets.boards import BOARDS
from isobit.targets.spec import FLOAT32_MANTISSA, Board, MatrixUnit, Target

_KIB = 1024
_FP8 = ("e4m3fn", "e5m2")
_FNUZ = ("e4m3fnuz", "e5m2fnuz")
_NARROW = ("e2m1", "e2m3", "e3m2")

# Measured on Ada and Hopper: their 8-bit float units keep 13 mantissa bits of a sum (SageAttention2, arXiv 2411.10958,
# section 3.3; DeepSeek-V3, arXiv 2412.19437, section 3.3.2). Our own figure, K = 4096 on an H200: an error of 1.3e-3,
# and of 1.3e-4 when partial sums are moved to float32.
_FP8_SUM_BITS = 13

_PAIR_NOTES = {
    ("e5m2", "e5m2"): "vendor libraries refuse e5m2 x e5m2 although the unit takes it; isobit's kernel uses it"
}


def _all_pairs(formats: tuple[str, ...], instruction: str, sum_bits: int = FLOAT32_MANTISSA) -> tuple[MatrixUnit, ...]:
    """A unit that takes every pair of ``formats`` and adds up in float32."""
    return tuple(
        MatrixUnit(a, b, "float32", instruction, sum_bits, note=_PAIR_NOTES.get((a, b), ""))
        for a, b in itertools.product(formats, repeat=2)
    )


def _same(
    formats: tuple[str, ...], instruction: str, *, unreachable: str = "", flushes: bool = False
) -> tuple[MatrixUnit, ...]:
    """A unit that takes two operands of one format, for each of ``formats``, and adds up in float32."""
    return tuple(
        MatrixUnit(f, f, "float32", instruction, flushes_subnormals=flushes, unreachable=unreachable) for f in formats
    )


_NOT_MEASURED = "what block-scaled products keep of their sums was not measured on a card"


def _scaled(float8: str, float4: str, *, nv: bool = True, sum_bits: int = FLOAT32_MANTISSA) -> tuple[MatrixUnit, ...]:
    """A unit that applies scales of groups itself: MX, and with ``nv`` NVFP4."""
    rows = [("e4m3fn", "e8m0", float8), ("e2m1", "e8m0", float4), *([("e2m1", "e4m3fn", float4)] if nv else [])]
    return tuple(
        MatrixUnit(element, element, "float32", name, sum_bits, note=_NOT_MEASURED, scales=scales)
        for element, scales, name in rows
    )


def _int(format: str, instruction: str, unreachable: str = "") -> MatrixUnit:
    return MatrixUnit(format, format, "int32", instruction, unreachable=unreachable)


def _dots(int8: str, int4: str) -> tuple[MatrixUnit, ...]:
    """CPU dot products of int8 activations by int8 and by int4 weights."""
    return _int("int8", int8), MatrixUnit("int4", "int8", "int32", int4)


def _both_ways(formats: tuple[str, ...], *plain: str) -> frozenset[tuple[str, str]]:
    """Conversions from ``formats`` to each of ``plain``, and from float32 to ``formats``."""
    return frozenset(itertools.product(formats, plain)) | frozenset(("float32", f) for f in formats)


_HALVES = ("float16", "bfloat16")
_NO_INT4_DOT = "Triton has no 4-bit integer product"
_NO_FP4_DOT = "our kernels have no product of this format; it would need block scales (MX)"
_TURING = "Triton 3.9 emits no matrix instructions below sm_80 (measured: multiply-add only)"
_AMPERE = (*_same(_HALVES, "HMMA"), _int("int8", "IMMA"), _int("int4", "IMMA", _NO_INT4_DOT))
_TCGEN = (
    *_same(_HALVES, "UTCHMMA"),
    *_all_pairs(_FP8, "UTCQMMA"),
    *_same(_NARROW, "UTCQMMA", unreachable=_NO_FP4_DOT),
    *_scaled("UTCQMMA", "UTCOMMA"),
)
_GEFORCE_BLACKWELL = (
    *_same(_HALVES, "HMMA"),
    *_all_pairs(_FP8, "QMMA", _FP8_SUM_BITS),
    *_same(_NARROW, "QMMA", unreachable=_NO_FP4_DOT),
    *_scaled("QMMA.SF", "OMMA.SF", sum_bits=_FP8_SUM_BITS),
    _int("int8", "IMMA"),
)
_ADA_CONVERSIONS = _both_ways(_FP8, "float16")
_BLACKWELL_CONVERSIONS = _both_ways(_FP8, "float16", "bfloat16") | _both_ways(_NARROW, "float16")
_CUDA_GUIDE = "CUDA C++ Programming Guide, compute capabilities"
_PTX = "PTX ISA, mma, wgmma, tcgen05.mma and cvt"
_F16C = frozenset({("float16", "float32"), ("float32", "float16")})


def _nvidia(
    arch: int,
    title: str,
    matrix: tuple[MatrixUnit, ...],
    conversions: frozenset[tuple[str, str]],
    shared_kib: int,
    paper: str,
    *notes: str,
) -> Target:
    source = f"{paper}; {_CUDA_GUIDE}; {_PTX}"
    backend = ("cuda", arch, 32)
    return Target(f"sm_{arch}", "nvidia", title, backend, matrix, conversions, shared_kib * _KIB, 255, source, notes)


def _amd(
    arch: str,
    title: str,
    warp: int,
    matrix: tuple[MatrixUnit, ...],
    conversions: frozenset[tuple[str, str]],
    lds_kib: int,
    source: str,
    *notes: str,
) -> Target:
    registers = 512 if warp == 64 else 256
    return Target(
        arch, "amd", title, ("hip", arch, warp), matrix, conversions, lds_kib * _KIB, registers, source, notes
    )


def _cpu(
    name: str, title: str, matrix: tuple[MatrixUnit, ...], l2_kib: int, registers: int, source: str, *notes: str
) -> Target:
    conversions = _F16C if matrix else frozenset[tuple[str, str]]()
    return Target(f"cpu-{name}", "cpu", title, None, matrix, conversions, l2_kib * _KIB, registers, source, notes)


_VOLTA_NOTE = "CUDA 13 and its drivers no longer support this generation; it needs a driver of the 580 series or older"
_MFMA_HALVES = _same(_HALVES, "v_mfma")
_WMMA_HALVES = _same(_HALVES, "v_wmma")

_ROWS = (
    _nvidia(
        70, "Volta", (MatrixUnit("float16", "float16", "float32", "HMMA", unreachable=_TURING),), frozenset(), 96,
        "NVIDIA Tesla V100 GPU Architecture white paper", _VOLTA_NOTE,
    ),
    _nvidia(
        75, "Turing",
        (
            MatrixUnit("float16", "float16", "float32", "HMMA", unreachable=_TURING),
            _int("int8", "IMMA", _TURING),
            _int("int4", "IMMA", _TURING),
        ),
        frozenset(), 64, "NVIDIA Turing GPU Architecture white paper",
    ),
    _nvidia(80, "Ampere (data center)", _AMPERE, frozenset(), 163,
            "NVIDIA A100 Tensor Core GPU Architecture white paper"),
    _nvidia(86, "Ampere", _AMPERE, frozenset(), 99, "NVIDIA Ampere GA102 GPU Architecture white paper"),
    _nvidia(87, "Ampere (Jetson Orin)", _AMPERE, frozenset(), 163, "NVIDIA Jetson AGX Orin Series Technical Brief"),
    _nvidia(
        89, "Ada",
        (
            *_same(_HALVES, "HMMA"),
            *_all_pairs(_FP8, "QMMA", _FP8_SUM_BITS),
            _int("int8", "IMMA"),
            _int("int4", "IMMA", _NO_INT4_DOT),
        ),
        _ADA_CONVERSIONS, 99, "NVIDIA Ada GPU Architecture white paper",
    ),
    _nvidia(
        90, "Hopper",
        (
            *_same(_HALVES, "HGMMA"),
            *_all_pairs(_FP8, "QGMMA", _FP8_SUM_BITS),
            _int("int8", "IGMMA"),
        ),
        _ADA_CONVERSIONS, 227, "NVIDIA H100 Tensor Core GPU Architecture white paper",
    ),
    _nvidia(
        100, "Blackwell (data center)", (*_TCGEN, _int("int8", "UTCIMMA")), _BLACKWELL_CONVERSIONS, 227,
        "NVIDIA Blackwell Architecture Technical Brief",
    ),
    _nvidia(
        103, "Blackwell Ultra", (*_TCGEN, _int("int8", "IMMA")), _BLACKWELL_CONVERSIONS, 227,
        "NVIDIA Blackwell Ultra data sheet",
        "its newest matrix instructions no longer take int8; the older ones do, at a fraction of the rate",
    ),
    _nvidia(
        110, "Blackwell (Jetson Thor)", (*_TCGEN, _int("int8", "IMMA")), _BLACKWELL_CONVERSIONS, 227,
        "NVIDIA Jetson Thor Series data sheet",
    ),
    _nvidia(
        120, "Blackwell (GeForce, RTX PRO)", _GEFORCE_BLACKWELL, _BLACKWELL_CONVERSIONS, 99,
        "NVIDIA RTX Blackwell GPU Architecture white paper",
    ),
    _nvidia(
        121, "Blackwell (GB10)", _GEFORCE_BLACKWELL, _BLACKWELL_CONVERSIONS, 99, "NVIDIA DGX Spark data sheet"
    ),
    _amd(
        "gfx90a", "CDNA 2", 64, (*_same(_HALVES, "v_mfma", flushes=True), _int("int8", "v_mfma")), frozenset(), 64,
        "AMD Instinct MI200 Instruction Set Architecture reference guide; PyTorch documentation, Numerical accuracy",
        "its float16 and bfloat16 matrix units flush subnormal operands to zero",
    ),
    _amd(
        "gfx942", "CDNA 3", 64, (*_MFMA_HALVES, *_all_pairs(_FNUZ, "v_mfma"), _int("int8", "v_mfma")),
        _both_ways(_FNUZ, "float32"), 64, "AMD Instinct MI300 (CDNA 3) Instruction Set Architecture reference guide",
        "its 8-bit float units take the FNUZ formats, not e4m3fn and e5m2",
    ),
    _amd(
        "gfx950", "CDNA 4", 64,
        (
            *_MFMA_HALVES, *_all_pairs(_FP8, "v_mfma"), *_same(_NARROW, "v_mfma", unreachable=_NO_FP4_DOT),
            *_scaled("v_mfma_scale", "v_mfma_scale", nv=False),
            _int("int8", "v_mfma"),
        ),
        _both_ways(_FP8, "float16", "bfloat16", "float32"), 160,
        "AMD CDNA 4 Instruction Set Architecture reference guide",
    ),
    _amd(
        "gfx1100", "RDNA 3", 32, (*_WMMA_HALVES, _int("int8", "v_wmma"), _int("int4", "v_wmma", _NO_INT4_DOT)),
        frozenset(), 64, "AMD RDNA 3 Instruction Set Architecture reference guide",
    ),
    _amd(
        "gfx1201", "RDNA 4", 32,
        (
            *_WMMA_HALVES, *_all_pairs(_FP8, "v_wmma"), _int("int8", "v_wmma"),
            _int("int4", "v_wmma", _NO_INT4_DOT),
        ),
        _both_ways(_FP8, "float32"), 64, "AMD RDNA 4 Instruction Set Architecture reference guide",
    ),
    _cpu(
        "avx2", "x86 with AVX2, FMA and F16C", _dots("vpmaddwd", "vpmaddubsw"), 512, 16,
        "Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2",
    ),
    _cpu(
        "avx512", "x86 with AVX-512 and VNNI", _dots("vpdpbusd", "vpdpbusd"), 1024, 32,
        "Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2",
    ),
    _cpu(
        "amx", "x86 with AMX",
        (
            *_dots("vpdpbusd", "vpdpbusd"),
            _int("int8", "tdpbssd", "our CPU kernels have no AMX path: they use the AVX-512 one"),
            MatrixUnit("bfloat16", "bfloat16", "float32", "tdpbf16ps",
                       unreachable="our CPU kernels have no AMX path: they use the AVX-512 one"),
        ),
        2048, 32, "Intel Architecture Instruction Set Extensions Programming Reference, AMX",
    ),
    _cpu("neon", "64-bit Arm with dot products", _dots("sdot", "sdot"), 512, 32,
         "Arm Architecture Reference Manual for A-profile, FEAT_DotProd"),
    _cpu("portable", "any other CPU", (), 256, 16, "the portable kernels are plain C++",
         "plain C++ without vector instructions: much slower than any other target"),
)  # fmt: skip

TARGETS: dict[str, Target] = {row.name: row for row in _ROWS}

# Known machines that we do not compile for, with the reason.
UNSUPPORTED: dict[str, str] = {
    "gfx1030": "Triton has no code generator for RDNA 2 (unsupported target 'gfx1030'), and it has no matrix units:"
    " use llama.cpp's Vulkan backend, or plan for the CPU beside it",
    "metal": "Apple GPUs need Metal shaders, which Triton does not emit: on an Apple machine use MLX, or plan for"
    " cpu-neon",
    "vulkan": "isobit has no Vulkan backend, Triton emits NVIDIA and AMD machine code only: use llama.cpp there, or"
    " plan for the CPU",
    "webgpu": "isobit does not run in browsers, Triton emits NVIDIA and AMD machine code only: use WebLLM there",
}
_UNSUPPORTED_ALIASES = {
    "gfx1031": "gfx1030", "gfx1032": "gfx1030", "rdna2": "gfx1030", "rx6800": "gfx1030", "rx6900xt": "gfx1030",
    "mps": "metal", "apple": "metal", "wgpu": "webgpu", "opencl": "vulkan",
}  # fmt: skip

_TARGET_NAMES = {re.sub(r"[^a-z0-9]+", "", name): name for name in TARGETS}
_BRANDS = re.compile(r"^(nvidia|geforce|tesla|quadro|amd|instinct|radeon|rtx|rx|pro|intel)+")


def _key(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return re.sub(r"[^a-z0-9.+]+", "", name.lower())


def _target_key(name: str) -> str:
    """``sm_90`` for ``SM90``, ``sm_90a`` and ``9.0``; else the folded name."""
    key = _key(name)
    found = re.fullmatch(r"(?:sm|compute)(\d{2,3})[af]?|(\d{1,2})\.(\d)", key)
    if found:
        return f"sm_{found[1] or found[2] + found[3]}"
    return _TARGET_NAMES.get(key, key)


_BOARD_NAMES: dict[str, Board] = {}
for _board in BOARDS.values():
    for _name in (_board.name, *_board.aliases):
        _BOARD_NAMES.setdefault(_key(_name), _board)
        _BOARD_NAMES.setdefault(_BRANDS.sub("", _key(_name)), _board)


def target(name: str) -> Target:
    """The target called ``name`` (``sm_86``, ``SM86``, ``8.6``, ``gfx942``, ``cpu-avx2``).

    Raises:
        Unsupported: isobit knows it and does not compile for it; says why.
        UsageError: there is no such target; lists all and the closest one.
    """
    row = TARGETS.get(_target_key(name))
    if row is None:
        _raise_unknown(name)
    return row


def board(name: str) -> Board:
    """The board called ``name``, with or without its brand (``RTX A6000``, ``a6000``).

    Raises:
        Unsupported: isobit knows it and does not compile for it; says why.
        UsageError: there is no such board; lists all and the closest one.
    """
    row = _board_or_none(name)
    if row is None:
        _raise_unknown(name)
    return row


def lookup(name: str) -> tuple[Target, Board | None]:
    """The target and the board that ``name`` means: of a target, its first board.

    Raises:
        Unsupported: isobit knows it and does not compile for it; says why.
        UsageError: there is no such target or board; lists all and the closest one.
    """
    row = TARGETS.get(_target_key(name))
    if row is not None:
        return row, reference_board(row)
    found = board(name)
    return TARGETS[found.target], found


def reference_board(row: Target) -> Board | None:
    """The board that stands for a target when none is named: its first one."""
    return next((found for found in BOARDS.values() if found.target == row.name), None)


def _board_or_none(name: str) -> Board | None:
    key = _key(name)
    return _BOARD_NAMES.get(key) or _BOARD_NAMES.get(_BRANDS.sub("", key))


def _raise_unknown(name: str) -> NoReturn:
    key = _key(name)
    refused = _UNSUPPORTED_ALIASES.get(key, key)
    if refused in UNSUPPORTED:
        raise Unsupported(f"target {name}", [UNSUPPORTED[refused]])
    known = {_key(known): known for known in (*TARGETS, *UNSUPPORTED)} | {k: b.name for k, b in _BOARD_NAMES.items()}
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {known[close[0]]}?" if close else ""
    raise UsageError(f"unknown target {name!r}.{hint} Targets: {', '.join(TARGETS)}. Boards: {', '.join(BOARDS)}.")
