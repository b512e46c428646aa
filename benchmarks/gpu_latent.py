"""Latent attention (MLA) on the card at hand: decoding and prompts, every format of the cache, beside PyTorch.

    python benchmarks/gpu_latent.py [--csv FILE] [--commit ID] [--formats bf16,e4m3fn,int8] [--models V2-Lite,V3]
    python benchmarks/gpu_latent.py --tune 16x32x8x3,16x64x8x2     # tiles (rows, keys, warps, stages) beside each other

"attention" is what heads find in the latents, "layer" all of it: rotation, the cache, and the heads' matrices, too.
PyTorch's is absorbed as well, as three batched products over latents of just the right length that lie in one piece.
The floor is the time to read the latents (1152 bytes of a token in bf16) and, of a layer, its matrices at 4.5 TB/s.
Each figure is the median of a CUDA graph of several calls, each with a cache of its own.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from gpu_attention import L2, sequences
from gpu_tune import timed
from torch import Tensor

from isobit.formats.caches import known_by
from isobit.formats.pack import code_dtype
from isobit.formats.table import element as lookup
from isobit.kernels.cached import Cached
from isobit.kernels.gpu import latent_tiles as tiles
from isobit.kernels.gpu.latent import GpuLatent
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.latent import LatentSpec
from isobit.kernels.norm import NormSpec
from isobit.kernels.sequences import Sequences

BANDWIDTH = 4.5e12  # bytes a second that an H200 reads
HEADS = {"V2-Lite": 16, "Kimi-K2": 64, "V3": 128}
CASES = ((1, 1, 192), (1, 1, 4096), (8, 1, 4096), (64, 1, 1024), (1, 512, 512), (1, 2048, 2048))
FIELDS = ("date", "commit", "device", "torch", "model", "cache", "what", "sequences", "new", "length", "tile", "us",
          "torch us", "floor us", "error")  # fmt: skip
MOST = 8 << 30  # bytes of caches at once


def spec_of(heads: int) -> LatentSpec:
    """DeepSeek's widths."""
    up = (torch.randn(heads, 256, 512, device="cuda") * 512**-0.5).bfloat16()
    return LatentSpec(heads, 128, 64, 128, 192**-0.5, True, NormSpec(torch.ones(512, device="cuda"), 1e-6), up)


def cache(blocks: int, block: int, element: str) -> Cached:
    """Random latents and rotated keys."""
    shapes = (blocks, 1, block, 512), (blocks, 1, block, 64)
    numbers = [torch.randn(shape, device="cuda") for shape in shapes]
    if not element:
        return Cached(*(part.bfloat16() for part in numbers))
    if element == "int8":
        codes = [(part * 30).clamp(-127, 127).to(code_dtype(lookup(element))) for part in numbers]
    else:
        codes = [part.to(getattr(torch, f"float8_{element}")).view(torch.uint8) for part in numbers]
    scales = [torch.rand(shape[:3], device="cuda") * (0.03 if element == "int8" else 1.0) for shape in shapes]
    return Cached(codes[0], codes[1], scales[0], scales[1], known_by(element))


def wanted(spec: LatentSpec, query: Tensor, turned: Tensor, held: Cached, batch: Sequences) -> Tensor:
    """What heads find, of the first sequence, in float64 ``[new, heads, rank]``."""
    length, new = int(batch.lengths[0]), int(batch.starts[1])
    latents, keys = (part[0].double() for part in held.read(tuple(batch.table[0].tolist()), length, query.dtype))
    hidden = torch.arange(length, device="cuda")[None, :] > torch.arange(length - new, length, device="cuda")[:, None]
    found = []
    for head in range(spec.heads):
        scores = query[:new, head].double() @ latents.T + turned[:new, head].double() @ keys.T
        found.append((scores * spec.scale).masked_fill(hidden, float("-inf")).softmax(-1) @ latents)
    return torch.stack(found, 1)


def torchs(heads: int, count: int, new: int, length: int) -> Callable[[], Tensor]:
    """PyTorch's attention over latents in one piece, as few kernels as it has for that."""
    query = torch.randn(count, new * heads, 576, device="cuda", dtype=torch.bfloat16)
    keys = [torch.randn(count, length, 576, device="cuda", dtype=torch.bfloat16) for _ in range(several(count, length))]
    hidden = torch.zeros(new, 1, length, device="cuda", dtype=torch.bfloat16)
    if new > 1:
        hidden.masked_fill_(
            torch.arange(length, device="cuda") > torch.arange(length - new, length, device="cuda")[:, None, None],
            float("-inf"),
        )
    mask = hidden.expand(new, heads, length).reshape(1, new * heads, length)

    def run() -> Tensor:
        for key in keys:
            scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=192**-0.5)
            found = torch.bmm(scores.softmax(-1), key[..., :512])
        return found

    return run


