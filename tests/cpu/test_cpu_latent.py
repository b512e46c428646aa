"""Latent attention on the CPU kernels: against the law in float64, and the same bits in whatever company and parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import make_model, save, token_ids
from ragged import blocks_of, got, put, ragged
from running import run
from torch import Tensor

from isobit.errors import FormatError, IsobitError
from isobit.formats.caches import CACHE_FORMATS
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.kernels.cached import Cached, Part
from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu.latent import CpuLatent, unsupported
from isobit.kernels.latent import LatentSpec, absorbed, expanded, halves
from isobit.kernels.norm import NormSpec
from isobit.kernels.sequences import Sequences
from isobit.models.cache.memory import new_layers
from isobit.models.cache.protocol import CachedSequence
from isobit.models.config import Kept
from isobit.models.decoder import Decoder
from isobit.models.latent import narrow
from isobit.models.rope import rotate
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

PROBLEM = cpu_library.problem()
if PROBLEM:
    pytest.skip(PROBLEM, allow_module_level=True)

SIZES = ((1, 8, 2, 3, 5), (3, 6, 4, 5, 7), (5, 32, 16, 24, 48), (16, 128, 64, 128, 512), (40, 16, 8, 16, 64))


@pytest.fixture(params=cpu_library.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before, threads = cpu_library.isa(), cpu_library.threads()
    cpu_library.use_isa(request.param)
    yield request.param
    cpu_library.use_isa(before)
    cpu_library.set_threads(threads)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def made(heads: int, plain: int, rotated: int, value: int, rank: int, interleaved: bool = True) -> LatentSpec:
    up = normal(heads, plain + value, rank) * rank**-0.5
    return LatentSpec(
        heads, plain, rotated, value, 0.2, interleaved, NormSpec(1 + 0.1 * normal(rank, seed=1), 1e-6), up
    )


class Tokens:
    """The new tokens of one sequence, and what its cache held before them."""

    def __init__(self, spec: LatentSpec, fresh: int, past: int, seed: int) -> None:
        self.fresh, self.past = fresh, past
        self.q = normal(fresh, spec.heads * spec.query, seed=seed)
        self.kv = normal(fresh, spec.rank + spec.rotated, seed=seed + 1)
        angles = torch.arange(past, past + fresh)[:, None] * 0.3 ** torch.arange(spec.rotated // 2)
        self.cos, self.sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        self.latents, self.keys = (
            normal(1, past, spec.rank, seed=seed + 2),
            normal(1, past, spec.rotated, seed=seed + 3),
        )


def run_kernels(
    spec: LatentSpec, all_tokens: Sequence[Tokens], stored: str = "auto", block: int = 64, seed: int | None = None
) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
    """What each sequence's new tokens give, and what the cache then holds of each."""
    sequences = ragged([one.fresh for one in all_tokens], [one.past for one in all_tokens], block, 1, seed)
    held = cache_of(spec, blocks_of(sequences, 1), block, stored)
    for i, one in enumerate(all_tokens):
        fill(held, sequences, i, one)
    q, kv, cos, sin = (torch.cat([getattr(one, part) for one in all_tokens]) for part in ("q", "kv", "cos", "sin"))
    out = CpuLatent(spec)(q, kv, cos, sin, held, sequences)
    parts = list(out.split([one.fresh for one in all_tokens]))
    return parts, [tuple(got(part, sequences, i) for part in in_heads(held)) for i in range(len(all_tokens))]


def cache_of(spec: LatentSpec, blocks: int, block: int, stored: str) -> Cached:
    kept = [Kept(1, spec.rank, spec.rotated)]
    held = new_layers(kept, blocks, block, torch.float32, None, CACHE_FORMATS[stored])[0]
    for part in held.tensors:
        part.zero_()
    return held


def in_heads(held: Cached) -> list[Tensor]:
    """All that a cache holds, with a dimension behind the tokens."""
    return [part if part.dim() == 4 else part[..., None] for part in held.tensors]


def fill(held: Cached, sequences: Sequences, number: int, one: Tokens) -> None:
    if not one.past:
        return
    small = replace_memory(held, one.past)
    small.store(torch.arange(one.past), one.latents.transpose(0, 1), one.keys.transpose(0, 1))
    for memory, part in zip(in_heads(held), in_heads(small), strict=True):
        put(memory, sequences, number, part[0])


def replace_memory(held: Cached, tokens: int) -> Cached:
    """Memory like that of a cache, for so many tokens in one block."""

    def of(part: Tensor | None) -> Tensor | None:
        return None if part is None else part.new_zeros(1, 1, tokens, *part.shape[3:])

    first, second = (Part(part.numbers.new_zeros(1, 1, tokens, part.numbers.shape[3]), of(part.scales), of(part.groups))
                     for part in held.parts)  # fmt: skip
    return Cached.of(first, second, held.form)


