"""The law of rounding by a scale's reciprocal, and gates in every form, in Triton's interpreter, beside the law itself:
run as a program it prints one name and how many values differ a line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from isobit.formats.codec import quantize_activations
from isobit.formats.schemes import ActSpec
from isobit.formats.table import element
from isobit.kernels.gpu import row_tiles
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.triton.law import _quotient, store_rounded
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.rounded import Rounded
from isobit.targets.table import target

FORMATS = ("e4m3fn", "e5m2", "int8")


@triton.jit
def law(
    x, scales, codes, qmax, ELEMENT: tl.constexpr, STATIC: tl.constexpr, RECIPROCAL: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes of ``x [.., BLOCK]`` under the scale of each row, ROWS rows by a program, or one where that is 0."""
    k = tl.arange(0, BLOCK)
    if ROWS > 0:
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
        scale, place = tl.load(scales + row), row * BLOCK + k[None, :]
        inside = place >= 0
    else:
        scale, place = tl.load(scales + tl.program_id(0)), tl.program_id(0) * BLOCK + k
        inside = k < BLOCK
    store_rounded(codes, place, tl.load(x + place), scale, qmax, inside, ELEMENT, False, STATIC, RECIPROCAL, False)


def codes_of(x: torch.Tensor, scales: torch.Tensor, name: str, *, static: bool, fast: bool, rows: int) -> torch.Tensor:
    """Codes ``[M, K]`` of float32 ``[M, K]``, K a power of two."""
    codes = torch.zeros(x.shape, dtype=torch.int8)
    law[(len(x) // max(1, rows),)](x, scales, codes, element(name).max, name, static, fast, rows, x.shape[1])
    return codes


def wanted(x: torch.Tensor, scales: torch.Tensor, name: str) -> torch.Tensor:
    """By the codec, each row under its own static scale; a row whose scale is no number has a value that is none."""
    spec = ActSpec(name, "tensor", dynamic=False)
    pairs = zip(x, scales.nan_to_num(1.0), strict=True)
    return torch.cat([quantize_activations(row[None], spec, scale[None])[0].view(torch.int8) for row, scale in pairs])


def scales_near(name: str, lowest: int, highest: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Scales of 2**lowest to 2**highest: any, the last before a power of two, and those of largest bfloat16 values."""
    bits = torch.randint(0, 1 << 23, (count,), generator=generator, dtype=torch.int32)
    exponents = torch.randint(127 + lowest, 127 + highest, (count,), generator=generator, dtype=torch.int32) << 23
    kind = torch.arange(count) % 4
    bits = torch.where(kind == 0, 0x7FFFFF - bits % 3, torch.where(kind == 1, bits % 3, bits))
    peaks = ((bits & ~0xFFFF) | exponents).view(torch.float32)
    scales = torch.where(kind == 2, peaks / torch.tensor(element(name).max), (bits | exponents).view(torch.float32))
    return scales.clamp_min(2.0**-100)


def midpoints(name: str) -> torch.Tensor:
    """Every value of a format and what lies halfway between two of them."""
    row = element(name)
    numbers = (float(row.decode(code)) for code in row.codes)
    values = sorted({number for number in numbers if abs(number) <= row.max})
    grid = torch.tensor(values)
    return torch.cat((grid, (grid[1:] + grid[:-1]) / 2))


def at_midpoints() -> Iterator[tuple[str, int]]:
    """Float32 values about every midpoint and code, under scales of all sizes."""
    generator = torch.Generator().manual_seed(1)
    for name in FORMATS:
        points = midpoints(name).double()
        for lowest, highest in ((-12, 4), (-100, -55), (-100, 100)):
            scales = scales_near(name, lowest, highest, 8, generator)
            x = (points * scales[:, None].double()).float()
            x = (
                (x.view(torch.int32)[:, :, None] + torch.arange(-3, 4, dtype=torch.int32))
                .view(torch.float32)
                .flatten(1)
            )
            room = 1 << (x.shape[1] - 1).bit_length()
            x = torch.nn.functional.pad(torch.where(torch.isfinite(x), x, 0.0), (0, room - x.shape[1]), value=-0.0)
            expected = wanted(x, scales, name)
            for rows in (0, 4):
                found = codes_of(x, scales, name, static=False, fast=True, rows=rows)
                yield f"midpoints {name} 2**{lowest} to 2**{highest} {rows}", int((found != expected).sum())


@triton.jit
def quotients(x, scales, y, BLOCK: tl.constexpr):
    """Each value over its own scale."""
    at = tl.arange(0, BLOCK)
    tl.store(y + at, _quotient(tl.load(x + at), tl.load(scales + at), False))


def hard_quotients() -> Iterator[tuple[str, int]]:
    """Values and scales whose quotients are as near as can be to the middle between two floats: on either side."""
    source, x, s = random.Random(4), [], []
    while len(x) < 4096:
        scale = source.randrange((1 << 23) + 1, 1 << 24, 2)
        value = (
            source.choice((-3, -1, 1, 3)) * pow(1 << 25, -1, scale) % scale
        )  # value * 2**25 is 1 or 3 off a multiple
        if value >= 1 << 23 and (value << 25) // scale >= 1 << 24:
            x.append(value)
            s.append(scale)
    values, scales = torch.tensor(x).float() / 2**23, torch.tensor(s).float() / 2**23
    found = torch.empty(len(x))
    quotients[(1,)](values, scales, found, len(x))
    yield "hard quotients", int((found != values / scales).sum())
    every = (torch.arange(1 << 16, dtype=torch.int32) << 7 | 0x3F800000).view(torch.float32)
    for bits in (0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x3FFFFFFE, 0x3F92A9B7):
        scale = torch.full_like(every, torch.tensor(bits, dtype=torch.int32).view(torch.float32).item())
        found = torch.empty_like(every)
        quotients[(1,)](every, scale, found, len(every))
        yield f"hard scale {bits:#x}", int((found != every / scale).sum())


def every_bfloat16() -> Iterator[tuple[str, int]]:
    """All values of bfloat16, those far beyond the range, NaN and infinities included, under given scales."""
    generator = torch.Generator().manual_seed(2)
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    every = torch.where(torch.isfinite(every), every, 0.0)
    for name in FORMATS:
        scales = torch.cat((scales_near(name, -12, 4, 4, generator), scales_near(name, -90, 90, 3, generator)))
        scales = torch.cat((scales, torch.tensor([float("nan")])))
        x = every.expand(len(scales), -1).contiguous()
        x[-1, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        expected = wanted(x, scales, name)
        for fast in (False, True):
            for rows in (0, 2):
                found = codes_of(x, scales, name, static=True, fast=fast, rows=rows)
                yield f"bfloat16 {name} {'reciprocal' if fast else 'division'} {rows}", int((found != expected).sum())


def gates() -> Iterator[tuple[str, int]]:
    """A gate by whole tokens and in parts, of numbers that are apart or lie by turns: the same codes and scales."""
    generator = torch.Generator().manual_seed(3)
    layer = GpuLayer(Machine.imagined(target("sm_86")), Workspace(torch.device("cpu")))
    for dtype in (torch.float16, torch.float32):
        for k in (320, 1100):
            both = (3 * torch.randn(6, 2 * k, generator=generator)).to(dtype)
            both[1, 5], both[2, 9], both[3] = float("nan"), float("inf"), 0.0
            turns = both[:, ::2], both[:, 1::2]
            apart = turns[0].contiguous(), turns[1].contiguous()
            odd = torch.nn.functional.pad(both, (1, 1))
            shifted = odd[:, 1:-1:2], odd[:, 2:-1:2]  # no whole words
            plain = layer.gate(*apart)
            assert isinstance(plain, torch.Tensor)
            for label, pair in (("turns", turns), ("shifted", shifted)):
                found = layer.gate(*pair)
                assert isinstance(found, torch.Tensor)
                yield f"gate {label} {dtype} {k}", int((found.nan_to_num(7.0) != plain.nan_to_num(7.0)).sum())
            static = torch.tensor([0.03])
            for name in FORMATS:
                for spec, scale in ((ActSpec(name, "token"), None), (ActSpec(name, "tensor", dynamic=False), static)):
                    rounding = Rounding(spec, scale, "*u8", layer.machine)
                    later = rounding(plain)
                    for label, pair in (("apart", apart), ("turns", turns)):
                        for whole in (True, False):
                            row_tiles.GATES_WHOLE_FROM = 1 if whole else 1000
                            made = layer.gate(*pair, "silu", rounding)
                            assert isinstance(made, Rounded)
                            differ = int((made.codes != later.codes).sum())
                            differ += int((made.scales.nan_to_num(7e8) != later.scales.nan_to_num(7e8)).sum())
                            yield f"gate {spec} {label} {dtype} {k} {whole}", differ


if __name__ == "__main__":
    for case in (at_midpoints, hard_quotients, every_bfloat16, gates):
        for result in case():
            print(json.dumps(result), flush=True)
