"""The parts of a decoder layer on the CPU kernels, each instruction set against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from ragged import ragged
from torch import Tensor

from isobit.errors import IsobitError
from isobit.kernels.cached import Cached
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)


@pytest.fixture(params=cpu_library.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_library.isa()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def test_exponentials_are_within_one_ulp() -> None:
    x = torch.linspace(-87.3, 88.7, 400_001)
    wanted = x.double().exp()
    ulp = torch.nextafter(wanted.float(), torch.tensor(math.inf)).double() - wanted.float().double()
    assert float(((cpu_layer.exp(x).double() - wanted).abs() / ulp).max()) <= 1.0


def test_exponentials_at_the_ends() -> None:
    x = torch.tensor([math.inf, -math.inf, -1e30, 88.8, 0.0, -0.0, -103.9, -95.0])
    torch.testing.assert_close(cpu_layer.exp(x), x.exp(), rtol=1e-6, atol=1.5e-45)
    assert torch.isnan(cpu_layer.exp(torch.full((37,), math.nan))).all()


@pytest.mark.parametrize(("rows", "k"), [(1, 2048), (3, 37), (70, 200), (1, 1)])
def test_norm_with_and_without_a_residual(rows: int, k: int) -> None:
    x, delta, weight = normal(rows, k), normal(rows, k, seed=1), normal(k)
    total, found = cpu_layer.add_norm(x, delta, NormSpec(weight, 1e-5))
    assert torch.equal(total, x + delta) and torch.equal(cpu_layer.add(x, delta), x + delta)
    for given, y in ((x, cpu_layer.norm(x, NormSpec(weight, 1e-5))), (total, found)):
        wanted = F.rms_norm(given.double(), (k,), weight.double(), 1e-5)
        assert float((y - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize(("rows", "k"), [(1, 2048), (3, 37), (70, 200)])
@pytest.mark.parametrize("biased", [False, True])
def test_layer_norm(rows: int, k: int, biased: bool) -> None:
    x, weight, bias = normal(rows, k) + 3, normal(k), normal(k, seed=1) if biased else None
    wanted = F.layer_norm(x.double(), (k,), weight.double(), None if bias is None else bias.double(), 1e-5)
    found = cpu_layer.norm(x, NormSpec(weight, 1e-5, bias, centred=True))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    total, behind = cpu_layer.add_norm(x, x, NormSpec(weight, 1e-5, bias, centred=True))
    assert torch.equal(total, 2 * x) and float((behind - wanted).norm() / wanted.norm()) < 1e-4  # another epsilon


def test_what_a_sigmoid_lets_through() -> None:
    x, weight, y = normal(5, 70), normal(70) / 8, normal(5, 30)
    wanted = y.double() * torch.sigmoid(x.double() @ weight.double())[:, None]
    torch.testing.assert_close(cpu_layer.gate_by(x, weight, y).double(), wanted, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 5632), (9, 33), (300, 64)])
def test_the_gate(shape: tuple[int, int]) -> None:
    gate, up = 20 * normal(*shape), normal(*shape, seed=1)
    wanted = F.silu(gate.double()) * up.double()
    torch.testing.assert_close(cpu_layer.gate(gate, up).double(), wanted, rtol=1e-6, atol=1e-37)
    # An error of GELU's exponent, which grows with the cube of what is negative, is one of the small result.
    for name, act in (("gelu_tanh", partial(F.gelu, approximate="tanh")), ("gelu", F.gelu)):
        wanted = act(gate.double())
        torch.testing.assert_close(cpu_layer.activate(gate, name).double(), wanted, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(cpu_layer.gate(gate, up, name).double(), wanted * up.double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(cpu_layer.activate(gate, "relu2"), F.relu(gate).square(), rtol=1e-6, atol=0)
    gate = gate.clamp(min=-40)
    low, high = gate.double().clamp(max=7), up.double().clamp(-7, 7)
    wanted = (high + 1) * low * torch.sigmoid(1.702 * low)
    torch.testing.assert_close(cpu_layer.gate(gate, up, limit=7.0).double(), wanted, rtol=1e-5, atol=1e-37)


def test_the_gate_at_the_ends() -> None:
    x = torch.tensor([1e20, -1e20, 88.0, -88.0, -15.0, 0.0, -0.0, math.inf])
    for activation in ("silu", "gelu_tanh", "gelu"):
        wanted = torch.tensor([1e20, 0.0, 88.0, 0.0, 0.0, 0.0, 0.0, math.inf])
        found = cpu_layer.gate(x, torch.ones_like(x), activation)
        torch.testing.assert_close(found, wanted, rtol=0, atol=6e-6)
        assert torch.isnan(cpu_layer.gate(torch.full((37,), math.nan), torch.ones(37), activation)).all()


def test_capped_scores_are_those_of_float64() -> None:
    """One key whose value is one among zeros: what it weighs tells its score. Small scores keep their digits."""
    dim, softcap = 64, 30.0
    heads = AttentionSpec(1, 1, dim, scale=1.0, softcap=softcap)
    scores = torch.cat((torch.logspace(-5, 3, 400), -torch.logspace(-5, 1.3, 400), torch.tensor([0.0, 18.74, 18.76])))
    count = len(scores)
    q, k, v = torch.zeros(2 * count, dim), torch.zeros(2 * count, dim), torch.zeros(2 * count, dim)
    q[1::2, 0], k[1::2, 0], v[1::2, 0] = scores, 1.0, 1.0  # behind a key with score 0
    keys, values = torch.zeros(count, 1, 2, dim), torch.zeros(count, 1, 2, dim)
    rotation = torch.ones(2 * count, dim), torch.zeros(2 * count, dim)
    found = cpu_layer.attention(heads, q, k, v, *rotation, Cached(keys, values), ragged([2] * count, [0] * count, 2))[
        1::2, 0
    ]
    wanted = torch.sigmoid(softcap * torch.tanh(scores.double() / softcap))
    small = scores.abs() < 1
    for those, most in ((small, 2.5e-7), (~small, 6e-6)):
        torch.testing.assert_close(found[those].double(), wanted[those], rtol=most, atol=0)


def by_definition(
    heads: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    past: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, keys and values in float64."""
    tokens = q.shape[1]

    def prepared(x: Tensor, weight: Tensor | None) -> Tensor:
        x = x.double().unflatten(-1, (-1, heads.dim))
        if weight is not None:
            x = F.rms_norm(x, (heads.dim,), weight.double(), heads.eps)
        first, second = x.chunk(2, -1)
        return x * cos.double()[:, None] + torch.cat((-second, first), -1) * sin.double()[:, None]

    keys, values = keys.double(), values.double()
    keys[:, :, past : past + tokens] = prepared(k, heads.k_norm).transpose(1, 2)
    values[:, :, past : past + tokens] = v.double().unflatten(-1, (-1, heads.dim)).transpose(1, 2)
    at, key = torch.arange(past, past + tokens)[:, None], torch.arange(past + tokens)[None]
    seen = (key <= at) & (key > at - (heads.window or past + tokens))
    group = heads.heads // heads.kv_heads
    all_keys, all_values = (x[:, :, : past + tokens].repeat_interleave(group, 1) for x in (keys, values))
    scores = prepared(q, heads.q_norm).transpose(1, 2) @ all_keys.transpose(2, 3) * heads.factor
    if heads.softcap is not None:
        scores = heads.softcap * torch.tanh(scores / heads.softcap)
    out = scores.masked_fill(~seen, -math.inf).softmax(-1) @ all_values
    return out.transpose(1, 2).flatten(2), keys, values


