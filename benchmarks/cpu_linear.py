"""One linear layer on the CPU, in every format: share of the memory's read bandwidth, and prefill against PyTorch.

    python benchmarks/cpu_linear.py                        # 4096x4096 and 11008x4096 (N x K), M = 1, 4, 16, 512
    python benchmarks/cpu_linear.py --schemes fp8 int4 --m 1 --shapes 4096x4096
    python benchmarks/cpu_linear.py --quick                # small, not recorded: shows that it works
    ISOBIT_KERNEL=reference python benchmarks/cpu_linear.py --quick

Copies of the weight, more than 512 MB of them, are used in turn, so that no cache hides the memory. GB/s counts what a
checkpoint stores: codes, scales and zero points. The memory's read bandwidth is measured before and after each
repetition; "share" is the median over repetitions of GB/s divided by the mean of those two. M = 512 is set against
PyTorch's float32 linear of the same shape, which runs just before each repetition ("x torch": the median of time(torch)
/ time(isobit)). Every format's result is first compared with the reference kernel; the benchmark fails if one is off by
more than the contract allows. Results are appended to benchmarks/results/cpu_linear.csv.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import RESULTS, MatrixRate, ReadBandwidth, median, provenance, save, seconds, stop, use_threads
from runs import instruction_set

from isobit.errors import IsobitError, Unsupported
from isobit.formats.schemes import SCHEMES, Scheme, scheme

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.formats.qtensor import QTensor

TOLERANCE = 5e-4  # docs/numerics.md
Bound = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rotated_bytes: int
    buffer_bytes: int
    repetitions: int
    prefill_repetitions: int
    compared_rows: int  # of activations, with the reference


FULL = Sizes(520_000_000, 1 << 30, 9, 5, 2)
QUICK = Sizes(32_000_000, 1 << 27, 3, 2, 2)


@dataclass(frozen=True)
class Layer:
    """Copies of one linear layer, bound to the kernel that the registry chose."""

    scheme: Scheme
    shape: tuple[int, int]
    kernel: str
    nbytes: int  # of one copy, as a checkpoint stores it
    copies: tuple[Bound, ...]
    error: float  # relative, against the reference


def make_layer(which: Scheme, shape: tuple[int, int], sizes: Sizes) -> Layer:
    """Random weights in a format, bound as often as it takes that no cache holds them.

    Raises:
        Unsupported: no kernel takes the format.
        SchemeError: the shape does not fit the scheme.
    """
    import torch

    from isobit.kernels import backends
    from isobit.quantizer.grid import quantize_weight

    n, k = shape
    kernel = backends.choose(which.weights, which.activations, "cpu")
    plain = torch.randn(n, k, generator=torch.Generator().manual_seed(0)) * 0.02
    weight: QTensor | Tensor
    if which.weights is None:
        assert which.dtype is not None
        weight = plain.to(getattr(torch, which.dtype))
    else:
        weight = quantize_weight(plain, which.weights, search="absmax", scale_dtype=torch.bfloat16)
    nbytes = round(which.bits_per_weight(n, k) * n * k / 8)
    static = torch.tensor([0.02]) if which.needs_calibration else None
    count = sizes.rotated_bytes // nbytes + 1
    copies = tuple(kernel.bind(copy_of(weight), which.activations, static, None) for _ in range(count))
    return Layer(which, shape, kernel.name, nbytes, copies, compare(copies[-1], weight, which, static, sizes))


def copy_of(weight: QTensor | Tensor) -> QTensor | Tensor:
    """The same weight in memory of its own."""
    from dataclasses import replace

    from torch import Tensor

    if isinstance(weight, Tensor):
        return weight.clone()
    zero = None if weight.zero is None else weight.zero.clone()
    return replace(weight, codes=weight.codes.clone(), scale=weight.scale.clone(), zero=zero)


def compare(bound: Bound, weight: QTensor | Tensor, which: Scheme, static: Tensor | None, sizes: Sizes) -> float:
    """Relative error of the kernel's result against the reference kernel's."""
    import torch

    from isobit.kernels import reference

    x = torch.randn(sizes.compared_rows, weight.shape[1])
    expected = reference.linear(x, weight, which.activations, static).double()
    return float((bound(x).double() - expected).norm() / expected.norm())


def measure(layer: Layer, m: int, read: ReadBandwidth, sizes: Sizes) -> dict[str, object]:
    """Times a layer on ``m`` rows of activations."""
    import torch

    n, k = layer.shape
    x = torch.randn(m, k)
    operations = 2.0 * m * n * k
    prefill = m >= 128
    copies = layer.copies[:2] if prefill else layer.copies
    peer = MatrixRate(m, n, k) if prefill else None

    def once() -> None:
        for bound in copies:
            bound(x)

    once()
    times, shares, ceilings, ratios, peers = [], [], [], [], []
    before = read()
    for _ in range(sizes.prefill_repetitions if prefill else sizes.repetitions):
        if peer is not None:
            peers.append(peer())
        times.append(seconds(once) / len(copies))
        after = read()
        ceilings.append((before + after) / 2)
        shares.append(layer.nbytes / times[-1] / ceilings[-1])
        if peers:
            ratios.append(operations / times[-1] / peers[-1])
        before = after
    time = median(times)
    return {
        "kernel": layer.kernel,
        "isa": instruction_set(layer.kernel),
        "threads": torch.get_num_threads(),
        "scheme": layer.scheme.name,
        "bits_per_weight": round(layer.nbytes * 8 / (n * k), 3),
        "n": n,
        "k": k,
        "m": m,
        "rotated_mb": round(layer.nbytes * len(copies) / 1e6),
        "repetitions": len(times),
        "microseconds": round(time * 1e6, 1),
        "gb_per_s": round(layer.nbytes / time / 1e9, 2),
        "read_gb_per_s": round(median(ceilings) / 1e9, 2),
        "share_of_read": round(median(shares), 3),
        "gflop_per_s": round(operations / time / 1e9, 1),
        "torch_f32_gflop_per_s": round(median(peers) / 1e9, 1) if peers else "",
        "ratio_to_torch_f32": round(median(ratios), 3) if ratios else "",
        "relative_error": f"{layer.error:.2g}",
        "load_before": round(os.getloadavg()[0], 1),
    }


HEADER = f"{'scheme':<12}{'N x K':>13}{'M':>5}{'kernel':>17}{'us':>10}{'GB/s':>8}{'ceiling':>9}{'share':>7}"
HEADER += f"{'GFLOP/s':>9}{'x torch':>9}{'error':>9}"


def line(row: dict[str, object]) -> str:
    """A row for people."""
    kernel = f"{row['kernel']}/{row['isa']}" if row["isa"] else str(row["kernel"])
    shape = f"{row['n']}x{row['k']}"
    return (
        f"{row['scheme']:<12}{shape:>13}{row['m']:>5}{kernel:>17}{row['microseconds']:>10}"
        f"{row['gb_per_s']:>8}{row['read_gb_per_s']:>9}{row['share_of_read']:>7}{row['gflop_per_s']:>9}"
        f"{row['ratio_to_torch_f32']:>9}{row['relative_error']:>9}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", metavar="NAME", help="default: every scheme that a kernel takes")
    parser.add_argument("--shapes", nargs="+", metavar="NxK", help="default: 4096x4096 11008x4096")
    parser.add_argument("--m", nargs="+", type=int, metavar="M", help="rows of activations; default: 1 4 16 512")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the cores this process may use")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="where the results go (default: benchmarks/results/cpu_linear.csv)")
    args = parser.parse_args()
    if (args.threads is not None and args.threads < 1) or min(args.m or [1]) < 1:
        parser.error("--threads and --m must be at least 1")
    args.shapes = [shape_from(text, parser) for text in args.shapes or (["960x1280"] if args.quick else DEFAULT_SHAPES)]
    args.m = args.m or ([1, 4, 128] if args.quick else [1, 4, 16, 512])
    return args


DEFAULT_SHAPES = ["4096x4096", "11008x4096"]


def shape_from(text: str, parser: argparse.ArgumentParser) -> tuple[int, int]:
    """N and K of ``NxK``."""
    n, x, k = text.partition("x")
    if not x or not n.isdigit() or not k.isdigit() or not int(n) or not int(k):
        parser.error(f"--shapes {text}: write it as NxK, for example 4096x4096")
    return int(n), int(k)


def fitted(which: Scheme, shape: tuple[int, int]) -> tuple[int, int]:
    """The shape with K rounded down to whole groups: int3's groups of 40 do not divide 4096."""
    group = (which.weights.group if which.weights else None) or 1
    return shape[0], max(group, shape[1] // group * group)


def main() -> int:
    """Measures; returns the exit status."""
    args = parse()
    use_threads(args.threads)
    sizes = QUICK if args.quick else FULL
    path = args.csv or (None if args.quick else RESULTS / "cpu_linear.csv")
    try:
        schemes = [scheme(name) for name in args.schemes] if args.schemes else list(SCHEMES.values())
    except IsobitError as error:
        stop(str(error))
    read = ReadBandwidth(sizes.buffer_bytes)
    first = provenance()
    print(f"{first['hardware']}; torch {first['torch']}; commit {first['commit']}\n{HEADER}", flush=True)
    wrong = []
    for shape in args.shapes:
        for which in schemes:
            try:
                layer = make_layer(which, fitted(which, shape), sizes)
            except Unsupported as error:
                print(f"{which.name}: not run: {error}")
                continue
            except IsobitError as error:
                stop(str(error))
            if not layer.error <= TOLERANCE:
                wrong.append(f"{which.name}: relative error {layer.error:.2g} against the reference")
            for m in args.m:
                row = measure(layer, m, read, sizes)
                print(line(row), flush=True)
                if path is not None:
                    save([first | row], path)
            del layer
    for text in wrong:
        print(f"WRONG: {text}; at most {TOLERANCE} is allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
