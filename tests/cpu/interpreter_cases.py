"""The Triton kernels in Triton's interpreter: run as a program (with TRITON_INTERPRET=1) it prints one result a line.

The interpreter rounds float8 wrongly and multiplies bfloat16 wrongly, so everything here is codes, float16 and float32.
"""

from __future__ import annotations

import json
from dataclasses import replace

import assembly
import torch

from isobit.formats import codec
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec, scheme
from isobit.formats.table import element
from isobit.kernels import backends
from isobit.kernels.gpu import selection
from isobit.kernels.gpu.bind import BoundLinear, bind
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.rows import VARIANTS
from isobit.targets.table import target

SHAPES = ((5, 160), (70, 256))  # (N, K): N no multiple of a tile, K one or no multiple of a step
TOKENS = (1, 18)
MACHINE = Machine.imagined(target("sm_86"))


def weight(spec: WeightSpec, n: int, k: int, generator: torch.Generator) -> QTensor:
    """Random codes (no NaN) with random scales, some of them negative or zero, as other tools write them."""
    row = element(spec.element)
    if row.kind == "int":
        codes = torch.randint(row.codes.start, row.codes.stop, (n, k), generator=generator)
        codes = codes.to(torch.int8 if row.signed else torch.uint8)
    else:
        finite = torch.tensor([c for c, v in zip(row.codes, row.values, strict=True) if abs(v) < 1e300])
        codes = finite[torch.randint(0, len(finite), (n, k), generator=generator)].to(torch.uint8)
    shape = spec.scale_shape(n, k)
    scale = (torch.rand(shape, generator=generator) + 0.5).to(torch.bfloat16)
    scale.view(-1)[::3] *= -1
    scale.view(-1)[4::7] = 0
    zero = None if spec.symmetric else torch.randint(0, 16, shape, generator=generator).to(torch.uint8)
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, zero)


def relative_error(
    weight: QTensor, acts: ActSpec | None, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor
) -> float:
    """Against float64 from the same codes and scales."""
    if acts is None:
        exact = x.double()
    else:
        static = torch.tensor([0.25]) if not acts.dynamic else None
        codes, scale = codec.quantize_activations(x, acts, static)
        values = codec.decode(codes, acts.element).double()
        width = values.shape[-1] // scale.shape[-1]
        exact = values * scale.double().repeat_interleave(width, dim=-1)
    y64 = exact @ (weight.values().double() * _expanded(weight)).T + bias.double()
    return float((y.double() - y64).norm() / y64.norm())