def several(count: int, length: int) -> int:
    """Caches that are read by turns, so that none is still in the level-2 cache."""
    held = count * length * 1152
    return max(1, min(64, 1 + L2 // held, MOST // held))


def measure(
    layer: GpuLatent, spec: LatentSpec, element: str, count: int, new: int, length: int
) -> Iterator[tuple[str, float, float, float]]:
    """(what, microseconds, floor, error)."""
    batch, tokens = sequences(count, new, length), count * new
    caches = [cache(batch.table.numel(), batch.block, element) for _ in range(several(count, length))]
    query, turned = (torch.randn(tokens, spec.heads, width, device="cuda", dtype=torch.bfloat16) for width in (512, 64))
    shape = layer.shape(spec, query.dtype, caches[0], batch, query.dtype, tokens)

    def attention(held: Cached) -> Tensor:
        return layer.over_latents(shape, spec, query, turned, held, batch)

    exact = wanted(spec, query, turned, caches[0], batch)
    error = float((attention(caches[0])[:new].double() - exact).norm() / exact.norm())
    floor = 1e6 * count * length * (584 if element else 1152) / BANDWIDTH
    yield "attention", timed(lambda: [attention(one) for one in caches], 15) / len(caches), floor, error
    q, kv = (torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16) for width in (spec.heads * 192, 576))
    angles = torch.randn(tokens, 64, device="cuda")
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    ups = [replace(spec, up=spec.up.clone()) for _ in caches]

    def whole() -> None:
        for one, held in zip(ups, caches, strict=True):
            layer.latent(one, q, kv, cos, sin, held, batch)

    whole()
    floor += 1e6 * 2 * spec.up.numel() / BANDWIDTH
    yield "layer", timed(whole, 15) / len(caches), floor, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv")
    parser.add_argument("--commit", default="")
    parser.add_argument("--formats", default="bf16,e4m3fn,int8")
    parser.add_argument("--models", default="V2-Lite,V3")
    parser.add_argument("--cases", default=",".join("x".join(map(str, case)) for case in CASES))
    parser.add_argument("--tune", default="")
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    from isobit.kernels.gpu import card

    out = open(options.csv, "a", newline="") if options.csv else sys.stderr  # noqa: SIM115 - open to the end
    writer = csv.writer(out)
    if options.csv:
        writer.writerow(FIELDS)
    fixed = (time.strftime("%Y-%m-%d"), options.commit, torch.cuda.get_device_name(), torch.__version__)
    given = [tuple(map(int, tile.split("x"))) for tile in options.tune.split(",") if tile]
    cases = [tuple(map(int, case.split("x"))) for case in options.cases.split(",")]
    for model in options.models.split(","):
        spec = spec_of(HEADS[model])
        others = {case: 0.0 if options.no_torch else timed(torchs(spec.heads, *case), 15) / several(case[0], case[2])
                  for case in cases}  # fmt: skip
        for name in options.formats.split(","):
            for tile in given or [()]:
                if tile:
                    tiles.few_tile = tiles.many_tile = lambda shape, target, tile=tile: tiles.Tile(*tile)
                layer = GpuLatent(card.machine(), Workspace(torch.device("cuda")))
                for case in cases:
                    element = "" if name == "bf16" else name
                    for what, us, floor, error in measure(layer, spec, element, *case):
                        print(f"{model:8} {name:7} {what:9} {'x'.join(map(str, case)):12} {tile} {us:9.1f} us, torch"
                              f" {others[case]:9.1f}, floor {floor:7.1f}, error {error:.1e}", flush=True)  # fmt: skip
                        writer.writerow((*fixed, model, name, what, *case, "x".join(map(str, tile)), f"{us:.2f}",
                                         f"{others[case]:.2f}" if what == "attention" else "", f"{floor:.2f}",
                                         f"{error:.1e}"))  # fmt: skip
                        out.flush()


if __name__ == "__main__":
    main()
