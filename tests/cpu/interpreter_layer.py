"""The parts of a layer beside its linears in Triton's interpreter: run as a program it prints one result a line.

The interpreter adds bfloat16 wrongly, so everything here is float16 and float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import layer_oracle as oracle
import torch
import torch.nn.functional as F
from interpreter_cases import LINEARS, weight
from torch import Tensor

from isobit.formats.schemes import SCHEMES, ActSpec
from isobit.kernels.cached import rounded as as_cached
from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu import one_tiles
from isobit.kernels.gpu.bind import BoundLinear, bind
from isobit.kernels.gpu.configure import Call
from isobit.kernels.gpu.fits import Matrix
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.prepare import Narrowing
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.rows import variant
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.rounded import Rounded
from isobit.kernels.sequences import MANY
from isobit.targets.table import target

GENERATOR = torch.Generator().manual_seed(0)
MACHINE = Machine.imagined(target("sm_86"))
LAYER = GpuLayer(MACHINE, Workspace(torch.device("cpu")))


ACTIVATIONS = {
    "silu": F.silu, "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"), "gelu": F.gelu,
    "relu2": lambda g: F.relu(g).square(),
}  # fmt: skip


def _weight(size: int) -> torch.Tensor:
    return torch.rand(size, generator=GENERATOR) + 0.5


_RISING = torch.linspace(0.5, 1.5, 24)  # no weights at random: what is drawn behind them stays the same

# Sequences as (new tokens, length); a length of 0 is padding. Parts of the few have 128 keys, and of one each 256.
ATTENTIONS: dict[str, tuple[AttentionSpec, list[tuple[int, int]], int]] = {
    "decoding": (AttentionSpec(4, 2, 16), [(1, 600), (1, 5), (1, 0), (2, 257)], 32),
    "mixture": (
        AttentionSpec(4, 4, 24, q_norm=_weight(24), k_norm=_weight(24), eps=1e-5),
        [(1, 130), (70, 90), (4, 4), (1, 0), (9, 200)], 16,
    ),
    "window, cap, scale": (
        AttentionSpec(4, 2, 16, window=40, softcap=5.0, scale=0.3), [(1, 700), (70, 190), (3, 37), (33, 33)], 8
    ),
    "wide window": (AttentionSpec(2, 1, 16, window=300), [(1, 900), (66, 400)], 128),
    "one prompt": (AttentionSpec(2, 1, 80), [(80, 80)], 128),
    "cache in one piece": (AttentionSpec(2, 2, 64, window=200), [(1, 257), (1, 130)], 300),
    "heads in plenty": (AttentionSpec(20, 1, 16), [(1, 300), (2, 20)], 64),
    "one each": (AttentionSpec(4, 4, 16), [(1, n) for n in (600, 5, 0, 257, 1, 2, 513, 65, 64, 512)], 32),
    "one each, norms, window, cap": (
        AttentionSpec(2, 2, 24, q_norm=_RISING, k_norm=_RISING, eps=1e-5, window=40, softcap=5.0),
        [(1, n) for n in (300, 5, 0, 41, 32, 33)], 16,
    ),
    "one each, sinks, chunks": (
        AttentionSpec(4, 4, 16, sinks=torch.linspace(-3, 3, 4), chunk=48), [(1, n) for n in (300, 1, 49, 48, 97)], 64,
    ),
    "one each, in one piece": (AttentionSpec(2, 2, 20), [(1, 257), (1, 30), (1, 1)], 300),
    "one each, long": (AttentionSpec(2, 2, 16, window=600), [(1, 1100), (1, 513)], 256),
    "one each, parts of 512": (AttentionSpec(64, 64, 4), [(1, 1100), (1, 1025)], 64),
    "alone, in groups": (AttentionSpec(8, 2, 16), [(1, 300)], 32),
    "alone, in groups, norms, window, cap": (
        AttentionSpec(6, 2, 24, q_norm=_RISING, k_norm=_RISING, eps=1e-5, window=40, softcap=5.0), [(1, 200)], 16,
    ),
    "alone, in groups, sinks, in parts": (AttentionSpec(4, 1, 16, sinks=torch.linspace(-3, 3, 4)), [(1, 700)], 64),
    "alone, in groups, the first token": (AttentionSpec(4, 2, 16), [(1, 1)], 32),
    "one each, no whole words of codes": (AttentionSpec(2, 2, 18), [(1, 70), (1, 1)], 64),
    "partial rope": (AttentionSpec(4, 2, 24, rope_dims=12), [(1, 30), (20, 40), (1, 0)], 16),
    "neighbours, sinks, window": (
        AttentionSpec(6, 2, 16, rope_dims=8, interleaved=True, sinks=torch.tensor([0.3, -2.0, 4.0, 0.0, -50.0, 1.0]),
                      window=40), [(1, 700), (70, 190), (1, 0), (3, 37)], 16,
    ),
    "sinks in parts": (AttentionSpec(2, 1, 16, sinks=torch.tensor([2.0, -1.0])), [(1, 800), (2, 600), (9, 9)], 32),
    "chunks": (
        AttentionSpec(4, 2, 16, rope_dims=0, chunk=48, scaled=True), [(1, 700), (70, 190), (2, 97), (60, 60)], 16,
    ),
    "long chunks": (AttentionSpec(2, 2, 16, chunk=300), [(1, 900), (1, 301), (90, 340)], 128),
    "norm behind": (
        AttentionSpec(20, 4, 24, q_norm=_weight(24), k_norm=_weight(24), eps=1e-5, norm_behind=True),
        [(1, 20), (9, 30)], 16,
    ),
    "norm of all heads": (
        AttentionSpec(20, 4, 24, q_norm=_weight(480), k_norm=_weight(96), eps=1e-5, rope_dims=8),
        [(1, 20), (9, 30)], 16,
    ),
}  # fmt: skip


def attentions() -> Iterator[tuple[str, float]]:
    for name, (spec, sizes, block) in ATTENTIONS.items():
        for dtype in (torch.float32, torch.float16):
            given = oracle.batch(spec, sizes, block, dtype, 1)
            wanted, keys, values = oracle.attention(spec, given)
            found = LAYER.attention(spec, *given.arguments)  # type: ignore[arg-type]
            real = given.sequences.slots >= 0
            yield f"attention {dtype} {name}", oracle.error(found, wanted)
            yield f"stored {dtype} {name}", oracle.error(oracle.stored(given, given.keys), keys[real])
            same = torch.equal(oracle.stored(given, given.values).double(), values[real])
            yield f"same: values stored, {name} {dtype}", 0.0 if same and not bool(found[~real].any()) else 1.0


def stores_the_law(given: oracle.Batch, number: int, numbers: Tensor) -> bool:
    """Whether a cache holds of the new tokens' keys (or values) the bits of the law."""
    held, law = given.cached.parts[number].tensors, as_cached(numbers, given.form, numbers.dtype).tensors
    return all(torch.equal(oracle.stored(given, part), one) for part, one in zip(held, law, strict=True))