def _expanded(weight: QTensor) -> torch.Tensor:
    """The scale of every weight, ``[N, K]`` (or ``[1, K]`` for one scale)."""
    n, k = weight.shape
    scale = weight.scale.double()
    if weight.spec.block is not None:
        rows, columns = weight.spec.block
        return scale.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    return scale.reshape(scale.shape[0], -1).repeat_interleave(k // scale.reshape(scale.shape[0], -1).shape[1], 1)


LINEARS: dict[str, tuple[WeightSpec, ActSpec | None, tuple[tuple[int, int], ...]]] = {
    "fp8": (WeightSpec("e4m3fn", "channel"), ActSpec("e4m3fn", "token"), SHAPES),
    "fp8-e5m2": (WeightSpec("e5m2", "channel"), ActSpec("e5m2", "token"), SHAPES),
    "fp8-static": (WeightSpec("e4m3fn", "tensor"), ActSpec("e4m3fn", "tensor", dynamic=False), SHAPES),
    "fp8-block": (WeightSpec("e4m3fn", "block", block=(128, 128)), ActSpec("e4m3fn", "group", 128), ((130, 256),)),
    "fp8-w8a16": (WeightSpec("e4m3fn", "channel"), None, SHAPES),
    "int8": (WeightSpec("int8", "channel"), ActSpec("int8", "token"), SHAPES),
    "int8-w8a16": (WeightSpec("int8", "channel"), None, SHAPES),
    "int4": (WeightSpec("int4", "group", 128), None, ((70, 256),)),
    "int4-g32": (WeightSpec("int4", "group", 32), None, SHAPES),
    "int4-asym": (WeightSpec("uint4", "group", 128, symmetric=False), None, ((70, 256),)),
    "int3": (WeightSpec("int3", "group", 40), None, ((5, 160),)),
    "int2": (WeightSpec("int2", "group", 32), None, SHAPES),
    "e2m1-g32": (WeightSpec("e2m1", "group", 32), None, ((5, 256), (70, 384))),
    "e2m1-g16": (WeightSpec("e2m1", "group", 16), None, ((5, 192), (70, 256))),
    "e4m3fn-g32": (WeightSpec("e4m3fn", "group", 32), None, SHAPES),
    "int8-g32": (WeightSpec("int8", "group", 32), None, SHAPES),
    "int8-g256": (WeightSpec("int8", "group", 256), None, ((70, 512),)),
    "int8-g16": (WeightSpec("int8", "group", 16), None, SHAPES),
}


def linears() -> None:
    """Every scheme on the targets that widen, every shape and number of tokens."""
    generator = torch.Generator().manual_seed(1)
    for name, (spec, acts, shapes) in LINEARS.items():
        for n, k in shapes:
            bias = torch.randn(n, generator=generator)
            packed = weight(spec, n, k, generator)
            for lowering in ("sm_86", "sm_75"):
                scale = torch.tensor([0.25]) if acts is not None and not acts.dynamic else None
                bound = bind(packed, acts, scale, bias, target=target(lowering), out_dtype=torch.float32)
                for tokens in TOKENS:
                    x = torch.randn(tokens, k, generator=generator).half()
                    error = relative_error(packed, acts, x, bound(x), bias)
                    print(json.dumps([f"{name} {lowering} {tokens}x{n}x{k}", error]), flush=True)


def few_bit_scales() -> None:
    """Weights as checkpoints store them, bound as a model binds them."""
    generator = torch.Generator().manual_seed(7)
    for name in ("mxfp4-w16", "mxfp8-w16", "nvfp4-w16"):
        spec = scheme(name).weights
        assert spec is not None and spec.scale is not None
        for n, k in ((5, 256), (70, 384)):
            row, shape = element(spec.element), spec.scale_shape(n, k)
            finite = torch.tensor([c for c, v in zip(row.codes, row.values, strict=True) if abs(v) < 1e300])
            codes = finite[torch.randint(0, len(finite), (n, k), generator=generator)].to(torch.uint8)
            low, high = (120, 134) if spec.scale.powers else (8, 100)
            scale = torch.randint(low, high, shape, generator=generator).to(torch.uint8)
            over = None if spec.scale.over is None else torch.tensor([3.1])
            stored = QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, over=over)
            bound = backends.bind(
                stored, None, None, None, device="cuda", target=target("sm_86"), out_dtype=torch.float32
            )
            for tokens in TOKENS:
                x = torch.randn(tokens, k, generator=generator).half()
                y64 = x.double() @ stored.dequantize().double().T
                error = float((bound.run(x).double() - y64).norm() / y64.norm())
                print(json.dumps([f"few bits {name} {tokens}x{n}x{k}", error]), flush=True)


def large() -> None:
    """Weights widened once per call; the number of tokens from which they are is lowered, to be fast."""
    generator = torch.Generator().manual_seed(3)
    selection.VARIANTS = tuple(replace(row, tokens=(20, None)) if row.widen else row for row in VARIANTS)
    for name in ("fp8", "fp8-e5m2", "fp8-static", "fp8-w8a16", "int8-w8a16", "int4", "int4-g32"):
        spec, acts, _ = LINEARS[name]
        for n, k in ((5, 160), (70, 384)) if spec.group is None else ((70, 384),):
            packed = weight(spec, n, k, generator)
            bias = torch.randn(n, generator=generator)
            scale = torch.tensor([0.25]) if acts is not None and not acts.dynamic else None
            bound = bind(packed, acts, scale, bias, target=target("sm_86"), out_dtype=torch.float32)
            for dtype in (torch.float16, torch.bfloat16) if name.startswith("int4") else (torch.float16,):
                x = (torch.randn(21, k, generator=generator) * torch.logspace(-3, 3, 21)[:, None]).to(dtype)
                row = bound.variant(len(x), dtype)
                label = f"large {name} {dtype} {row.name if row else ''} {n}x{k}"
                print(json.dumps([label, relative_error(packed, acts, x, bound(x), bias)]), flush=True)
                narrows = bound.rounding(len(x), dtype)
                if acts is None and narrows is not None:  # what a kernel in front of it has narrowed already
                    given, plain = bound(narrows(x.view(3, 7, k))), bound(x).view(3, 7, n)
                    print(json.dumps([f"{label} narrowed before", float((given != plain).sum())]), flush=True)
    packed = weight(LINEARS["int4"][0], 3, 256, generator)
    x = torch.ones(21, 256, dtype=torch.bfloat16)
    x[3] = 1e36  # far beyond float16, and far below
    x[4] = 1e-36
    x[5, 9] = float("inf")
    x[6] = 0
    y = bind(packed, None, None, None, target=target("sm_86"), out_dtype=torch.float32)(x)
    right = not bool(y[5].isfinite().any()) and bool((y[6] == 0).all())
    exact = packed.dequantize().sum(dim=1).double()
    for token in (3, 4):
        right &= bool(torch.allclose(y[token].double() / x[token, 0].double(), exact, rtol=1e-5))
    print(json.dumps(["large int4 bfloat16 of any size", 0.0 if right else 1.0]), flush=True)


