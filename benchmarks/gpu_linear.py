"""Speed of the bound linears on the card at hand, beside ceilings measured in the same run; one CSV row a figure.

    python benchmarks/gpu_linear.py [--out benchmarks/results/gpu_linear.csv]

One token: the four matrices of a Llama-2-7B layer, each rotated over more of them than the level-2 cache holds, in a
CUDA graph; weight bytes (with group scales) per second over the read bandwidth. ``rounding`` rows include the rounding
of activations as a kernel of its own; the others start from codes. Many tokens: 4096 by 4096 by 4096 and the layer.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from gpu_tune import LAYER, ROTATED_BYTES, timed

from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES
from isobit.formats.table import element
from isobit.kernels.gpu import selection
from isobit.kernels.gpu.bind import bind
from isobit.targets.table import target

FIELDS = ("date", "commit", "device", "what", "lowering", "kernel", "M", "N", "K", "us", "figure", "unit", "share")
ONE = (("bf16", "sm_90"), ("bf16", "sm_86"), ("fp8", "sm_90"), ("fp8", "sm_89"), ("fp8", "sm_86"),
       ("fp8", "sm_80"), ("fp8-e5m2", "sm_90"),
       ("fp8-e5m2", "sm_86"), ("fp8-block", "sm_90"), ("fp8-w8a16", "sm_90"), ("int8", "sm_90"), ("int8", "sm_86"),
       ("fp8-block", "sm_86"), ("fp8-w8a16", "sm_86"), ("int8-w8a16", "sm_90"), ("int4", "sm_90"), ("int4", "sm_86"),
       ("int4-g32", "sm_90"), ("int4-asym", "sm_90"), ("int4-asym", "sm_86"))  # fmt: skip
MANY = (("bf16", "sm_90"), ("bf16", "sm_86"), ("fp8", "sm_90"), ("fp8", "sm_86"), ("fp8-e5m2", "sm_90"),
        ("fp8-e5m2", "sm_86"), ("fp8-block", "sm_90"), ("fp8-w8a16", "sm_90"), ("int8", "sm_90"), ("int8", "sm_86"),
        ("int4", "sm_90"), ("int4", "sm_86"), ("int4-asym", "sm_90"))  # fmt: skip


@triton.jit
def _read(source, sink, SIZE: tl.constexpr, STEPS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE * STEPS + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.int32)
    for step in range(STEPS):
        total ^= tl.load(source + place + step * SIZE)
    tl.store(sink + tl.program_id(0), tl.xor_sum(total, axis=0))


class Results:
    """Rows of the CSV, printed as they come."""

    def __init__(self, commit: str) -> None:
        self.fixed = (time.strftime("%Y-%m-%d"), commit, torch.cuda.get_device_name())
        self.rows: list[tuple[Any, ...]] = []

    def add(self, what: str, lowering: str, kernel: str, m: int, n: int, k: int, us: float, figure: float, unit: str,
            ceiling: float | None = None) -> None:  # fmt: skip
        share = f"{figure / ceiling:.3f}" if ceiling else ""
        row = (what, lowering, kernel, m, n, k, f"{us:.2f}", f"{figure:.3f}", unit, share)
        self.rows.append((*self.fixed, *row))
        print(*row, flush=True)


def read_ceiling(results: Results) -> float:
    """TB/s of reading 4 GiB."""
    source = torch.randint(0, 9, (1 << 30,), dtype=torch.int32, device="cuda")
    best = 0.0
    for size, steps in ((2048, 8), (4096, 16), (8192, 4)):
        programs = source.numel() // (size * steps)
        sink = torch.empty(programs, dtype=torch.int32, device="cuda")
        us = timed(lambda: _read[(programs,)](source, sink, SIZE=size, STEPS=steps, num_warps=8), 10)  # noqa: B023
        best = max(best, 4 * source.numel() / us / 1e6)
    results.add("ceiling: read", "", "xor", 0, 0, 0, 4 * source.numel() / best / 1e6, best, "TB/s")
    return best


def library_ceilings(results: Results, n: int, k: int, m: int) -> None:
    """PyTorch's own matrix products."""
    x, w = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(n, k, device="cuda").bfloat16()
    x8, w8 = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    xi, wi = (t.float().mul(40).clamp(-127, 127).to(torch.int8) for t in (x, w))
    sx, sw = torch.ones(m, 1, device="cuda"), torch.ones(1, n, device="cuda")
    one = torch.ones((), device="cuda")
    products: dict[str, Callable[[], Any]] = {
        "bf16 mm": lambda: x @ w.T,
        "_scaled_mm rowwise, full accumulation": lambda: torch._scaled_mm(x8, w8.T, sx, sw, out_dtype=torch.bfloat16),
        "_scaled_mm tensorwise, full accumulation": lambda: torch._scaled_mm(
            x8, w8.T, one, one, out_dtype=torch.bfloat16
        ),
        "_int_mm": lambda: torch._int_mm(xi, wi.T),
    }
    for name, product in products.items():
        us = timed(lambda: [product() for _ in range(4)], 10) / 4  # noqa: B023
        results.add(f"ceiling: {name}", "", "torch", m, n, k, us, 2 * m * n * k / us / 1e6, "TFLOP/s")


