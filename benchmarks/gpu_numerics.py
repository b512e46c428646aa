"""The GPU kernels against float64 from the same codes and scales: every scheme, lowering, shape; adversarial codes too.

    python benchmarks/gpu_numerics.py [--out benchmarks/results/gpu_numerics.csv] [--lowerings sm_90,sm_86]

Lowerings of older targets run on the card at hand (``kernels/gpu/launch.py``). The last column is the relative error
``||y - y64|| / ||y64||`` before the output is rounded, NaN and infinities compared by place; the contract allows 5e-4.
Exits with 1 if a row is beyond it.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import time
from collections.abc import Iterator

import torch

from isobit.errors import Unsupported
from isobit.formats import codec
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, ActSpec, Scheme, WeightSpec
from isobit.formats.table import element
from isobit.kernels.gpu import card
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.selection import unsupported
from isobit.kernels.gpu.tiles import LARGE
from isobit.targets.table import target

LOWERINGS = ("sm_90", "sm_89", "sm_86", "sm_80", "sm_75")
TOKENS = (1, 3, 17, 64, 257)
SHAPES = ((11008, 1408), (1408, 13696), (1000, 2240))  # (N, K): no multiples of the tiles, a K with groups of 32 only
TOLERANCE = 5e-4
FLOAT32 = ("fp8-w8a16", "int8-w8a16", "int4", "int4-asym", "int3", "int2")
ADVERSARIAL = ("fp8", "fp8-e5m2", "fp8-static", "fp8-block", "int8", "fp8-w8a16", "int8-w8a16", "int4", "int4-asym")
LARGE_SCHEMES = ("bf16", "f16", "fp8", "fp8-e5m2", "fp8-static", "fp8-w8a16", "int8", "int8-w8a16", "int4", "int4-g32")
FIELDS = ("what", "lowering", "kernel", "M", "N", "K", "error")


def random_codes(spec: WeightSpec, n: int, k: int, generator: torch.Generator) -> torch.Tensor:
    """Finite codes, all equally likely."""
    row = element(spec.element)
    finite = [code for code, value in zip(row.codes, row.values, strict=True) if math.isfinite(value)]
    table = torch.tensor(finite, device="cuda")
    codes = table[torch.randint(0, len(finite), (n, k), device="cuda", generator=generator)]
    return codes.to(torch.int8 if row.kind == "int" and row.signed else torch.uint8)


def quantized(spec: WeightSpec, codes: torch.Tensor, generator: torch.Generator) -> QTensor:
    """A weight of these codes with random bfloat16 scales of a factor of 8."""
    row, (n, k) = element(spec.element), codes.shape
    shape = spec.scale_shape(n, k)
    scale = torch.exp2(3 * torch.rand(shape, device="cuda", generator=generator) - 8).to(torch.bfloat16)
    zero = None
    if not spec.symmetric:
        zero = torch.randint(0, 16, shape, device="cuda", generator=generator).to(torch.uint8)
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, zero)


def exact_weight(weight: QTensor) -> torch.Tensor:
    """``values * scale`` in float64."""
    n, k = weight.shape
    scale = weight.scale.double()
    if weight.spec.block is not None:
        rows, columns = weight.spec.block
        scale = scale.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    else:
        scale = scale.reshape(scale.shape[0], -1)
        scale = scale.repeat_interleave(k // scale.shape[1], 1)
    return weight.values().double() * scale


def exact_input(x: torch.Tensor, acts: ActSpec | None, static: torch.Tensor | None) -> torch.Tensor:
    """The activations that are multiplied, in float64, rounded by the law where the scheme rounds them."""
    if acts is None:
        return x.double()
    codes, scale = codec.quantize_activations(x, acts, static)
    values = codec.decode(codes, acts.element).double()
    return values * scale.double().repeat_interleave(values.shape[-1] // scale.shape[-1], dim=-1)


def error(y: torch.Tensor, y64: torch.Tensor) -> float:
    """Relative error over the finite places; infinite if NaN or infinities are elsewhere than they should be."""
    finite = y64.isfinite()
    if not torch.equal(finite, y.isfinite()):
        return math.inf
    reference = y64[finite]
    return float((y[finite].double() - reference).norm() / reference.norm().clamp_min(1e-300))


def error_of_each(y: torch.Tensor, y64: torch.Tensor) -> float:
    """The largest relative error of one output; infinite if NaN or infinities are elsewhere than they should be."""
    finite = y64.isfinite()
    if not torch.equal(finite, y.isfinite()):
        return math.inf
    reference = y64[finite]
    return float(((y[finite].double() - reference).abs() / reference.abs().clamp_min(1e-300)).max())


class Table:
    """The rows, printed where they fail."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, what: str, lowering: str, kernel: str, m: int, n: int, k: int, found: float) -> None:
        self.rows.append(dict(zip(FIELDS, (what, lowering, kernel, m, n, k, f"{found:.3g}"), strict=True)))
        if not found <= TOLERANCE:
            print("BEYOND", self.rows[-1], flush=True)

    @property
    def beyond(self) -> int:
        return sum(not float(str(row["error"])) <= TOLERANCE for row in self.rows)