def by_tma() -> None:
    """Tiles that TMA copies have the bits of those that threads ask for: parts of tiles, more of them than programs."""
    generator = torch.Generator().manual_seed(9)
    spec, acts, _ = LINEARS["int8"]
    packed, bias = weight(spec, 272, 144, generator), torch.randn(272, generator=generator)
    x = torch.randn(150, 144, generator=generator).half()
    machine = Machine.imagined(target("sm_90"), multiprocessors=2)
    for out in (torch.float16, torch.float32):
        residual = torch.randn(150, 272, generator=generator).to(out)
        results = []
        for way in ("tma", "matrix"):
            selection.VARIANTS = tuple(
                replace(row, tokens=(2, None)) if row.way == "tma" else row
                for row in VARIANTS
                if row.way != "tma" or way == "tma"
            )
            bound = bind(packed, acts, None, bias, machine=machine, out_dtype=out)
            row = bound.variant(len(x), x.dtype)
            assert row is not None and row.way == way
            results.append((bound(x), bound(x, residual)))
        same = all(torch.equal(found, wanted) for found, wanted in zip(*results, strict=True))
        print(json.dumps([f"tma {out}", 0.0 if same else 1.0]), flush=True)
    selection.VARIANTS = VARIANTS


def lanes(shapes: dict[str, tuple[tuple[int, int], ...]], kind: str) -> None:
    """One token by ``linear_lanes``."""
    generator = torch.Generator().manual_seed(4)
    for name, sizes in shapes.items():
        for n, k in sizes:
            bias = torch.randn(n, generator=generator)
            x = torch.randn(1, k, generator=generator)
            spec, acts = _LANES_ALONE.get(name) or LINEARS[name][:2]
            packed = weight(spec, n, k, generator)
            for lowering in ("sm_90", "sm_86"):
                for dtype in (torch.float16, torch.bfloat16) if acts is None else (torch.float16,):
                    bound = bind(packed, acts, None, bias, target=target(lowering), out_dtype=torch.float32)
                    label = f"{kind} {name} {lowering} {dtype} {_used(bound, dtype)} {n}x{k}"
                    error = relative_error(packed, acts, x.to(dtype), bound(x.to(dtype)), bias)
                    print(json.dumps([label, error]), flush=True)


def lanes_of_floats(sizes: tuple[tuple[int, int], ...], kind: str) -> None:
    """The same for weights in 16 bits."""
    generator = torch.Generator().manual_seed(5)
    for n, k in sizes:
        for dtype in (torch.float16, torch.bfloat16):
            w, bias = torch.randn(n, k, generator=generator).to(dtype), torch.randn(n, generator=generator)
            x = torch.randn(1, k, generator=generator).to(dtype)
            bound = bind(w, None, None, bias, target=target("sm_86"), out_dtype=torch.float32)
            y64 = x.double() @ w.double().T + bias.double()
            error = float((bound(x).double() - y64).norm() / y64.norm())
            print(json.dumps([f"{kind} {dtype} {_used(bound, dtype)} {n}x{k}", error]), flush=True)