def law(spec: LatentSpec, one: Tokens, cached: tuple[Tensor, ...] | None = None) -> Tensor:
    """In float64; of the latents and keys in float32 that a cache holds, where they are given."""
    query = one.q.double().view(one.fresh, spec.heads, spec.query)
    plain, turned = query[..., : spec.plain], query[..., spec.plain :]
    latent, key = one.kv[:, : spec.rank].double(), one.kv[:, None, spec.rank :].double()
    latent = latent / (latent.square().mean(-1, keepdim=True) + spec.norm.eps).sqrt() * spec.norm.weight.double()
    if spec.interleaved:
        turned, key = halves(turned), halves(key)
    cos, sin = one.cos.double()[:, None], one.sin.double()[:, None]
    turned, key = rotate(turned, cos, sin), rotate(key, cos, sin)
    latents, keys = torch.cat((one.latents[0].double(), latent)), torch.cat((one.keys[0].double(), key[:, 0]))
    if cached is not None:
        latents, keys = cached[0].double(), cached[1].double()
    wide = replace(spec, up=spec.up.double())
    given = plain.transpose(0, 1), turned.transpose(0, 1), latents, keys
    found, other = absorbed(wide, *given), expanded(wide, *given)
    torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-9)
    return found.transpose(0, 1).flatten(1)


