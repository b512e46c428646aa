"""Sequences of different lengths in one call of the CPU kernels: each gives the bits that it gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from ragged import blocks_of, got, put, ragged
from torch import Tensor

from isobit.errors import FormatError, IsobitError, Unsupported
from isobit.formats.schemes import scheme
from isobit.kernels.cached import Cached
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.cpu.stack import CpuStack, LayerParts, MlpParts, Places
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec
from isobit.kernels.sequences import Sequences
from isobit.quantizer.grid import quantize_weight

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)

# New tokens and those before them: prompts, a part of one, and single tokens on both sides of where keys are cut.
MIXTURE = [(1, 63), (300, 0), (1, 0), (5, 0), (1, 64), (17, 500), (1, 511), (1, 699), (3, 600), (1, 350)]
FRESH, PAST = [fresh for fresh, _ in MIXTURE], [past for _, past in MIXTURE]


@pytest.fixture(params=cpu_library.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_library.isa()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * seed + sum(shape)))


@dataclass(frozen=True)
class Tokens:
    """A sequence: its new tokens, and what its cache holds of the earlier ones ``[kv_heads, past, dim]``."""

    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor


def tokens(spec: AttentionSpec, fresh: int, past: int, seed: int) -> Tokens:
    q, k, v = (
        normal(fresh, n * spec.dim, seed=seed + i) for i, n in enumerate((spec.heads, spec.kv_heads, spec.kv_heads))
    )
    angles = normal(fresh, spec.dim // 2, seed=seed).repeat(1, 2)
    keys, values = (normal(spec.kv_heads, past, spec.dim, seed=seed + i) for i in (3, 4))
    return Tokens(q, k, v, angles.cos(), angles.sin(), keys, values)


def run(
    spec: AttentionSpec, all_tokens: list[Tokens], sequences: Sequences, blocks: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Output, keys and values of each sequence; what is not of the past is NaN before, and must not be read."""
    keys, values = (torch.full((blocks, spec.kv_heads, sequences.block, spec.dim), torch.nan) for _ in range(2))
    for number, part in enumerate(all_tokens):
        put(keys, sequences, number, part.keys)
        put(values, sequences, number, part.values)
    flat = (torch.cat([getattr(part, name) for part in all_tokens]) for name in ("q", "k", "v", "cos", "sin"))
    out = cpu_layer.attention(spec, *flat, Cached(keys, values), sequences)
    parts = out.split([part.q.shape[0] for part in all_tokens])
    return [(part, got(keys, sequences, i), got(values, sequences, i)) for i, part in enumerate(parts)]


def same(found: list[tuple[Tensor, ...]], wanted: list[tuple[Tensor, ...]]) -> bool:
    return all(
        torch.equal(a, b) for one, other in zip(found, wanted, strict=True) for a, b in zip(one, other, strict=True)
    )