LANES = {
    "fp8": ((5, 1024), (70, 1344)), "fp8-e5m2": ((6, 1344),), "int4": ((5, 2048), (7, 2304), (9, 384)),
    "int4-g256": ((5, 2304),), "int4-g32": ((5, 2176), (9, 1024)), "int4-g64": ((5, 2176),),
    "int4-asym": ((5, 2176), (9, 1024), (1, 128)), "fp8-w8a16": ((5, 1344), (9, 1024)), "int8-w8a16": ((5, 1344),),
    "fp8-block": ((130, 1408), (5, 1024)),
}  # fmt: skip
WARPS = {
    "fp8": ((5, 1344),), "fp8-e5m2": ((3, 1088),), "int4": ((5, 2304), (3, 384)), "int4-g256": ((3, 2304),),
    "int4-g32": ((5, 2176), (3, 1024)), "int4-g64": ((3, 1152),), "int4-asym": ((5, 2176), (3, 1024)),
    "fp8-w8a16": ((5, 1344),), "int8-w8a16": ((5, 1344),), "fp8-block": ((130, 1408),),
}  # fmt: skip
_LANES_ALONE = {f"int4-g{group}": (WeightSpec("int4", "group", group), None) for group in (64, 256)}


def _used(bound: BoundLinear, dtype: torch.dtype) -> str:
    row = bound.variant(1, dtype)
    return row.name if row else "torch"


def all_codes() -> None:
    """Every weight code, NaN included, times one: the decoders."""
    for name in ("e4m3fn", "e5m2", "int8"):
        row = element(name)
        codes = torch.arange(256, dtype=torch.uint8).reshape(256, 1).repeat(1, 32)
        codes = codes.view(torch.int8) if row.kind == "int" else codes
        packed = QTensor(WeightSpec(name, "channel"), (256, 32), codes, torch.ones(256, 1))
        x = torch.zeros(2, 32, dtype=torch.float16)
        x[:, 0] = 1
        want = codec.decode(codes[:, 0], row)
        for lowering in ("sm_86", "sm_75"):
            bound = bind(packed, None, None, None, target=target(lowering), out_dtype=torch.float32)
            for tokens in (1, 2):
                y = bound(x[:tokens])[0]
                same = torch.equal(y.nan_to_num(7e8, 8e8, -8e8), want.nan_to_num(7e8, 8e8, -8e8))
                if name == "e5m2":  # an infinity times the zeros of x is NaN
                    finite = want.isfinite()
                    same = torch.equal(y[finite], want[finite]) and not bool(y[~finite].isfinite().any())
                print(json.dumps([f"codes {name} {lowering} M={tokens}", 0.0 if same else 1.0]), flush=True)


def rounding() -> None:
    """The rounding of activations: equal to the law bit for bit."""
    x = torch.randn(9, 384, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 5, 9)[:, None]
    x[3, 5], x[4, 7], x[5], x[6] = float("nan"), -float("inf"), 0.0, x[6] * 1e-42
    x[2, :256] = torch.arange(256) * 0.5
    x[7] = -0.0
    long = torch.randn(2, 17000, generator=torch.Generator().manual_seed(6))  # more than a program holds
    rounded = Rounding(ActSpec("int8", "token"), None, "*i32", MACHINE)(long)
    codes, law = codec.quantize_activations(long, ActSpec("int8", "token"), None)
    same = torch.equal(rounded.codes, codes) and torch.equal(rounded.scales, law)
    print(json.dumps(["rounding of long tokens", 0.0 if same else 1.0]), flush=True)
    for name in ("e4m3fn", "e5m2", "int8"):
        for spec in (ActSpec(name, "token"), ActSpec(name, "tensor", dynamic=False), ActSpec(name, "group", 128)):
            for operand in ("*fp16", "*u8", "*bf16"):
                for dtype in (torch.float32, torch.float16):
                    static = None if spec.dynamic else torch.tensor([0.4375])
                    rounded = Rounding(spec, static, operand, MACHINE)(x.to(dtype))
                    codes, law = codec.quantize_activations(x.to(dtype), spec, static)
                    wide = {"*fp16": torch.float16, "*bf16": torch.bfloat16}.get(operand)
                    want = codes if wide is None else codec.decode(codes, name, wide)
                    bits = want.dtype if wide is None else torch.int16
                    same = torch.equal(rounded.codes.view(bits), want.view(bits))
                    same &= torch.equal(rounded.scales.nan_to_num(7e8), law.nan_to_num(7e8))
                    print(json.dumps([f"rounding {spec} {operand} {dtype}", 0.0 if same else 1.0]), flush=True)


if __name__ == "__main__":
    rounding()
    all_codes()
    linears()
    few_bit_scales()
    large()
    by_tma()
    lanes(LANES, "lanes")
    lanes_of_floats(((5, 512), (9, 1312)), "lanes")
    assembly.emulate()
    lanes(WARPS, "warps")
    lanes_of_floats(((5, 1312),), "warps")