def error_of(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("interleaved", [True, False])
def test_the_law_in_float64(sizes: tuple[int, int, int, int, int], interleaved: bool) -> None:
    spec = made(*sizes, interleaved=interleaved)
    for fresh, past in ((1, 0), (1, 130), (70, 0), (5, 63), (3, 700)):
        one = Tokens(spec, fresh, past, seed=fresh)
        (found,), _ = run_kernels(spec, [one])
        assert error_of(found, law(spec, one)) < 3e-6, (fresh, past)


@pytest.mark.parametrize("stored", [*CACHE_FORMATS])
def test_every_format_of_the_cache_is_stored_by_the_law_and_read_exactly(stored: str) -> None:
    spec = made(5, 32, 16, 24, 48)
    one = Tokens(spec, 9, 70, seed=3)
    one.kv[2, : spec.rank] *= 1e4
    one.kv[4, spec.rank :] *= 1e-4
    (found,), (kept,) = run_kernels(spec, [one], stored)
    held = replace_memory(cache_of(spec, 1, 64, stored), 79)
    for memory, part in zip(in_heads(held), kept, strict=True):
        memory[0].copy_(part)
    latents, keys = (part[0] for part in held.read((0,), 79, torch.float32))
    assert error_of(found, law(spec, one, (latents, keys))) < 3e-6
    # what is stored of new tokens is what the law stores of numbers that differ by the order of a sum
    plain, whole = run_kernels(spec, [one])[1][0]
    again = replace_memory(held, 79)
    again.store(torch.arange(79), plain.transpose(0, 1), whole.transpose(0, 1))
    for memory, part in zip(in_heads(again), kept, strict=True):
        assert torch.equal(memory[0].view(torch.uint8), part.contiguous().view(torch.uint8))


@pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
def test_the_same_bits_alone_in_company_in_parts_in_blocks_and_on_any_number_of_threads(
    sizes: tuple[int, int, int, int, int],
) -> None:
    spec = made(*sizes)
    several = [
        Tokens(spec, fresh, past, seed=10 * fresh + past) for fresh, past in ((1, 600), (70, 3), (1, 0), (20, 65))
    ]
    cpu_library.set_threads(1)
    alone = [run_kernels(spec, [one]) for one in several]
    for threads in (1, 2, 5):
        cpu_library.set_threads(threads)
        found, kept = run_kernels(spec, several, block=128, seed=threads)
        for i, (parts, caches) in enumerate(alone):
            assert torch.equal(found[i], parts[0]), (threads, i)
            assert all(torch.equal(a, b) for a, b in zip(kept[i], caches[0], strict=True))
    # token by token
    whole = several[1]
    latents, keys = (part[0] for part in alone[1][1][0])
    for at in (0, 1, 31, 69):
        one = Tokens(spec, 1, whole.past + at, seed=0)
        one.q, one.kv = whole.q[at : at + 1].clone(), whole.kv[at : at + 1]
        one.cos, one.sin = whole.cos[at : at + 1], whole.sin[at : at + 1]
        one.latents, one.keys = latents[None, : one.past], keys[None, : one.past]
        (single,), _ = run_kernels(spec, [one])
        assert torch.equal(single[0], alone[1][0][0][at]), at


def test_long_prompts_go_by_parts_of_their_tokens() -> None:
    """More queries than are kept at once: 2^22 numbers of theirs in front of the latents."""
    spec = made(128, 4, 2, 3, 512)
    one = Tokens(spec, 150, 20, seed=1)
    (found,), _ = run_kernels(spec, [one])
    assert error_of(found, law(spec, one)) < 3e-6


def test_padding_gives_zeros_and_is_not_stored() -> None:
    spec = made(3, 6, 4, 5, 7)
    one = Tokens(spec, 3, 0, seed=5)
    sequences = ragged([3], [0], 64, 1)
    padded = replace(
        sequences, starts=torch.tensor([0, 3, 5], dtype=torch.int32), lengths=torch.tensor([3, 0], dtype=torch.int32),
        table=torch.tensor([[0], [-1]], dtype=torch.int32), slots=torch.cat((sequences.slots, torch.tensor([-1, -1]))),
    )  # fmt: skip
    held = cache_of(spec, 2, 64, "auto")
    q, kv = (torch.cat((part, torch.full((2, part.shape[1]), float("nan")))) for part in (one.q, one.kv))
    cos, sin = (torch.cat((part, part[:2])) for part in (one.cos, one.sin))
    found = CpuLatent(spec)(q, kv, cos, sin, held, padded)
    assert torch.equal(found[:3], run_kernels(spec, [one])[0][0]) and not found[3:].any()
    assert not held.keys[1].any() and not held.keys.isnan().any()


def test_what_does_not_fit_is_refused() -> None:
    spec = made(3, 6, 4, 5, 7)
    one, sequences, bound = Tokens(spec, 3, 0, seed=5), ragged([3], [0], 64), CpuLatent(spec)
    held = cache_of(spec, 1, 64, "auto")
    with pytest.raises(FormatError, match="queries"):
        bound(one.q[:, :-1].contiguous(), one.kv, one.cos, one.sin, held, sequences)
    with pytest.raises(FormatError, match="cached values"):
        other = cache_of(made(3, 6, 2, 5, 7), 1, 64, "auto")
        bound(one.q, one.kv, one.cos, one.sin, other, sequences)
    with pytest.raises(IsobitError, match="a block that the cache does not have"):
        bound(one.q, one.kv, one.cos, one.sin, held, replace(sequences, table=sequences.table + 9))
    assert unsupported(128, 64, 576) and unsupported(128, 3, 512) and not unsupported(128, 64, 512)


def test_numbers_that_bfloat16_holds_are_held_in_it() -> None:
    numbers = normal(5, 7)
    assert narrow(numbers) is numbers
    assert narrow(numbers.bfloat16().float()).dtype is torch.bfloat16
    spec = made(5, 32, 16, 24, 48)
    wide = replace(spec, up=spec.up.bfloat16().float())
    one = Tokens(spec, 4, 20, seed=2)
    (found,), _ = run_kernels(replace(spec, up=spec.up.bfloat16()), [one])
    assert error_of(found, law(wide, one)) < 3e-6


# ---------------------------------------------------------------------- models

ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(make_model(name), tmp_path_factory.mktemp(name)) for name in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_in_one_call_are_those_one_by_one_and_near_pytorch(
    architecture: str, folders: dict[str, Path], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = token_ids(90, batch=2)
    model, by_layer = load_model(folders[architecture]), load_model(folders[architecture])
    assert isinstance(model, Decoder) and model.why_by_layer is None
    monkeypatch.setattr(by_layer, "_stack", "layer by layer, for this test", raising=False)
    found = run(model, ids)
    assert torch.equal(found, run(by_layer, ids))
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    plain = run(load_model(folders[architecture]), ids)
    assert error_of(found, plain.double()) < 1e-4


@pytest.mark.parametrize("name", ["int4", "fp8", "mxfp4"])
def test_batch_invariance(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / name
    quantize(folders[ARCHITECTURES[1]], out, Policy(scheme(name)), search="absmax", progress=False)
    model = load_model(out, batch_invariant=True)
    ids = token_ids(75, batch=2)
    whole = run(model, ids)
    assert torch.equal(run(model, ids[1:])[0], whole[1])
    cache = model.paged_cache(2)
    one, found = CachedSequence((1, 0), 128), []
    for begin, end in ((0, 40), (40, 41), (41, 74), (74, 75)):
        found.append(model(cache.batch([ids[0, begin:end]], [one]), cache))
        one = CachedSequence((1, 0), 128, end)
    assert torch.equal(torch.cat(found), whole[0])