def coded() -> Iterator[tuple[str, float]]:
    """A cache of codes: what is stored are the bits of the law, and what is read is what they stand for."""
    names = {
        "e4m3fn": ("decoding", "mixture", "norm of all heads", "one each", "one each, norms, window, cap",
                   "alone, in groups"),
        "e5m2": ("one prompt", "one each, sinks, chunks", "one each, in one piece"),
        "int8": ("window, cap, scale", "chunks", "one each, long", "one each, no whole words of codes"),
    }  # fmt: skip
    for element, cases in names.items():
        for name in cases:
            spec, sizes, block = ATTENTIONS[name]
            for dtype in (torch.float32, torch.float16):
                given = oracle.batch(spec, sizes, block, dtype, 1, kv=element)
                wanted, _, _ = oracle.attention(spec, given)
                found = LAYER.attention(spec, *given.arguments)  # type: ignore[arg-type]
                yield f"coded {dtype} {element} {name}", oracle.error(found, wanted)
                real = given.sequences.slots >= 0
                same = stores_the_law(given, 1, given.v[real].view(-1, spec.kv_heads, spec.dim))
                yield f"same: codes of values, {name} {element} {dtype}", 0.0 if same else 1.0
                plain = oracle.batch(spec, sizes, block, dtype, 1)
                LAYER.attention(spec, *plain.arguments)  # type: ignore[arg-type]
                same = stores_the_law(given, 0, oracle.stored(plain, plain.keys))
                yield f"same: codes of keys, {name} {element} {dtype}", 0.0 if same else 1.0


