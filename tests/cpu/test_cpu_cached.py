"""The CPU kernels over caches in every format: the law's bits are stored, and read exactly, whatever the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from ragged import ragged
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.caches import AUTO, CACHE_FORMATS, CacheFormat, known_by
from isobit.formats.codec import decode
from isobit.kernels.cached import Cached, rounded
from isobit.kernels.cpu import layer as cpu_layer
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences
from isobit.models.cache.memory import new_layers, stored_dtype
from isobit.models.config import Kept

pytestmark = pytest.mark.skipif(cpu_library.problem() is not None, reason=str(cpu_library.problem()))
NARROW = [row for row in CACHE_FORMATS.values() if row.stored("float32") != "float32"]
BLOCK = 64
SPECS = {
    "a head each": AttentionSpec(2, 2, 64),
    "grouped": AttentionSpec(8, 2, 32, softcap=20.0),
    "odd, window": AttentionSpec(3, 1, 22, window=100),
}


@pytest.fixture(params=cpu_library.isas() if cpu_library.problem() is None else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = cpu_library.isa()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def empty(spec: AttentionSpec, row: CacheFormat, blocks: int) -> Cached:
    """A cache whose every number is garbage until it is written."""
    (held,) = new_layers([Kept(spec.kv_heads, spec.dim, spec.dim)], blocks, BLOCK, torch.float32, None, row)
    for part in held.tensors:
        part.view(torch.uint8).fill_(0xFF)
    return held


def attend(spec: AttentionSpec, qkv: tuple[Tensor, ...], held: Cached, sequences: Sequences) -> Tensor:
    """Without a rotation."""
    q, k, v = qkv
    rotation = torch.ones(len(q), spec.dim), torch.zeros(len(q), spec.dim)
    return cpu_layer.attention(spec, q.clone(), k, v, *rotation, held, sequences)


def heads_of(spec: AttentionSpec, tokens: int, seed: int) -> tuple[Tensor, ...]:
    """Queries, keys and values; keys large, so that weights differ."""
    sizes = spec.heads, spec.kv_heads, spec.kv_heads
    return tuple(normal(tokens, count * spec.dim, seed=seed + i) * (3, 5, 1)[i] for i, count in enumerate(sizes))


def exact(spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of the last tokens of a sequence, in float64."""
    new, length, group = len(q), keys.shape[1], spec.heads // spec.kv_heads
    query = q.double().view(new, spec.heads, spec.dim).transpose(0, 1)
    scores = query @ keys.repeat_interleave(group, 0).transpose(1, 2) * spec.factor
    if spec.softcap is not None:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    position, key = torch.arange(length - new, length)[:, None], torch.arange(length)[None, :]
    hidden = key > position
    if spec.window is not None:
        hidden |= key <= position - spec.window
    mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values.repeat_interleave(group, 0)
    return mixed.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("row", NARROW, ids=lambda row: row.name)
