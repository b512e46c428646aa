"""How much of a machine's data sheet is reached: measured fractions as rows, each with where it was measured.

A row measured on one board is used for others of its kind too; then the plan calls its speed an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from isobit.kernels.gpu.rows import BY_NAME
from isobit.kernels.gpu.variant import Variant
from isobit.legalize.exact import bits
from isobit.legalize.ops import Lowering, Op
from isobit.targets.spec import Target

Phase = Literal["decode", "prefill"]


@dataclass(frozen=True)
class Kind:
    """Some of the GPU kernels, by fields of their rows; an empty one says nothing."""

    family: str = ""
    way: str = ""
    weights: str = ""
    granularity: str = ""
    compute: str = ""
    rounded: bool | None = None

    def covers(self, row: Variant) -> bool:
        """Whether a kernel is one of these."""
        return (
            self.family in ("", row.family)
            and self.way in ("", row.way)
            and self.weights in ("", row.weights)
            and self.granularity in ("", row.granularity)
            and self.compute in ("", row.compute)
            and self.rounded in (None, row.activations is not None)
        )


@dataclass(frozen=True)
class Efficiency:
    """A fraction of what a data sheet promises.

    Attributes:
        phase: ``decode``: of the memory bandwidth, one token at a time; ``prefill``: of the operations per second.
        vendors: where it holds.
        weights: widths of stored weights in bits.
        action: the action it was measured for; empty for any.
        fraction: how much is reached.
        measured_on: names of the targets on which it was measured; empty for an assumption.
        source: which measurement, or why it is assumed.
        formats: of the weights; empty for any of that width.
        granularity: what shares a weight scale; empty for any.
        kernel: which kernel one of those that run is; None for any.
        group: of weights that share a scale; 0 for any.
        targets: names of those it is for; empty for all of the vendors.
        kind: of the op; empty for any.
    """

    phase: Phase
    vendors: tuple[str, ...]
    weights: tuple[int, ...]
    action: str
    fraction: float
    measured_on: tuple[str, ...]
    source: str
    formats: tuple[str, ...] = ()
    granularity: str = ""
    kernel: Kind | None = None
    group: int = 0
    targets: tuple[str, ...] = ()
    kind: str = ""

    def holds(self, phase: Phase, op: Op, lowering: Lowering, target: Target) -> bool:
        """Whether this row is about an op on a target."""
        granularity = op.weights.granularity if op.weights else ""
        group = op.weights.group if op.weights else None
        return (
            self.phase == phase
            and target.vendor in self.vendors
            and bits(op.w) in self.weights
            and self.action in ("", lowering.action)
            and (not self.formats or op.w in self.formats)
            and self.granularity in ("", granularity)
            and (self.kernel is None or any(self.kernel.covers(row) for row in _rows(phase, lowering)))
            and self.group in (0, group)
            and (not self.targets or target.name in self.targets)
            and self.kind in ("", op.kind)
        )


def _rows(phase: Phase, lowering: Lowering) -> list[Variant]:
    """What runs one token; of a prompt, what runs very many, too. GPU kernels alone have rows."""
    names = lowering.kernels
    if phase == "prefill" and lowering.sizes:
        names = (*names, lowering.sizes[-1][1])
    return [BY_NAME[name] for name in names if name in BY_NAME]


GPU_LINEAR_AT, GPU_BEFORE_AT = "a09db62", "f098648"  # the commits of the rows of gpu_linear.csv that are used here
GPU_GENERATE_AT = "f098648"  # of gpu_generate.csv, for linears and attention
GPU_LAYERS_AT = "0b711da"  # of the same, for what is beside them
_CSV = f"benchmarks/results/gpu_linear.csv, commit {GPU_LINEAR_AT}"
_BEFORE = f"benchmarks/results/gpu_linear.csv, commit {GPU_BEFORE_AT}"
_WHOLE = f"benchmarks/results/gpu_generate.csv, commit {GPU_GENERATE_AT}"
_H200 = f"H200, one token through a Llama-2-7B layer with the rounding of activations, of 4.80 TB/s ({_CSV})"
_H200_FEW = f"H200, one token through a Llama-2-7B layer on the kernels of a few, of 4.80 TB/s ({_BEFORE})"
_H200_FIRST = "H200, first untuned kernels on a Llama-2-7B layer, of 4.80 TB/s (dev/LOG.md, 2026-11-23)"
_H200_MM = f"H200, 4096 tokens through layers of a Llama-2-7B, of 989 (float16) or 1979 (8 bits) TFLOP/s ({_CSV})"
_CPU = "2 cores EPYC (AVX-512), matrices of 4096x4096, of the read rate beside it (benchmarks/results/cpu_linear.csv)"
_CPU_MM = "2 cores EPYC (AVX-512), 512 tokens, of 1536 G integer operations/s (benchmarks/results/cpu_linear.csv)"
_H200_2048 = f"H200, 2048 tokens by 4096x4096, of 989 (float16) TFLOP/s ({_BEFORE})"
_H200_7B = f"H200, a prompt of 4096 through a Llama-2-7B, of 989 (float16) or 1979 (8 bits) TFLOP/s ({_WHOLE})"
_BF16_LANES, _F16_LANES = (Kind(way="lanes", weights="float", compute=compute) for compute in ("bf16", "f16"))
_E4M3_LANES = Kind(way="lanes", weights="e4m3fn", granularity="row")
_WIDENED_LANES, _E4M3_BY_FLOATS = replace(_E4M3_LANES, rounded=True, compute="f16"), replace(_E4M3_LANES, rounded=False)
_BLOCK_LANES = Kind(way="lanes", granularity="block")
_E5M2_LANES, _INT8_LANES, _INT4_LANES, _UINT4_LANES = (
    Kind(way="lanes", weights=element) for element in ("e5m2", "int8", "int4", "uint4")
)
_FEW_E4M3, _FEW_INT8, _FEW_UINT4 = (
    Kind("few", weights=element, compute="bf16", rounded=False) for element in ("e4m3fn", "int8", "uint4")
)
_BF16_LIBRARY, _F16_LIBRARY = (Kind(way="library", weights="float", compute=compute) for compute in ("bf16", "f16"))
_E4M3_LIBRARY, _LARGE_INT4 = Kind(way="library", weights="e4m3fn"), Kind("large", weights="int4")
_GPUS = ("nvidia", "amd")
_HOPPER = ("sm_90",)
_MEASURED_CPUS = ("cpu-avx2", "cpu-avx512")
_SUB_BYTE = (2, 3, 4, 5, 6, 7)

# Decoding weights in PyTorch, operation by operation: 0.27 to 0.30 GB/s where memory gives 29 (e4m3, 2 cores Zen 3).
REFERENCE_DECODE = Efficiency(
    "decode",
    ("cpu",),
    tuple(range(1, 33)),
    "",
    0.01,
    ("cpu-avx2",),
    "2 cores Zen 3: 0.27 to 0.30 of 29 GB/s in PyTorch",
)

# The first row that holds is used: the most particular ones come first.
EFFICIENCIES: tuple[Efficiency, ...] = (
    Efficiency(
        "decode",
        _GPUS,
        (16, 32),
        "",
        0.65,
        _HOPPER,
        f"H200, attention to 4096 tokens of a Llama-2-7B: 3.2 of 4.80 TB/s ({_WHOLE})",
        kind="attention",
    ),
    Efficiency(
        "prefill",
        _GPUS,
        (16, 32),
        "native",
        0.22,
        _HOPPER,
        f"{_H200_7B}: attention 214, counted as if no token saw what comes behind it",
        kind="attention",
    ),
    Efficiency("decode", _GPUS, (16, 32), "", 0.85, _HOPPER, f"{_H200}: bf16 4.09 TB/s", (), "", _BF16_LANES),
    Efficiency("decode", _GPUS, (16, 32), "", 0.85, _HOPPER, f"{_H200}: bf16 4.09 TB/s", (), "", _F16_LANES),
    Efficiency("decode", _GPUS, (16, 32), "", 0.75, _HOPPER, f"{_H200_FIRST}: bf16 3.62 TB/s"),
    Efficiency("decode", _GPUS, (8,), "native", 0.65, _HOPPER, f"{_H200}: int8 3.13", ("int8",), targets=_HOPPER),
    Efficiency("decode", _GPUS, (8,), "native", 0.60, _HOPPER, f"{_H200}: int8, sm_86 2.88 TB/s", ("int8",)),
    Efficiency("decode", _GPUS, (8,), "", 0.75, _HOPPER, f"{_H200}: int8 by bf16 3.63 TB/s", (), "", _INT8_LANES),
    Efficiency("decode", _GPUS, (8,), "", 0.55, _HOPPER, f"{_H200}: e4m3, sm_86 2.66 TB/s", (), "", _WIDENED_LANES),
    Efficiency(
        "decode",
        _GPUS,
        (8,),
        "",
        0.72,
        _HOPPER,
        f"{_H200}: e4m3 by bf16 3.48 TB/s",
        (),
        "",
        _E4M3_BY_FLOATS,
        targets=_HOPPER,
    ),
    Efficiency(
        "decode", _GPUS, (8,), "", 0.65, _HOPPER, f"{_H200}: e4m3 by bf16, sm_86 3.11 TB/s", (), "", _E4M3_BY_FLOATS
    ),
    Efficiency("decode", _GPUS, (8,), "", 0.65, _HOPPER, f"{_H200}: e4m3 3.10", (), "", _E4M3_LANES, targets=_HOPPER),
    Efficiency("decode", _GPUS, (8,), "", 0.57, _HOPPER, f"{_H200}: e4m3, sm_89 2.73 TB/s", (), "", _E4M3_LANES),
    Efficiency("decode", _GPUS, (8,), "", 0.64, _HOPPER, f"{_H200}: e5m2 3.09", (), "", _E5M2_LANES, targets=_HOPPER),
    Efficiency("decode", _GPUS, (8,), "", 0.57, _HOPPER, f"{_H200}: e5m2, sm_86 2.76 TB/s", (), "", _E5M2_LANES),
    Efficiency(
        "decode", _GPUS, (8,), "", 0.69, _HOPPER, f"{_H200}: blocks 3.31", (), "", _BLOCK_LANES, targets=_HOPPER
    ),
    Efficiency("decode", _GPUS, (8,), "", 0.58, _HOPPER, f"{_H200}: blocks, sm_86 2.79 TB/s", (), "", _BLOCK_LANES),
    Efficiency("decode", _GPUS, (8,), "native", 0.49, _HOPPER, f"{_H200_FEW}: e4m3 in blocks 2.40 TB/s"),
    Efficiency("decode", _GPUS, (8,), "", 0.47, _HOPPER, f"{_H200_FEW}: e4m3 by bf16 2.24", (), "", _FEW_E4M3),
    Efficiency("decode", _GPUS, (8,), "", 0.49, _HOPPER, f"{_H200_FEW}: int8 by bf16 2.35", (), "", _FEW_INT8),
    Efficiency("decode", _GPUS, (8,), "", 0.39, _HOPPER, f"{_H200_FIRST}: e4m3 by integer decoding 1.87 TB/s"),
    Efficiency(
        "decode",
        _GPUS,
        (4,),
        "",
        0.55,
        _HOPPER,
        f"{_H200}: int4, groups of 32 2.65 TB/s",
        (),
        "",
        _INT4_LANES,
        group=32,
        targets=_HOPPER,
    ),
    Efficiency(
        "decode",
        _GPUS,
        (4,),
        "",
        0.49,
        (),
        f"{_H200}: int4, groups of 32 2.65, and sm_86 as far below as for groups of 128",
        (),
        "",
        _INT4_LANES,
        group=32,
    ),
    Efficiency("decode", _GPUS, (4,), "", 0.30, _HOPPER, f"{_H200_FEW}: groups of 32 1.42 TB/s", ("int4",), group=32),
    Efficiency("decode", _GPUS, (4,), "", 0.59, _HOPPER, f"{_H200}: int4 2.83", (), "", _INT4_LANES, targets=_HOPPER),
    Efficiency("decode", _GPUS, (4,), "", 0.53, _HOPPER, f"{_H200}: int4, sm_86 2.54 TB/s", (), "", _INT4_LANES),
    Efficiency("decode", _GPUS, (4,), "", 0.52, _HOPPER, f"{_H200}: uint4 2.48", (), "", _UINT4_LANES, targets=_HOPPER),
    Efficiency("decode", _GPUS, (4,), "", 0.46, _HOPPER, f"{_H200}: uint4, sm_86 2.20 TB/s", (), "", _UINT4_LANES),
    Efficiency("decode", _GPUS, (4,), "", 0.30, _HOPPER, f"{_H200_FEW}: uint4 1.48 TB/s", (), "", _FEW_UINT4),
    Efficiency("decode", _GPUS, _SUB_BYTE, "", 0.23, _HOPPER, f"{_H200_FIRST}: int4 1.10 TB/s"),
    Efficiency("decode", ("cpu",), (8,), "native", 0.88, _MEASURED_CPUS, f"{_CPU}: int8 by int8"),
    Efficiency("decode", ("cpu",), (8,), "", 0.70, _MEASURED_CPUS, f"{_CPU}: e4m3 in float32"),
    Efficiency("decode", ("cpu",), _SUB_BYTE, "native", 0.84, _MEASURED_CPUS, f"{_CPU}, 11008x4096: int4 by int8"),
    Efficiency("decode", ("cpu",), (4,), "", 0.82, ("cpu-avx512",), f"{_CPU}, 11008x4096: int4 by floats", ("int4",)),
    Efficiency("decode", ("cpu",), (3,), "", 0.31, ("cpu-avx512",), f"{_CPU}: int3, groups of 32", group=32),
    Efficiency("decode", ("cpu",), (3,), "", 0.17, ("cpu-avx512",), f"{_CPU}: int3, groups of 40"),
    Efficiency("decode", ("cpu",), (2,), "", 0.28, ("cpu-avx512",), f"{_CPU}: int2"),
    Efficiency("decode", ("cpu",), _SUB_BYTE, "", 0.60, _MEASURED_CPUS, f"{_CPU}: int4 in float32"),
    Efficiency("decode", ("cpu",), (16, 32), "", 0.73, _MEASURED_CPUS, f"{_CPU}: bfloat16"),
    Efficiency("prefill", _GPUS, (16, 32), "native", 0.79, _HOPPER, f"{_H200_7B}: bf16 784", (), "", _BF16_LIBRARY),
    Efficiency("prefill", _GPUS, (16, 32), "native", 0.79, _HOPPER, f"{_H200_7B}: bf16 784", (), "", _F16_LIBRARY),
    Efficiency("prefill", _GPUS, (16, 32), "native", 0.68, _HOPPER, f"{_H200_MM}: bf16 673"),
    Efficiency("prefill", _GPUS, (8,), "native", 0.56, _HOPPER, f"{_H200_MM}: int8 1113", ("int8",)),
    Efficiency("prefill", _GPUS, (8,), "native", 0.31, _HOPPER, f"{_H200_MM}: e4m3 in blocks 622", (), "block"),
    Efficiency("prefill", _GPUS, (8,), "native", 0.56, _HOPPER, f"{_H200_7B}: e4m3 1110", (), "", _E4M3_LIBRARY),
    Efficiency("prefill", _GPUS, (8,), "native", 0.46, _HOPPER, f"{_H200_MM}: e5m2 916"),
    Efficiency("prefill", _GPUS, (8,), "", 0.60, _HOPPER, f"{_H200_2048}: e4m3 by bf16 599", targets=_HOPPER),
    Efficiency("prefill", _GPUS, (8,), "", 0.38, _HOPPER, f"{_H200_2048}: e4m3 on sm_86 376"),
    Efficiency(
        "prefill", _GPUS, (4,), "", 0.57, _HOPPER, f"{_H200_7B}: int4 564", (), "", _LARGE_INT4, targets=_HOPPER
    ),
    Efficiency("prefill", _GPUS, (4,), "", 0.37, _HOPPER, f"{_H200_2048}: int4 on sm_86 361", (), "", _LARGE_INT4),
    Efficiency("prefill", _GPUS, _SUB_BYTE, "", 0.34, _HOPPER, f"{_H200_MM}: uint4 336", ("uint4",)),
    Efficiency("prefill", _GPUS, _SUB_BYTE, "", 0.35, _HOPPER, f"{_H200_2048}: int4 decoded in registers 343"),
    Efficiency("prefill", _GPUS, tuple(range(2, 33)), "", 0.5, (), "assumed for arithmetic outside matrix units"),
    Efficiency("prefill", ("cpu",), (8,), "native", 0.50, ("cpu-avx512",), f"{_CPU_MM}: int8 by int8 764", ("int8",)),
    Efficiency("prefill", ("cpu",), _SUB_BYTE, "native", 0.35, ("cpu-avx512",), f"{_CPU_MM}: int4 by int8 536"),
    Efficiency(
        "prefill",
        ("cpu",),
        tuple(range(2, 33)),
        "",
        0.73,
        ("cpu-avx512",),
        "2 cores EPYC (AVX-512): 140 GFLOP/s in a prompt of 512, of 32 operations per clock and core",
    ),  # fmt: skip
)


@dataclass(frozen=True)
class Launch:
    """What starting kernels costs.

    Attributes:
        kernels: how many there are for one op.
        seconds: for each.
        source: which measurement.
    """

    kernels: float
    seconds: float
    source: str


LAUNCHES: dict[str, Launch] = {
    "nvidia": Launch(1.5, 1.34e-6, "H200: the smallest kernel of a CUDA graph, in a chain of 288 (dev/LOG.md)"),
    "amd": Launch(1.5, 3e-6, "assumed"),
    "cpu": Launch(1.5, 5e-6, "assumed: waking the threads of a pool"),
}


@dataclass(frozen=True)
class Engine:
    """What the engine takes beside linears and attention: norms, rotations, sums, and Python between the kernels.

    Attributes:
        step: seconds for each step of decoding: handing in the token and fetching the logits.
        layer: seconds for the small kernels of a layer when one token is decoded.
        grouped: seconds more for a layer of which several query heads share a head of keys: their attention is kernels
            of its own beside rotations.
        merged: seconds more for such a layer when sequences are so long that their parts are merged by another one.
        prompt_rows: for each token of a prompt and layer, how often as much as a row of the residual stream is read or
            written, at the memory's bandwidth.
        python_layer, python_rounding: seconds in which Python starts the kernels of a layer for a chunk of a prompt,
            and those more for each linear whose activations are rounded. The card works meanwhile: the longer counts.
        prompt_step, prompt_sequence: seconds for each step of prompts, and for each prompt in it, until its first token
            is there.
        measured_on: as in :class:`Efficiency`.
        source: which measurement.
    """

    step: float = 0.0
    layer: float = 0.0
    grouped: float = 0.0
    merged: float = 0.0
    prompt_rows: float = 0.0
    python_layer: float = 0.0
    python_rounding: float = 0.0
    prompt_step: float = 0.0
    prompt_sequence: float = 0.0
    measured_on: tuple[str, ...] = ()
    source: str = ""


# What is left of a recorded step of 2.1 to 4.0 ms when linears, attention and their launches are counted: 0.2 ms in
# four schemes behind 192 tokens and behind 4032. A prompt of 4096: 6.2 (bf16), 7.8 (fp8), 12.9 ms (int8) beside linears
# and attention; Python starts the kernels of a layer in 0.65 ms, and in 0.02 ms more for each linear that rounds.
_BESIDE = (
    "H200, Llama-2-7B, beside linears and attention: 0.2 ms a step, 1.6 us a layer and 32 tokens of a prompt"
    f" (benchmarks/results/gpu_generate.csv, commit {GPU_LAYERS_AT})"
)
# A layer of an 8B (4 query heads for each of keys) in int4 takes 50.6 us for one token, of a 7B 41: weights are 2 us
# of that (engine_decode.csv, 2026-11-29; the same in steps of eight layers). Behind 4032 tokens 10 more, of which
# reading keys and values is 6.
# Prompts of 64 tokens, 1, 8 and 64 at once, take 1.2, 1.4 and 10 to 18 ms more than their kernels (engine_decode.csv).
ENGINES: dict[str, Engine] = {
    "nvidia": Engine(0.1e-3, 3e-6, 7e-6, 3e-6, 30, 0.65e-3, 20e-6, 1.1e-3, 0.15e-3, _HOPPER, _BESIDE),
    "amd": Engine(
        0.1e-3, 3e-6, 7e-6, 3e-6, 30, 0.65e-3, 20e-6, 1.1e-3, 0.15e-3, (), f"assumed to be as on NVIDIA GPUs: {_BESIDE}"
    ),
    # Its layers are kernels of isobit's own too; what Python and sampling take is 3 % of a step (dev/LOG.md).
    "cpu": Engine(0.7e-3, measured_on=_MEASURED_CPUS, source="2 cores EPYC: 0.7 ms a token in Python (dev/LOG.md)"),
}


def efficiency(phase: Phase, op: Op, lowering: Lowering, target: Target) -> Efficiency:
    """The row for an op on a target.

    Raises:
        LookupError: no row covers it, which a test rules out.
    """
    if phase == "decode" and "reference" in lowering.kernels:
        return REFERENCE_DECODE
    for row in EFFICIENCIES:
        if row.holds(phase, op, lowering, target):
            return row
    raise LookupError(f"no efficiency for {phase} of {op.name} in {op.w} on {target.name}")