def alone() -> Iterator[tuple[str, float]]:
    """Every sequence alone, and a prompt in two chunks: the same bits as together."""
    spec, sizes, block = ATTENTIONS["mixture"]
    given = oracle.batch(spec, sizes, block, torch.float16, 1)
    together = LAYER.attention(spec, *given.arguments)  # type: ignore[arg-type]
    starts = given.sequences.starts.tolist()
    pieces = [(b, starts[b], starts[b + 1], length) for b, (_, length) in enumerate(sizes)]
    pieces += [(1, starts[1], starts[1] + 37, 57), (1, starts[1] + 37, starts[2], 90)]
    for b, begin, end, length in pieces:
        own = slice(begin, end)
        one = replace(
            given.sequences, starts=torch.tensor([0, end - begin]).int(), lengths=torch.tensor([length]).int(),
            table=given.sequences.table[b : b + 1], slots=given.sequences.slots[own], most_new=end - begin,
            most=max(1, length),
        )  # fmt: skip
        parts = (part[own] for part in (given.q, given.k, given.v, given.cos, given.sin))
        found = LAYER.attention(spec, *parts, given.cached, one)
        yield f"same: {end - begin} of {length} tokens alone", 0.0 if torch.equal(found, together[own]) else 1.0


def prompts() -> Iterator[tuple[str, float]]:
    """Prompts alone, and padding behind them, where the host says so and where it does not: the same bits."""
    for name in ("mixture", "window, cap, scale", "neighbours, sinks, window", "norm of all heads"):
        spec, _, block = ATTENTIONS[name]
        given = oracle.batch(spec, [(20, 70), (9, 9), (8, 300), (11, 0)], block, torch.float16, 1)
        found = []
        for least in (1, MANY):
            sequences = replace(given.sequences, least_new=least)
            found.append(LAYER.attention(spec, *replace(given, sequences=sequences).arguments))  # type: ignore[arg-type]
        yield f"same: prompts alone, {name}", 0.0 if torch.equal(*found) else 1.0


def _spread(ahead, attention, rope, parts, *machine):
    return one_tiles.OneShape(attention, rope, ahead, parts > 1)


def spreads() -> Iterator[tuple[str, float]]:
    """How a step of one token each is spread over a machine: the same bits, beside prompts as well."""
    wanted, chosen = {}, one_tiles.spread
    for name in ("one each", "one each, norms, window, cap", "one each, sinks, chunks"):
        spec, sizes, block = ATTENTIONS[name]
        short = [(1, length) for _, length in sizes if length <= tiles.ONE_PART]
        for some, prompts in ((sizes, []), (sizes, [(3, 20)]), (short, [])):
            for ahead in (1, 2):
                one_tiles.spread = partial(_spread, ahead)
                given = oracle.batch(spec, some + prompts, block, torch.float16, 1)
                found = LAYER.attention(spec, *given.arguments)[: len(some)]  # type: ignore[arg-type]
                same = torch.equal(wanted.setdefault((name, len(prompts), len(some)), found), found)
                yield f"same: spread, {name} {len(some)} {len(prompts)} {ahead}", 0.0 if same else 1.0
    one_tiles.spread = chosen