# batch, tokens, past, heads, kv_heads, dim, window, norms, softcap
CASES = [
    (1, 1, 0, 4, 2, 64, None, False, None),
    (1, 1, 700, 32, 4, 64, None, False, None),  # keys in two chunks
    (2, 5, 600, 6, 2, 80, None, True, None),
    (1, 17, 0, 4, 4, 96, None, False, None),
    (1, 130, 77, 8, 2, 128, None, False, None),
    (2, 33, 100, 4, 1, 256, 40, False, None),
    (1, 3, 2000, 4, 2, 32, 100, False, None),
    (1, 200, 0, 4, 2, 40, 64, True, None),
    (1, 1, 1300, 4, 4, 128, None, True, None),  # one query row: keys as they lie
    (2, 70, 3, 4, 2, 50, 1, False, None),
    (1, 1, 700, 4, 2, 64, None, False, 1.0),
    (2, 70, 500, 4, 1, 80, 200, True, 5.0),
    (1, 20, 0, 2, 2, 256, None, False, 50.0),
    (1, 1, 5, 194, 2, 16, None, False, None),  # more rows than a piece has
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case: tuple[int, int, int, int, int, int, int | None, bool, float | None]) -> None:
    batch, tokens, past, count, kv, dim, window, norms, softcap = case
    weights = (normal(dim), normal(dim, seed=1)) if norms else (None, None)
    scale = None if softcap is None else 0.5
    heads = AttentionSpec(count, kv, dim, window, *weights, 1e-6, scale, softcap)
    q, k, v = (normal(batch, tokens, n * dim, seed=i) for i, n in enumerate((count, kv, kv)))
    angles = normal(tokens, dim // 2).repeat(1, 2)
    keys, values = (torch.full((batch, kv, past + tokens + 3, dim), math.nan) for _ in range(2))
    keys[:, :, :past], values[:, :, :past] = normal(batch, kv, past, dim), normal(batch, kv, past, dim, seed=1)
    wanted = by_definition(heads, q, k, v, angles.cos(), angles.sin(), keys, values, past)
    flat = (part.flatten(0, 1) for part in (q, k, v))
    rotation = angles.cos().repeat(batch, 1), angles.sin().repeat(batch, 1)
    sequences = ragged([tokens] * batch, [past] * batch, past + tokens + 3)
    # What is behind the valid keys is NaN, and must not be read.
    found = cpu_layer.attention(heads, *flat, *rotation, Cached(keys, values), sequences).unflatten(0, (batch, tokens))
    for part, right in zip((found, keys, values), wanted, strict=True):
        torch.testing.assert_close(part.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 40])
def test_attention_does_not_depend_on_the_number_of_threads(tokens: int) -> None:
    before, found = cpu_library.threads(), []
    for threads in (1, 3):
        cpu_library.set_threads(threads)
        q, k, v = (normal(tokens, n * 64, seed=i) for i, n in enumerate((8, 2, 2)))
        keys, values = (normal(1, 2, 1100, 64, seed=i) for i in (5, 6))
        rotation = torch.ones(tokens, 64), torch.zeros(tokens, 64)
        sequences = ragged([tokens], [1000], 1100)
        found.append(cpu_layer.attention(AttentionSpec(8, 2, 64), q, k, v, *rotation, Cached(keys, values), sequences))
    cpu_library.set_threads(before)
    assert torch.equal(*found)


def test_a_full_cache_is_refused() -> None:
    q, k = torch.zeros(2, 64), torch.zeros(2, 64)
    full = torch.zeros(1, 1, 8, 64)
    sequences = replace(ragged([2], [6], 8), lengths=torch.tensor([9], dtype=torch.int32))
    with pytest.raises(IsobitError, match="no room"):
        cpu_layer.attention(
            AttentionSpec(1, 1, 64), q, k, k, torch.ones(2, 64), torch.ones(2, 64), Cached(full, full), sequences
        )