def check(table: Table, what: str, scheme: Scheme, weight: QTensor | torch.Tensor, xs: list[torch.Tensor],
          lowerings: list[str], bias: torch.Tensor | None = None, *, each: bool = False) -> None:  # fmt: skip
    """One weight and several inputs on every lowering; ``each``: the largest relative error of any one output."""
    n, k = weight.shape
    acts = scheme.activations
    static = torch.tensor([0.0234375], device="cuda") if acts is not None and not acts.dynamic else None
    w64 = exact_weight(weight).T if isinstance(weight, QTensor) else weight.double().T
    wanted = [exact_input(x, acts, static) @ w64 + (0 if bias is None else bias.double()) for x in xs]
    for lowering in lowerings:
        bound = bind(weight, acts, static, bias, target=target(lowering), out_dtype=torch.float32)
        for x, y64 in zip(xs, wanted, strict=True):
            try:
                row = bound.variant(x.shape[0], x.dtype)
                table.add(
                    what,
                    lowering,
                    row.name if row else "torch",
                    x.shape[0],
                    n,
                    k,
                    (error_of_each if each else error)(bound(x), y64),
                )
            except Unsupported as refused:
                print("refused", what, lowering, str(x.dtype), str(refused).replace("\n", " ")[:200], flush=True)


def schemes(table: Table, lowerings: list[str], name: str) -> None:
    """Every scheme, every shape, every number of tokens."""
    generator = torch.Generator("cuda").manual_seed(7)
    scheme = SCHEMES[name]
    for n, k in SHAPES:
        if scheme.weights is not None and scheme.weights.group == 40:
            k = k // 40 * 40
        group = scheme.weights.group if scheme.weights else None
        block = scheme.weights.block[1] if scheme.weights and scheme.weights.block else None
        if k % (group or block or 1):
            continue
        weight: QTensor | torch.Tensor
        if scheme.weights is None:
            weight = torch.randn(n, k, device="cuda", generator=generator).to(getattr(torch, str(scheme.dtype)))
        else:
            weight = quantized(scheme.weights, random_codes(scheme.weights, n, k, generator), generator)
        bias = torch.randn(n, device="cuda", generator=generator)
        dtypes = [torch.bfloat16, torch.float16] if scheme.weights else [weight.dtype]
        for dtype in dtypes:
            xs = [torch.randn(m, k, device="cuda", generator=generator).to(dtype) for m in TOKENS]
            check(table, f"{name} {str(dtype)[6:]}", scheme, weight, xs, lowerings, bias)