def alike() -> Iterator[tuple[str, float]]:
    """A prompt at once, its last tokens one by one, and among others: the same bits where that is asked for.

    Tokens alone share parts of 256 keys among programs, which the prompt adds up as it goes.
    """
    layer = GpuLayer(MACHINE, LAYER.workspace, alike=True)
    plain = AttentionSpec(2, 1, 16, window=100)
    sinks = AttentionSpec(2, 1, 16, sinks=torch.tensor([0.3, 4.0]))
    for spec, dtype, element in (
        (plain, torch.float32, ""), (plain, torch.float16, ""), (sinks, torch.float16, ""),
        (sinks, torch.float16, "e4m3fn"),
    ):  # fmt: skip
        given = oracle.batch(spec, [(1, 0), (270, 270), (1, 600)], 32, dtype, 2, kv=element)
        together = layer.attention(spec, *given.arguments)  # type: ignore[arg-type]
        wanted, _, _ = oracle.attention(spec, given)
        name = f"{dtype}{' coded' * bool(element)}{' sinks' * (spec.sinks is not None)}"
        yield f"attention {name} alike", oracle.error(together, wanted)
        for position in (3, 63, 64, 255, 256, 269):
            own = slice(1 + position, 2 + position)
            one = replace(
                given.sequences, starts=torch.tensor([0, 1]).int(), lengths=torch.tensor([position + 1]).int(),
                table=given.sequences.table[1:2], slots=given.sequences.slots[own], most_new=1, most=position + 1,
            )  # fmt: skip
            parts = (part[own] for part in (given.q, given.k, given.v, given.cos, given.sin))
            found = layer.attention(spec, *parts, given.cached, one)
            if dtype == torch.float32:  # the bits of NumPy's products depend on a row's place
                continue
            yield f"same: alike, {name} {position}", 0.0 if torch.equal(found, together[own]) else 1.0


def rows() -> Iterator[tuple[str, float]]:
    for dtype in (torch.float32, torch.float16):
        for k in (320, 1100, 17000):  # a part, several, more than a program holds
            x, delta = (torch.randn(3, k, generator=GENERATOR).to(dtype) for _ in range(2))
            x[1, 3] = 60.0
            weight = _weight(k)
            total, normed = LAYER.add_norm(x, delta, weight, 1e-5)
            assert isinstance(normed, torch.Tensor)
            yield f"same: sum {dtype} {k}", 0.0 if torch.equal(total, x + delta) else 1.0
            wanted = F.rms_norm(total.double(), (k,), weight.double(), 1e-5)
            yield f"row {dtype} add, norm {k}", oracle.error(normed, wanted)
            for bias in (None, _weight(k)):
                shifted = x + 2  # a mean that is not about zero
                total, normed = LAYER.add_norm(shifted, delta, weight, 1e-5, bias=bias, centred=True)
                assert isinstance(normed, torch.Tensor)
                wide = None if bias is None else bias.double()
                wanted = F.layer_norm(total.double(), (k,), weight.double(), wide, 1e-5)
                yield f"row {dtype} LayerNorm {k} {bias is not None}", oracle.error(normed, wanted)
                rounding = Rounding(ActSpec("int8", "token"), None, "*fp16", MACHINE)
                codes = LAYER.norm(total, weight, 1e-5, rounding, bias=bias, centred=True)
                assert isinstance(codes, Rounded)
                same = torch.equal(codes.codes, rounding(normed).codes)
                yield f"same: rounded LayerNorm {dtype} {k} {bias is not None}", 0.0 if same else 1.0
            for name, activation in ACTIVATIONS.items():
                both = torch.cat((3 * x, delta), dim=-1)  # as one product of both leaves them
                found, alone = LAYER.gate(both[:, :k], both[:, k:], name), LAYER.gate(both[:, :k], None, name)
                assert isinstance(found, torch.Tensor) and isinstance(alone, torch.Tensor)
                yield f"row {dtype} {name} {k}", oracle.error(found, activation((3 * x).double()) * delta.double())
                yield f"row {dtype} {name} alone {k}", oracle.error(alone, activation((3 * x).double()))
            found, g, u = LAYER.gate(3 * x, 4 * delta, limit=7.0), (3 * x).double(), (4 * delta).double()
            assert isinstance(found, torch.Tensor)
            g, u = g.clamp(max=7.0), u.clamp(-7.0, 7.0)
            yield f"row {dtype} limited {k}", oracle.error(found, (u + 1) * g * torch.sigmoid(1.702 * g))
            x[2, 5] = float("nan")
            for name, same in rounded(x, delta, weight):
                yield f"same: rounded {name} {dtype} {k}", 0.0 if same else 1.0


