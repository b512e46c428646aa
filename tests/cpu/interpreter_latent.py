"""Latent attention on the GPU kernels in Triton's interpreter: run as a program it prints one result a line.

Run with TRITON_INTERPRET=1 and names of cases; without any, it runs all of them. bfloat16 is added wrongly there, so
everything is float16 and float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import latent_oracle as oracle
import layer_oracle
import torch
from torch import Tensor

from isobit.kernels.cached import rounded
from isobit.kernels.gpu import latent_tiles as tiles
from isobit.kernels.gpu.latent import GpuLatent
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.latent import LatentSpec
from isobit.targets.table import target

# Sizes (heads, plain, rotated, value, rank), whether neighbours are rotated with each other, sequences as (new tokens,
# length), tokens of a block. A length of 0 is padding. Parts of sequences of one new token have 256 keys.
Case = tuple[tuple[int, int, int, int, int], bool, list[tuple[int, int]], int]
CASES: dict[str, Case] = {
    "thin": ((3, 16, 4, 16, 24), True, [(1, 300), (1, 0), (5, 9)], 64),
    "decoding": ((4, 16, 8, 16, 32), True, [(1, 600), (1, 5), (1, 0), (1, 257), (1, 256)], 32),
    "mixture": ((5, 12, 8, 10, 24), False, [(1, 600), (1, 0), (1, 5), (2, 257), (30, 40)], 32),
    "heads in plenty": ((20, 16, 16, 16, 128), True, [(1, 300)], 64),
    "one prompt": ((3, 16, 4, 16, 32), True, [(50, 70)], 16),
    "odd sizes": ((33, 10, 6, 7, 20), True, [(1, 700), (3, 30)], 48),
    "short": ((2, 16, 8, 16, 64), True, [(1, 1), (1, 1)], 16),
}
APART = ("thin", "mixture", "odd sizes")  # these in tiles of which programs sum halves, too
CODED = ("thin", "mixture", "heads in plenty")


def layer(*, alike: bool = False) -> GpuLatent:
    return GpuLatent(Machine.imagined(target("sm_86")), Workspace(torch.device("cpu")), alike=alike)


def against_float64(name: str, case: Case, dtype: torch.dtype, element: str) -> Iterator[tuple[str, float]]:
    """Results, and what is stored of the new tokens: the bits of the law of what would be stored without codes."""
    sizes, interleaved, members, block = case
    spec = oracle.spec(*sizes, dtype, interleaved=interleaved)
    given = oracle.batch(spec, members, block, dtype, 1, kv=element)
    wanted, latents, keys = oracle.attention(spec, given)
    found, plain, sequences = layer().latent(spec, *given), given, given[-1]
    real = sequences.slots >= 0
    yield f"result {dtype} {element} {name}", layer_oracle.error(found, wanted)
    yield f"same: padding {element} {dtype} {name}", float(bool(found[~real].any()))
    if element:
        plain = oracle.batch(spec, members, block, dtype, 1)
        layer().latent(spec, *plain)
    for what, number, exact in (("latents", 0, latents), ("keys", 1, keys)):
        numbers = oracle.stored(sequences, plain[4].tensors[number])
        if not element:
            yield f"stored {dtype} {what} {name}", layer_oracle.error(numbers, exact[real])
            continue
        held, law = given[4].parts[number].tensors, rounded(numbers, given[4].form, dtype).tensors
        same = all(torch.equal(oracle.stored(sequences, part), one) for part, one in zip(held, law, strict=True))
        yield f"same: codes of {what} {element} {dtype} {name}", float(not same)


def asked(name: str, *, alike: bool) -> tuple[GpuLatent, LatentSpec, oracle.Given, Tensor, Tensor]:
    """A case whose tokens are in the cache, and queries: products of numpy's depend on where in a tile a row is."""
    sizes, interleaved, members, block = CASES[name]
    spec = oracle.spec(*sizes, torch.float16, interleaved=interleaved)
    given = oracle.batch(spec, members, block, torch.float16, 2)
    made, rng = layer(alike=alike), torch.Generator().manual_seed(3)
    made.latent(spec, *given)
    query, turned = (
        torch.randn(len(given[0]), spec.heads, width, generator=rng).half() for width in (spec.rank, spec.rotated)
    )
    return made, spec, given, query, turned


def over(made: GpuLatent, spec: LatentSpec, query: Tensor, turned: Tensor, given: oracle.Given) -> Tensor:
    """What heads find in the latents."""
    held, sequences = given[4:]
    shape = made.shape(spec, query.dtype, held, sequences, given[2].dtype, len(query))
    return made.over_latents(shape, spec, query, turned, held, sequences)


def alone(name: str, *, alike: bool) -> Iterator[tuple[str, float]]:
    """A sequence by itself finds the bits that it finds in the batch."""
    made, spec, given, query, turned = asked(name, alike=alike)
    together = over(made, spec, query, turned, given)
    for b, (_, length) in enumerate(CASES[name][2]):
        if length:
            part, own = oracle.alone(given, b)
            found = over(made, spec, query[own], turned[own], part)
            yield f"same: alone, alike {alike}, {name} {b}", float(not torch.equal(found, together[own]))


def in_chunks() -> Iterator[tuple[str, float]]:
    """Where tokens must be alike, a prompt in parts finds the bits of the prompt."""
    made, spec, given, query, turned = asked("one prompt", alike=True)
    whole = over(made, spec, query, turned, given)
    for begin, end in ((0, 1), (1, 2), (0, 32), (32, 50)):
        part, own = oracle.within(given, begin, end)
        found = over(made, spec, query[own], turned[own], part)
        yield f"same: chunk {begin} to {end}", float(not torch.equal(found, whole[own]))


def apart() -> Iterator[tuple[str, float]]:
    """Programs that each sum one half of the latents give the bits of those that sum both."""
    usual = tiles.few_tile, tiles.many_tile
    for name in APART:
        made, spec, given, query, turned = asked(name, alike=False)
        wanted = over(made, spec, query, turned, given)
        tiles.few_tile, tiles.many_tile = (
            lambda shape, target, whole=whole: replace(whole(shape, target), apart=True) for whole in usual
        )
        found = over(layer(), spec, query, turned, given)
        tiles.few_tile, tiles.many_tile = usual
        yield f"same: apart {name}", float(not torch.equal(found, wanted))


def main(names: list[str]) -> None:
    results = []
    for name in names or CASES:
        for dtype in (torch.float32, torch.float16):
            for element in ("", "int8", "e4m3fn", "e5m2") if name in CODED else ("",):
                results.append(against_float64(name, CASES[name], dtype, element))
        results.append(alone(name, alike=False))
    if not names:
        results += [alone("mixture", alike=True), in_chunks(), apart()]
    for result in results:
        for line in result:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