KINDS: list[dict[str, Any]] = [{}, {"window": 100}, {"softcap": 5.0, "scale": 0.3}, {"window": 64, "softcap": 20.0}]


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_a_mixture_gives_each_sequence_the_bits_it_gives_alone(group: int, dim: int) -> None:
    more = KINDS[(group.bit_length() + dim // 16) % 4]
    norms = {"q_norm": normal(dim), "k_norm": normal(dim, seed=1), "eps": 1e-6} if group % 4 else {}
    spec = AttentionSpec(2 * group, 2, dim, **more, **norms)
    parts = [tokens(spec, fresh, past, 10 * i) for i, (fresh, past) in enumerate(MIXTURE)]
    wanted = [run(spec, [part], ragged([part.q.shape[0]], [part.keys.shape[1]], 707), 1)[0] for part in parts]
    before = cpu_library.threads()
    for block, seed, threads in ((707, None, 2), (64, 1, 3), (64, 2, 1), (192, 3, 2)):
        cpu_library.set_threads(threads)
        sequences = ragged(FRESH, PAST, block, spare=3, seed=seed)
        assert same(run(spec, parts, sequences, blocks_of(sequences, 3)), wanted), (block, threads)
    cpu_library.set_threads(before)


def test_order_and_company_do_not_matter() -> None:
    spec = AttentionSpec(4, 1, 64)
    parts = [tokens(spec, fresh, past, 10 * i) for i, (fresh, past) in enumerate(MIXTURE)]
    wanted = run(spec, parts, ragged(FRESH, PAST, 128), blocks_of(ragged(FRESH, PAST, 128)))
    for kept in ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [1, 7], [7, 0, 2, 4], [5]):
        sequences = ragged([FRESH[i] for i in kept], [PAST[i] for i in kept], 64, seed=4)
        assert same(run(spec, [parts[i] for i in kept], sequences, blocks_of(sequences)), [wanted[i] for i in kept])


def test_sixty_four_decoding_sequences_and_a_prompt() -> None:
    spec = AttentionSpec(4, 2, 64)
    mixture = [(1, 11 * i) for i in range(64)] + [(200, 0)]
    parts = [tokens(spec, fresh, past, 10 * i) for i, (fresh, past) in enumerate(mixture)]
    sequences = ragged([fresh for fresh, _ in mixture], [past for _, past in mixture], 64, seed=5)
    found = run(spec, parts, sequences, blocks_of(sequences))
    for number in (0, 6, 31, 63, 64):
        part = parts[number]
        alone = run(spec, [part], ragged([part.q.shape[0]], [part.keys.shape[1]], 707), 1)
        assert same([found[number]], alone), number


def stack_of(architecture: dict[str, Any], after: bool) -> CpuStack:
    """Two layers whose activations are rounded, so that linears too give the same bits in any mixture."""
    hidden, inner, row = 96, 160, scheme("int8")
    assert row.weights is not None
    spec = AttentionSpec(4, 2, 64, **architecture)
    shapes = [
        (256, hidden),
        (128, hidden),
        (128, hidden),
        (hidden, 256),
        (inner, hidden),
        (inner, hidden),
        (hidden, inner),
    ]
    layers = []
    for layer in range(2):
        weights = [normal(*shape, seed=10 * layer + i) / 10 for i, shape in enumerate(shapes)]
        quantized = [quantize_weight(w, row.weights, search="absmax", scale_dtype=torch.bfloat16) for w in weights]
        q, k, v, o, gate, up, down = (cpu.bind(weight, row.activations, None, None) for weight in quantized)
        norms = [NormSpec(normal(hidden, seed=i), 1e-5) for i in range(4 if after else 2)]
        mlp = MlpParts(up, down, gate, "gelu_tanh" if after else "silu")
        layers.append(LayerParts((q, k, v, o), spec, mlp, *norms))
    return CpuStack(layers)


@pytest.mark.parametrize("after", [False, True])
def test_whole_layers_too(after: bool) -> None:
    architecture: dict[str, Any] = {"softcap": 8.0, "scale": 0.2, "window": 200} if after else {}
    stack, heads = stack_of(architecture, after), AttentionSpec(4, 2, 64)
    inputs = [
        (normal(fresh, 96, seed=i), tokens(heads, fresh, past, 10 * i)) for i, (fresh, past) in enumerate(MIXTURE)
    ]

    def through(kept: list[int], block: int, seed: int | None) -> list[Tensor]:
        sequences = ragged([FRESH[i] for i in kept], [PAST[i] for i in kept], block, seed=seed)
        keys, values = (torch.full((2, blocks_of(sequences), 2, block, 64), torch.nan) for _ in range(2))
        for number, i in enumerate(kept):
            for layer in range(2):
                put(keys[layer], sequences, number, inputs[i][1].keys)
                put(values[layer], sequences, number, inputs[i][1].values)
        x = torch.cat([inputs[i][0] for i in kept])
        cos, sin = (torch.cat([getattr(inputs[i][1], name) for i in kept]) for name in ("cos", "sin"))
        before = x.clone()
        y = stack.run(x, [Places(cos, sin)], Cached(keys, values), sequences, keys[0, ..., 0].numel())
        assert torch.equal(x, before) and y.isfinite().all()
        return list(y.split([FRESH[i] for i in kept]))

    wanted = [through([i], 707, None)[0] for i in range(len(MIXTURE))]
    for block, seed in ((707, None), (64, 6)):
        found = through(list(range(len(MIXTURE))), block, seed)
        assert all(map(torch.equal, found, wanted))


def test_padding_gives_zeros_and_is_not_stored() -> None:
    spec = AttentionSpec(4, 2, 64)
    parts = [tokens(spec, fresh, past, 10 * i) for i, (fresh, past) in enumerate([(1, 70), (1, 5), (1, 90)])]
    sequences = ragged([1, 1, 1], [70, 5, 90], 128)
    wanted = run(spec, parts, sequences, 3)
    empty = replace(sequences, lengths=sequences.lengths * torch.tensor([1, 0, 1], dtype=torch.int32))
    empty = replace(empty, slots=torch.where(torch.tensor([False, True, False]), -1, sequences.slots))
    found = run(spec, parts, empty, 3)
    assert same([found[0], found[2]], [wanted[0], wanted[2]])
    assert torch.equal(found[1][0], torch.zeros(1, 256))


# One new token behind 69, one behind 4, and two behind 128, in six blocks of 64.
RIGHT: dict[str, Any] = {
    "starts": [0, 1, 2, 4],
    "lengths": [70, 5, 130],
    "table": [[0, 1, -1], [2, -1, -1], [3, 4, 5]],
    "slots": [69, 132, 320, 321],
}
HOSTILE: dict[str, tuple[str, dict[str, Any]]] = {
    "starts that go back": ("ends before it starts", {"starts": [0, 3, 2, 4]}),
    "starts beyond the tokens": ("last one", {"starts": [0, 1, 2, 5]}),
    "a first token of nobody": ("first token", {"starts": [1, 1, 2, 4]}),
    "a length below the new tokens": ("shorter than its new tokens", {"lengths": [70, 5, 1]}),
    "a negative length": ("shorter than its new tokens", {"lengths": [-70, 5, 130]}),
    "more than the table has": ("no room", {"lengths": [70, 5, 300]}),
    "a block beyond the cache": ("block that the cache does not have", {"table": [[0, 1, -1], [2, -1, -1], [3, 6, 5]]}),
    "a negative block": ("block that the cache does not have", {"table": [[-1, 1, -1], [2, -1, -1], [3, 4, 5]]}),
    "a slot of another": ("a slot is not where", {"slots": [69, 69, 320, 321]}),
    "a slot far away": ("a slot is not where", {"slots": [2**62, 132, 320, 321]}),
    "a token without a slot": ("a slot is not where", {"slots": [69, -1, 320, 321]}),
    "padding with a slot": ("padding has a slot", {"lengths": [0, 5, 130]}),
    "a block of two": ("the same block", {"table": [[0, 1, -1], [1, -1, -1], [3, 4, 5]], "slots": [69, 68, 320, 321]}),
}


def sequences_of(arrays: dict[str, Any], block: int = 64) -> Sequences:
    dtypes = {"slots": torch.int64}
    parts = {name: torch.tensor(value, dtype=dtypes.get(name, torch.int32)) for name, value in arrays.items()}
    return Sequences(**parts, block=block, most_new=2, most=130)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_sequences_are_refused_before_anything_is_written(case: str) -> None:
    why, changes = HOSTILE[case]
    q, k, v = normal(4, 256), normal(4, 128), normal(4, 128, seed=1)
    keys, values, before = torch.zeros(6, 2, 64, 64), torch.zeros(6, 2, 64, 64), q.clone()
    arguments = q, k, v, torch.ones(4, 64), torch.zeros(4, 64), Cached(keys, values)
    with pytest.raises(IsobitError, match=why):
        cpu_layer.attention(AttentionSpec(4, 2, 64), *arguments, sequences_of(RIGHT | changes))
    assert torch.equal(q, before) and not keys.any() and not values.any()
    cpu_layer.attention(AttentionSpec(4, 2, 64), *arguments, sequences_of(RIGHT))


def test_blocks_that_keys_do_not_fit_into_are_refused() -> None:
    x = torch.zeros(1, 64)
    cache = torch.zeros(4, 1, 48, 64)
    sequences = ragged([1], [100], 48)
    with pytest.raises(IsobitError, match="neither a multiple of 64 tokens nor all of a sequence"):
        cpu_layer.attention(AttentionSpec(1, 1, 64), x, x, x, x, x, Cached(cache, cache.clone()), sequences)


def test_layers_that_do_not_share_a_cache_and_unknown_activations_are_refused() -> None:
    parts = stack_of({}, False)._kept[0]
    with pytest.raises(FormatError, match="share a shape of cache, 2 heads of 64; some have 1 heads of 64"):
        CpuStack([parts[0], replace(parts[1], heads=AttentionSpec(4, 1, 64))])
    with pytest.raises(Unsupported, match="relu"):
        CpuStack([replace(parts[0], mlp=replace(parts[0].mlp, activation="relu"))])
    with pytest.raises(Unsupported, match="gelu_tanh"):
        cpu_layer.gate(torch.ones(2, 3), torch.ones(2, 3), "relu")
    with pytest.raises(FormatError, match="norm behind the MLP"):
        CpuStack([replace(parts[0], after_mlp=NormSpec(torch.ones(95), 1e-5))])