def rounded(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[str, bool]]:
    """What is rounded where it is made, beside what is rounded later."""
    static = torch.tensor([0.03])
    plain = LAYER.norm(x, weight, 1e-5), LAYER.add_norm(x, delta, weight, 1e-5)[1], LAYER.gate(x, delta)
    for element in ("e4m3fn", "e5m2", "int8"):
        specs = [(ActSpec(element, "token"), None), (ActSpec(element, "tensor", dynamic=False), static)]
        specs += [(ActSpec(element, "group", 64), None)] if x.shape[-1] % 64 == 0 else []
        for spec, scale in specs:
            for operand in ("*u8", "*fp16"):
                rounding = Rounding(spec, scale, operand, MACHINE)
                made = (
                    LAYER.norm(x, weight, 1e-5, rounding), LAYER.add_norm(x, delta, weight, 1e-5, rounding)[1],
                    LAYER.gate(x, delta, "silu", rounding),
                )  # fmt: skip
                for what, one, other in zip(("norm", "add, norm", "gate"), made, plain, strict=True):
                    assert isinstance(one, Rounded) and isinstance(other, torch.Tensor)
                    later = rounding(other)
                    same = one.key == later.key and torch.equal(one.codes, later.codes)
                    same &= torch.equal(one.scales.nan_to_num(7e8), later.scales.nan_to_num(7e8))
                    yield f"{what} {spec} {operand}", same


def narrowed() -> Iterator[tuple[str, float]]:
    """What is narrowed where it is made, beside what is narrowed later, and that beside its law."""
    for dtype in (torch.float32, torch.float16):
        for k in (320, 1100, 17000):
            matrix = Matrix(64, k, SCHEMES["int4"].weights)
            narrowing = Narrowing(variant("narrow-bf16"), Call(matrix, "bfloat16", 1024), MACHINE)
            x, delta = (torch.randn(18, k, generator=GENERATOR).to(dtype) for _ in range(2))
            x[1], x[2], x[3, 5], x[4, 6], x[5] = 1e-7, 0.0, float("inf"), float("nan"), x[5] * 1000
            peak = x.float().abs().view(torch.int32).amax(-1, keepdim=True)  # infinity and NaN are the largest
            power = ((peak >> 23) - 14).clamp(min=1)
            scale, down = (power << 23).view(torch.float32), ((254 - power) << 23).view(torch.float32)
            later = narrowing(x)
            same = torch.equal(later.scales, scale) and _equal(later.codes, (x.float() * down).half())
            yield f"same: narrowed by the law {dtype} {k}", 0.0 if same else 1.0
            weight, bias, both = _weight(k), _weight(k), torch.cat((x, delta), dim=-1)
            turns = both.view(18, 2, k).transpose(1, 2).reshape(18, 2 * k)
            made: dict[str, tuple[object, object]] = {
                "norm": tuple(LAYER.norm(x, weight, 1e-5, how) for how in (narrowing, None)),
                "LayerNorm": tuple(
                    LAYER.norm(x, weight, 1e-5, how, bias=bias, centred=True) for how in (narrowing, None)
                ),
                "sum": tuple(LAYER.add_norm(x, delta, weight, 1e-5, how)[1] for how in (narrowing, None)),
                "gate": tuple(LAYER.gate(x, delta, "silu", how) for how in (narrowing, None)),
                "gate by turns": tuple(
                    LAYER.gate(turns[:, ::2], turns[:, 1::2], "silu", how) for how in (narrowing, None)
                ),
                "gate of few": tuple(LAYER.gate(x[:3], delta[:3], "silu", how) for how in (narrowing, None)),
            }
            for name, (found, plain) in made.items():
                assert isinstance(found, Rounded) and isinstance(plain, Tensor)
                wanted = narrowing(plain)
                same = found.key == wanted.key and torch.equal(found.scales, wanted.scales)
                yield f"same: narrowed {name} {dtype} {k}", 0.0 if same and _equal(found.codes, wanted.codes) else 1.0