def random_weight(scheme: str, n: int, k: int) -> QTensor | torch.Tensor:
    """Random codes of a scheme; floats for bf16."""
    spec = SCHEMES[scheme].weights
    if spec is None:
        return torch.randn(n, k, device="cuda").bfloat16()
    row = element(spec.element)
    if row.kind == "float":
        codes = torch.randint(0, 256, (n, k), dtype=torch.uint8, device="cuda")
        codes = torch.where((codes & 0x7C) == 0x7C, codes & 0xBF, codes)  # neither NaN nor infinity
    else:
        dtype = torch.int8 if row.signed else torch.uint8
        codes = torch.randint(row.codes.start, row.codes.stop, (n, k), device="cuda", dtype=dtype)
    shape = spec.scale_shape(n, k)
    zero = None if spec.symmetric else torch.randint(0, 16, shape, dtype=torch.uint8, device="cuda")
    scale = (torch.rand(shape, device="cuda") + 0.5).bfloat16() / 64
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, zero)


def weight_bytes(weight: QTensor | torch.Tensor) -> int:
    return weight.nbytes if isinstance(weight, QTensor) else 2 * weight.numel()


def from_codes(bound: Any, x: torch.Tensor) -> Callable[[], Any]:
    """One launch of the linear alone: its activations rounded before."""
    run = bound._run(x.shape[0], x.dtype)
    y = torch.empty(x.shape[0], bound.held.n, dtype=x.dtype, device="cuda")
    given = x if run.rounding is None else run.rounding(x)
    return lambda: run(given, y)