def _pair_inputs(name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weights and activations so that y[m, n] is one product: every code of one by every code of the other."""
    row = element(name)
    codes = torch.arange(256, dtype=torch.uint8, device="cuda")
    weights = codes.view(torch.int8) if row.kind == "int" else codes
    matrix = torch.zeros(256, 128, dtype=weights.dtype, device="cuda")
    matrix[:, 5] = weights
    values = codec.decode(weights, row)
    values = values[values.abs() <= row.max]
    x = torch.zeros(len(values), 128, device="cuda")
    x[:, 5] = values
    x[:, 9] = row.max  # makes the scale 1: every value is its own code (its weight is zero)
    yield matrix, x


def adversarial(table: Table, lowerings: list[str], name: str) -> None:
    """All pairs of codes, subnormals only, one huge outlier, zeros, NaN and infinite inputs."""
    generator = torch.Generator("cuda").manual_seed(8)
    scheme = SCHEMES[name]
    spec, acts = scheme.weights, scheme.activations
    assert spec is not None
    row = element(spec.element)
    dtype = torch.float16 if lowerings == ["sm_75"] else torch.bfloat16
    if row.bits == 8:
        for codes, x in _pair_inputs(spec.element):
            weight = QTensor(spec, tuple(codes.shape), codes, torch.ones(spec.scale_shape(*codes.shape), device="cuda"))
            inputs = [x.to(dtype), x[:5].to(dtype), x[17:18].to(dtype)]
            check(table, f"{name}: all pairs of codes", scheme, weight, inputs, lowerings, each=True)
    n, k = 384, 1408
    base = random_codes(spec, n, k, generator)
    x = torch.randn(33, k, device="cuda", generator=generator)
    outlier = x.clone()
    outlier[:, 77] = 3e4
    small = x * 1e-3
    small[:, 3] = 1.0
    cases = {"one huge outlier": outlier, "zeros": x * 0, "one value above tiny ones": small}
    if acts is not None:
        broken = x.clone()
        broken[3, 5], broken[20, 7] = math.nan, math.inf
        cases["NaN and infinity"] = broken
    for what, values in cases.items():
        inputs = [values.to(dtype), values[:4].to(dtype), values[3:4].to(dtype)]
        check(table, f"{name}: {what}", scheme, quantized(spec, base, generator), inputs, lowerings)
    if row.kind == "float":
        tiny = (base & 0x80) | (base & ((1 << row.mantissa_bits) - 1))
        inputs = [x.to(dtype), x[:1].to(dtype)]
        check(table, f"{name}: subnormals only", scheme, quantized(spec, tiny, generator), inputs, lowerings)


def float32_inputs(table: Table, lowerings: list[str], name: str) -> None:
    """Weight-only schemes with float32 activations."""
    generator = torch.Generator("cuda").manual_seed(9)
    spec = SCHEMES[name].weights
    assert spec is not None
    weight = quantized(spec, random_codes(spec, 640, 1280, generator), generator)
    xs = [torch.randn(m, 1280, device="cuda", generator=generator) for m in (1, 3, 65)]
    check(table, f"{name} float32", SCHEMES[name], weight, xs, lowerings)


def rounding(table: Table, lowerings: list[str], name: str) -> None:
    """Codes and scales must equal the law's bit for bit; error is 0 or infinite."""
    generator = torch.Generator("cuda").manual_seed(10)
    base = torch.randn(37, 4096, device="cuda", generator=generator)
    base *= torch.exp2(torch.linspace(-140, 120, 37, device="cuda"))[:, None]
    base[3, 5], base[4, 7], base[5] = math.nan, -math.inf, 0.0
    base[6, :2048] = torch.arange(2048, device="cuda") * 0.5
    base[7] = torch.randint(0, 1 << 16, (4096,), device="cuda", generator=generator).to(torch.int16).view(torch.float16)
    for spec in (ActSpec(name, "token"), ActSpec(name, "tensor", dynamic=False), ActSpec(name, "group", 128)):
        static = None if spec.dynamic else torch.tensor([0.4375], device="cuda")
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = base.to(dtype)
            codes, scale = codec.quantize_activations(x, spec, static)
            for lowering in lowerings:
                if dtype == torch.bfloat16 and lowering == "sm_75":
                    continue
                rounded = Rounding(spec, static, "*u8", card.machine(target(lowering)))(x)
                same = torch.equal(rounded.codes, codes)
                same &= torch.equal(rounded.scales.nan_to_num(7e8), scale.nan_to_num(7e8))
                what = f"rounding {name} {spec.granularity} {str(dtype)[6:]}"
                table.add(what, lowering, "quantize", 37, 0, 4096, 0.0 if same else math.inf)


def _task(task: tuple[str, str, list[str]]) -> list[dict[str, object]]:
    """One part of the table, in a process of its own."""
    part, name, lowerings = task
    torch.backends.cuda.matmul.allow_tf32 = False
    table = Table()
    PARTS[part](table, lowerings, name)
    return table.rows


def very_many(table: Table, lowerings: list[str], name: str) -> None:
    """As many tokens as PyTorch's products and weights widened once per call are chosen for, one odd one more."""
    generator = torch.Generator("cuda").manual_seed(11)
    scheme, (n, k) = SCHEMES[name], (1408, 3840)
    if scheme.weights is None:
        weight: QTensor | torch.Tensor = torch.randn(n, k, device="cuda").to(getattr(torch, str(scheme.dtype)))
        dtypes = [weight.dtype]
    else:
        weight = quantized(scheme.weights, random_codes(scheme.weights, n, k, generator), generator)
        dtypes = [torch.bfloat16, torch.float16]
    for dtype in dtypes:
        x = torch.randn(LARGE + 1, k, device="cuda", generator=generator)
        outlier, tiny = x.clone(), x * torch.logspace(-3, 3, LARGE + 1, device="cuda")[:, None]
        outlier[:, 77] = 3e4
        xs = [part.to(dtype) for part in (x, outlier, tiny, x * 0)]
        check(table, f"{name} {str(dtype)[6:]}: very many tokens", scheme, weight, xs, lowerings)


PARTS = {
    "very many": very_many,
    "rounding": rounding,
    "adversarial": adversarial,
    "float32": float32_inputs,
    "scheme": schemes,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/gpu_numerics.csv")
    parser.add_argument("--lowerings", default=",".join(LOWERINGS))
    parser.add_argument("--jobs", type=int, default=12, help="processes; most of the time goes into compiling")
    options = parser.parse_args()
    begin, table = time.time(), Table()
    names = {
        "very many": LARGE_SCHEMES,
        "rounding": ("e4m3fn", "e5m2", "int8"),
        "adversarial": ADVERSARIAL,
        "float32": FLOAT32,
        "scheme": [name for name, row in SCHEMES.items() if not unsupported(row.weights, row.activations)],
    }
    tasks = [
        (part, name, [lowering]) for lowering in options.lowerings.split(",") for part in PARTS for name in names[part]
    ]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for rows in pool.imap(_task, tasks, chunksize=1):
            table.rows += rows
    with open(options.out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(table.rows)
    worst = max(float(str(row["error"])) for row in table.rows)
    print(f"{len(table.rows)} rows, worst {worst:.3g}, {table.beyond} beyond {TOLERANCE}, {time.time() - begin:.0f} s")
    return 1 if table.beyond else 0


if __name__ == "__main__":
    raise SystemExit(main())