def _equal(one: Tensor, other: Tensor) -> bool:
    """The same numbers, and none in the same places."""
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(7e4, posinf=8e4), other.nan_to_num(7e4, posinf=8e4))


def finished() -> Iterator[tuple[str, float]]:
    """Residuals and gates in a linear's own launch, beside launches of their own."""
    for name in ("f16", "fp8", "fp8-e5m2", "int8", "int4", "int4-asym", "int3", "fp8-block"):
        for lowering in ("sm_86", "sm_75"):
            bound, k = linear(name, lowering)
            layer = GpuLayer(bound.machine, bound.workspace)
            for tokens in (1, 3, 18):
                x = torch.randn(tokens, k, generator=GENERATOR).half()
                plain, residual = bound(x), torch.randn(tokens, bound.held.n, generator=GENERATOR).half()
                label, added = f"{name} {lowering} {tokens}", bound(x, residual)
                yield f"same: residual of {label}", 0.0 if torch.equal(added, residual + plain) else 1.0
                row = bound.variant(tokens, x.dtype)
                for activation in ("silu", "gelu_tanh"):
                    gated = bound.gated(x, activation)
                    if row is not None and row.family == "many":
                        same = gated is None
                    else:
                        wanted = layer.gate(plain[:, ::2], plain[:, 1::2], activation)
                        assert gated is not None and isinstance(wanted, torch.Tensor)
                        same = torch.equal(gated.nan_to_num(1.5), wanted.nan_to_num(1.5))  # e5m2's largest overflow
                    yield f"same: {activation} of {label}", 0.0 if same else 1.0


def linear(name: str, lowering: str) -> tuple[BoundLinear, int]:
    """A linear of gates and values by turns, of sizes that fill no tile."""
    n, k = (130, 256) if name == "fp8-block" else (70, 640 if name == "int3" else 256)
    if name == "f16":
        return bind(torch.randn(n, k, generator=GENERATOR).half(), None, None, None, target=target(lowering)), k
    spec, acts, _ = LINEARS[name]
    packed, bias = weight(spec, n, k, GENERATOR), torch.randn(n, generator=GENERATOR)
    return bind(packed, acts, None, bias, target=target(lowering)), k


def in_parts() -> Iterator[tuple[str, float]]:
    """Few long tokens rounded by several programs each."""
    for k in (1024, 2100):
        x = torch.randn(3, k, generator=GENERATOR) * 5
        x[1, 7], x[2] = float("inf"), 0.0
        for element in ("e4m3fn", "int8"):
            for spec, scale in ((ActSpec(element, "token"), None), (ActSpec(element, "tensor", dynamic=False), 0.25)):
                rounding = Rounding(spec, None if scale is None else torch.tensor([scale]), "*fp16", MACHINE)
                found, wanted = LAYER.round(x, rounding), rounding(x)
                same = torch.equal(found.codes, wanted.codes)
                same &= torch.equal(found.scales.nan_to_num(7e8), wanted.scales.nan_to_num(7e8))
                yield f"same: in parts {spec} {k}", 0.0 if same else 1.0


if __name__ == "__main__":
    for case in (attentions, coded, alone, prompts, spreads, alike, rows, narrowed, finished, in_parts):
        for result in case():
            print(json.dumps(result), flush=True)