def rotated(scheme: str, lowering: str, n: int, k: int, most: int) -> tuple[list[Any], int]:
    """Linears of different weights, more than the level-2 cache holds, and the bytes of one."""
    weights = [random_weight(scheme, n, k)]
    size = weight_bytes(weights[0])
    weights += [random_weight(scheme, n, k) for _ in range(max(3, min(most - 1, ROTATED_BYTES // size)))]
    activations = SCHEMES[scheme].activations
    return [bind(weight, activations, None, None, target=target(lowering)) for weight in weights], size


def one_token(results: Results, ceiling: float) -> None:
    """The layer, a token at a time."""
    for scheme, lowering in ONE:
        for rounding in (False, True):
            if rounding and SCHEMES[scheme].activations is None:
                continue
            total_us, total_bytes, names = 0.0, 0, set()
            what = f"one token: {scheme}" + (" with rounding" if rounding else "")
            for n, k in LAYER:
                linears, size = rotated(scheme, lowering, n, k, 16)
                x = torch.randn(1, k, device="cuda").bfloat16()
                row = linears[0].variant(1, x.dtype)
                names.add(row.name if row else "torch")
                calls = [(lambda b=b: b(x)) if rounding else from_codes(b, x) for b in linears]  # noqa: B023
                us = timed(lambda: [call() for call in calls], 15) / len(calls)  # noqa: B023
                results.add(what, lowering, " ".join(names), 1, n, k, us, size / us / 1e6, "TB/s", ceiling)
                total_us, total_bytes = total_us + us, total_bytes + size
            figure = total_bytes / total_us / 1e6
            results.add(f"{what}, layer", lowering, " ".join(names), 1, 0, 0, total_us, figure, "TB/s", ceiling)


def few_tokens(results: Results, ceiling: float) -> None:
    """The layer, a few tokens at a time, from codes."""
    for scheme in ("bf16", "fp8", "fp8-block", "fp8-w8a16", "int8", "int4", "int4-asym"):
        for m in (2, 4, 8, 16):
            total_us, total_bytes, names = 0.0, 0, set()
            for n, k in LAYER:
                linears, size = rotated(scheme, "sm_90", n, k, 8)
                x = torch.randn(m, k, device="cuda").bfloat16()
                row = linears[0].variant(m, x.dtype)
                names.add(row.name if row else "torch")
                calls = [from_codes(b, x) for b in linears]
                total_us += timed(lambda: [call() for call in calls], 15) / len(calls)  # noqa: B023
                total_bytes += size
            figure = total_bytes / total_us / 1e6
            what = f"few tokens: {scheme}, layer"
            results.add(what, "sm_90", " ".join(names), m, 0, 0, total_us, figure, "TB/s", ceiling)


def many_tokens(results: Results, m: int) -> None:
    """4096 tokens."""
    for scheme, lowering in MANY:
        for n, k in ((4096, 4096), *LAYER[2:]):
            x = torch.randn(m, k, device="cuda").bfloat16()
            bound = bind(random_weight(scheme, n, k), SCHEMES[scheme].activations, None, None, target=target(lowering))
            row = bound.variant(m, x.dtype)
            call = from_codes(bound, x)
            us = timed(lambda: [call() for _ in range(4)], 8) / 4  # noqa: B023
            figure = 2 * m * n * k / us / 1e6
            name = row.name if row else "torch"
            results.add(f"many tokens: {scheme}", lowering, name, m, n, k, us, figure, "TFLOP/s")


def library_settings(results: Results) -> None:
    """bfloat16 products of PyTorch's with and without partial sums in 16 bits, by both of its libraries, and errors."""
    switches = torch.backends.cuda.matmul
    for m, n, k in ((4096, 4096, 4096), (4096, 4096, 11008), (4096, 22016, 4096), (2048, 4096, 4096), (17, 4096, 4096)):
        x, w = torch.randn(m, k, device="cuda").bfloat16(), torch.randn(n, k, device="cuda").bfloat16()
        exact = x[:256].double() @ w.double().T
        rounding = float((exact.bfloat16().double() - exact).norm() / exact.norm())
        for blas in ("cublas", "cublaslt"):
            torch.backends.cuda.preferred_blas_library(blas)
            for full in (True, False):
                switches.allow_bf16_reduced_precision_reduction = not full
                for out in (torch.empty(m, n, device="cuda", dtype=torch.bfloat16), None):
                    us = timed(lambda: [torch.mm(x, w.t(), out=out) for _ in range(4)], 10) / 4  # noqa: B023
                    error = float((torch.mm(x, w.t())[:256].double() - exact).norm() / exact.norm())
                    before = max(0.0, error**2 - rounding**2) ** 0.5  # error before the result is rounded
                    what = f"library: bf16 {blas}, {'full' if full else 'reduced'} sums" + ", out" * (out is not None)
                    results.add(what, "", f"error {before:.1e}", m, n, k, us, 2 * m * n * k / us / 1e6, "TFLOP/s")
    torch.backends.cuda.preferred_blas_library("default")
    switches.allow_bf16_reduced_precision_reduction = True


def steps_of_large(results: Results) -> None:
    """Where the time of weights widened once per call goes: the call, and each of its launches alone."""
    for scheme in ("int4", "fp8-w8a16"):
        for m, n, k in ((4096, 4096, 4096), (4096, 22016, 4096), (4096, 4096, 11008)):
            x = torch.randn(m, k, device="cuda").bfloat16()
            y = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            bound = bind(random_weight(scheme, n, k), None, None, None, target=target("sm_90"))
            run = bound._run(m, x.dtype)
            steps: dict[str, Callable[[], Any]] = {"all": lambda: run(x, y), "widen": run.widened}  # noqa: B023
            if run.narrowed is not None:
                steps["narrow"] = lambda: run.narrowed(x)  # noqa: B023
            for name, step in steps.items():
                us = timed(lambda: [step() for _ in range(4)], 10) / 4  # noqa: B023
                results.add(f"step: {scheme} {name}", "sm_90", run.row.name, m, n, k, us, us, "us")


def crossover(results: Results) -> None:
    """From how many tokens on the rows for very many tokens win: what ``tiles.LARGE`` is to be chosen from."""
    n, k, usual = 4096, 4096, selection.VARIANTS
    for scheme, lowering in (("bf16", "sm_90"), ("fp8", "sm_90"), ("fp8", "sm_86"), ("fp8-w8a16", "sm_90"),
                             ("int4", "sm_90"), ("int4", "sm_86")):  # fmt: skip
        bound = bind(random_weight(scheme, n, k), SCHEMES[scheme].activations, None, None, target=target(lowering))
        for m in (17, 32, 64, 128, 256, 512, 1024, 2048):
            x = torch.randn(m, k, device="cuda").bfloat16()
            for first in (17, 1 << 30):
                selection.VARIANTS = tuple(
                    replace(row, tokens=(first, None)) if row.family == "large" else row for row in usual
                )
                row = bound.on(bound.machine).variant(m, x.dtype)
                call = from_codes(bound, x)
                us = timed(lambda: [call() for _ in range(8)], 8) / 8  # noqa: B023
                name = row.name if row else "torch"
                results.add(f"crossover: {scheme}", lowering, name, m, n, k, us, 2 * m * n * k / us / 1e6, "TFLOP/s")
    selection.VARIANTS = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/gpu_linear.csv")
    parser.add_argument("--commit", default="")
    parser.add_argument("--parts", default="ceilings,one,few,many,crossover", help="of these, library and steps")
    options = parser.parse_args()
    parts = options.parts.split(",")
    commit = (
        options.commit
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
    )
    results = Results(commit)
    ceiling = read_ceiling(results)
    for n, k in ((4096, 4096), *LAYER[2:]) if "ceilings" in parts else ():
        library_ceilings(results, n, k, 4096)
    if "one" in parts:
        one_token(results, ceiling)
    if "few" in parts:
        few_tokens(results, ceiling)
    if "many" in parts:
        many_tokens(results, 4096)
    if "crossover" in parts:
        crossover(results)
    if "library" in parts:
        library_settings(results)
    if "steps" in parts:
        steps_of_large(results)
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(results.rows)


if __name__ == "__main__":
    main()
