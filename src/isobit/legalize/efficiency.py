"""How much of a machine's data sheet is reached: measured fractions as rows, each with where it was measured.

A row measured on one board is used for others of its kind too; then the plan calls its speed an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isobit.legalize.exact import bits
from isobit.legalize.ops import Lowering, Op
from isobit.targets.spec import Target

Phase = Literal["decode", "prefill"]


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
    """

    phase: Phase
    vendors: tuple[str, ...]
    weights: tuple[int, ...]
    action: str
    fraction: float
    measured_on: tuple[str, ...]
    source: str


_H200 = "H200, 4.51 of 4.80 TB/s can be read; whole Llama-2-7B layer in a CUDA graph, first untuned kernels"
_H200_MM = "H200, 4096x4096 layers"
_CPU = "2 cores EPYC (AVX-512), matrices of 4096x4096, of the read rate beside it (benchmarks/results/cpu_linear.csv)"
_GPUS = ("nvidia", "amd")
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
    Efficiency("decode", _GPUS, (16, 32), "", 0.75, ("sm_90",), f"{_H200}: 3.60 TB/s"),
    Efficiency("decode", _GPUS, (8,), "native", 0.52, ("sm_90",), f"{_H200}: 2.55 TB/s (e4m3), 2.35 (int8)"),
    Efficiency("decode", _GPUS, (8,), "", 0.39, ("sm_90",), f"{_H200}: 1.87 TB/s (e4m3 decoded by integer arithmetic)"),
    Efficiency("decode", _GPUS, _SUB_BYTE, "", 0.23, ("sm_90",), f"{_H200}: 1.10 TB/s (int4)"),
    Efficiency("decode", ("cpu",), (8,), "native", 0.88, _MEASURED_CPUS, f"{_CPU}: int8 by int8"),
    Efficiency("decode", ("cpu",), (8,), "", 0.70, _MEASURED_CPUS, f"{_CPU}: e4m3 in float32"),
    Efficiency("decode", ("cpu",), _SUB_BYTE, "native", 0.88, ("cpu-avx2",), "2 cores Zen 3 (AVX2): int4 by int8"),
    Efficiency("decode", ("cpu",), _SUB_BYTE, "", 0.60, _MEASURED_CPUS, f"{_CPU}: int4 in float32"),
    Efficiency("decode", ("cpu",), (16, 32), "", 0.73, _MEASURED_CPUS, f"{_CPU}: bfloat16"),
    Efficiency("prefill", _GPUS, (16, 32), "native", 0.68, ("sm_90",), f"{_H200_MM}: 676 of 989 TFLOP/s"),
    Efficiency("prefill", _GPUS, (8,), "native", 0.56, ("sm_90",), f"{_H200_MM}: 1102 of 1979 TFLOP/s (e4m3)"),
    Efficiency("prefill", _GPUS, tuple(range(2, 33)), "", 0.5, (), "assumed: 85 % of what unwidened operands reach"),
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
        kernels: how many there are for one op, those between the products included.
        seconds: for each.
        source: which measurement.
    """

    kernels: float
    seconds: float
    source: str


LAUNCHES: dict[str, Launch] = {
    "nvidia": Launch(1.5, 1.34e-6, "H200: the smallest kernel of a CUDA graph, in a chain of 288"),
    "amd": Launch(1.5, 3e-6, "assumed"),
    "cpu": Launch(1.5, 5e-6, "assumed: waking the threads of a pool"),
}


def efficiency(phase: Phase, op: Op, lowering: Lowering, target: Target) -> Efficiency:
    """The row for an op on a target.

    Raises:
        LookupError: no row covers it, which a test rules out.
    """
    width = bits(op.w)
    if phase == "decode" and "reference" in lowering.kernels:
        return REFERENCE_DECODE
    for row in EFFICIENCIES:
        if row.phase == phase and target.vendor in row.vendors and width in row.weights:
            if row.action in ("", lowering.action):
                return row
    raise LookupError(f"no efficiency for {phase} of {op.name} in {op.w} on {target.name}")