@pytest.mark.parametrize("name", SPECS)
def test_the_bits_of_the_law_are_stored_and_read_exactly(name: str, row: CacheFormat, isa: str) -> None:
    """Two sequences over what is cached, in one call; and each alone gives the same bits."""
    spec, past, lengths = SPECS[name], ragged([520, 90], [0, 0], BLOCK, spare=4, seed=1), (523, 91)
    held = empty(spec, row, 15)
    attend(spec, heads_of(spec, 610, 10), held, past)
    slots = [int(past.table[b, p // BLOCK]) * BLOCK + p % BLOCK for b, p in ((0, 520), (0, 521), (0, 522), (1, 90))]
    batch = Sequences(
        torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32), past.table,
        torch.tensor(slots), BLOCK, 3, 523,
    )  # fmt: skip
    qkv = heads_of(spec, 4, 20)
    found = attend(spec, qkv, held, batch)
    at = batch.slots // BLOCK, batch.slots % BLOCK
    for new, part in zip(qkv[1:], held.parts, strict=True):
        wanted = rounded(new.view(4, -1, spec.dim), row, stored_dtype(row, torch.float32))
        for memory, one in zip(part.tensors, wanted.tensors, strict=True):
            assert torch.equal(memory[at[0], :, at[1]].view(torch.uint8), one.contiguous().view(torch.uint8))
    for b, (begin, end, length) in enumerate(((0, 3, 523), (3, 4, 91))):
        blocks = tuple(past.table[b, : -(-length // BLOCK)].tolist())
        keys, values = (part.double() for part in held.read(blocks, length, torch.float32))
        assert (found[begin:end].double() - exact(spec, qkv[0][begin:end], keys, values)).abs().max() < 2e-5
        one = replace(
            batch, starts=torch.tensor([0, end - begin], dtype=torch.int32), lengths=batch.lengths[b : b + 1],
            table=past.table[b : b + 1], slots=batch.slots[begin:end], most_new=end - begin, most=length,
        )  # fmt: skip
        alone = attend(spec, tuple(part[begin:end].contiguous() for part in qkv), held, one)
        assert torch.equal(alone, found[begin:end])


@pytest.mark.parametrize("row", [row for row in NARROW if row.element and not row.group], ids=lambda row: row.name)
def test_every_code_is_read_as_what_it_stands_for(row: CacheFormat, isa: str) -> None:
    """One key each: the result is the value, which is the code by its scale."""
    spec, codes = AttentionSpec(1, 1, 256), torch.arange(256)
    held = empty(spec, row, 1)
    values = decode(codes.to(held.values.dtype), row.element)
    real = values.isfinite() if row.element != "int8" else codes != 128
    kept = torch.where(real, codes, torch.zeros_like(codes)).to(held.values.dtype)
    x, zero = decode(kept, row.element)[None] * 4.0, torch.zeros(1, 256)
    found = attend(spec, (zero, zero, x), held, ragged([1], [0], BLOCK))
    assert torch.equal(found, x) and torch.equal(held.values[0, 0, 0], kept)


@pytest.mark.parametrize("row", [row for row in NARROW if row.group], ids=lambda row: row.name)
def test_every_code_is_read_under_every_scale_of_its_group(row: CacheFormat, isa: str) -> None:
    """A sequence for each scale, whose first value has all codes, and whose second one is zero: the result is half."""
    dim, block = 512, 2
    spec, sequences = AttentionSpec(1, 1, dim), ragged([1] * 256, [1] * 256, block)
    (held,) = new_layers([Kept(1, dim, dim)], 256, block, torch.float32, None, row)
    for part in held.tensors:
        part.zero_()
    bytes_of_a_head, scales = torch.arange(256, dtype=torch.uint8), torch.arange(256, dtype=torch.uint8)
    held.values[:, 0, 0] = bytes_of_a_head if row.packed else bytes_of_a_head.repeat(2)
    assert held.value_groups is not None
    held.value_groups[:, 0, 0] = scales[:, None]
    if held.value_scales is not None and held.key_scales is not None:
        held.value_scales[:, 0, 0] = 1.5
    zero = torch.zeros(256, dim)
    found = attend(spec, (zero, zero, zero), held, sequences)
    wanted = held.read(tuple(range(256)), 512, torch.float32)[1][0, ::2]
    assert wanted.isnan().any() and wanted.isfinite().any()
    if row.element == "e4m3fn":  # NaN codes are never stored, and not looked for
        real = (bytes_of_a_head & 0x7F) != 0x7F
        found, wanted = (part.view(256, 2, 256)[..., real] for part in (found, wanted))
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(nan=1.0), (wanted * 0.5).nan_to_num(nan=1.0))


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_narrow_numbers_are_rounded_alike(name: str, isa: str) -> None:
    numbers = [1e30, -1e30, float("inf"), -float("inf"), 65519.0, 65520.0, 2.0**-25, 1.5 * 2.0**-24, -(2.0**-14), 1e-3,
               -0.0, 2049.0, 2051.0, 3.4e38, 2.0**-149, float("nan")]  # fmt: skip
    x, row = torch.tensor(numbers)[None], CACHE_FORMATS[name]
    x = torch.cat((x, normal(1, 240) * torch.logspace(-9, 6, 240)[None]), dim=1)
    spec, zero = AttentionSpec(1, 1, 256), torch.zeros(1, 256)
    held = empty(spec, row, 1)
    attend(spec, (zero, zero, x), held, ragged([1], [0], BLOCK))
    wanted = rounded(x, row, stored_dtype(row, torch.float32)).numbers[0]
    stored, number = held.values[0, 0, 0], wanted.isfinite()
    assert torch.equal(stored[number].view(torch.int16), wanted[number].view(torch.int16))
    assert torch.equal(stored.isnan(), wanted.isnan()) and torch.equal(stored[2:4], wanted[2:4])


def test_caches_that_are_none_are_refused() -> None:
    spec, x, sequences = AttentionSpec(1, 1, 32), torch.zeros(1, 32), ragged([1], [0], BLOCK)
    good = empty(spec, CACHE_FORMATS["int8"], 1)
    attend(spec, (x, x, x), good, sequences)
    assert good.value_scales is not None
    for bad in (
        replace(good, form=CACHE_FORMATS["fp8"]), replace(good, key_scales=None), replace(good, form=known_by("int4")),
        replace(good, value_scales=good.value_scales[..., 1:].clone()), replace(good, keys=good.keys[..., 1:].clone()),
        replace(good, form=AUTO), replace(good, value_scales=good.value_scales.half()),
        replace(good, form=CACHE_FORMATS["mxfp8"]), replace(good, form=CACHE_FORMATS["nvfp4"]),
    ):  # fmt: skip
        with pytest.raises(FormatError, match="cache|on the CPU|values in int4"):
            attend(spec, (x, x, x), bad, sequences)
    good = empty(spec, CACHE_FORMATS["nvfp4"], 1)
    attend(spec, (x, x, x), good, sequences)
    assert good.value_scales is not None and good.key_groups is not None
    for bad in (
        replace(good, key_groups=None), replace(good, key_groups=good.key_groups[..., 1:].clone()),
        replace(good, key_groups=good.key_groups.to(torch.int8)), replace(good, value_scales=None),
        replace(good, values=good.values[..., 1:].clone()), replace(good, form=CACHE_FORMATS["mxfp8"]),
        replace(good, form=replace(CACHE_FORMATS["mxfp4"], element="e3m2")),
    ):  # fmt: skip
        with pytest.raises(FormatError, match="cache|on the CPU|values in mxfp4"):
            attend(spec, (x, x, x), bad, sequences)
