"""One linear layer on the CPU in several formats, by turns: how long each takes beside another, on a busy machine too.

    python benchmarks/cpu_formats.py                         # 4096x4096, one row: int4 and the formats of MX and NV
    python benchmarks/cpu_formats.py --schemes int4 int4-g32 --m 8
    python benchmarks/cpu_formats.py --quick                 # small, not recorded: shows that it works

One thread; every call is of the next format, on copies of the weight that no cache holds. What counts is the least time
of the processor that a call took ("us"), over that of the first format ("ratio"); "floor" is the ratio of what a
checkpoint stores, which is all that would count if memory alone did. Results are appended to
benchmarks/results/cpu_formats.csv.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common import RESULTS, provenance, save, stop, use_threads
from cpu_linear import FULL, QUICK, Layer, Sizes, make_layer, shape_from

from isobit.errors import IsobitError
from isobit.formats.schemes import scheme
from isobit.kernels.cpu import library

SCHEMES = ["int4", "int4-g32", "mxfp4-w16", "nvfp4-w16", "mxfp4", "nvfp4", "fp8-w8a16", "mxfp8-w16", "mxfp8"]


def least(layers: list[Layer], m: int, turns: int) -> list[float]:
    """The least seconds of the processor that one call of each takes."""
    import torch

    x = [torch.randn(m, layer.shape[1]) for layer in layers]
    best = [float("inf")] * len(layers)
    for turn in range(turns):
        for i, layer in enumerate(layers):
            run = layer.copies[turn % len(layer.copies)]
            begin = time.process_time()
            run(x[i])
            best[i] = min(best[i], time.process_time() - begin)
    return best


def measure(names: list[str], shape: tuple[int, int], m: int, turns: int, sizes: Sizes) -> list[dict[str, object]]:
    """A row of each format, on the instruction set in use."""
    layers = [make_layer(scheme(name), shape, sizes) for name in names]
    found = least(layers, m, turns)
    return [
        {
            "isa": library.isa(), "scheme": layer.scheme.name, "n": shape[0], "k": shape[1], "m": m, "turns": turns,
            "us": round(1e6 * time, 1), "ratio": round(time / found[0], 3), "to": names[0],
            "floor": round(layer.nbytes / layers[0].nbytes, 3), "relative_error": f"{layer.error:.2g}",
        }
        for layer, time in zip(layers, found, strict=True)
    ]  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, metavar="NAME", help=f"default: {' '.join(SCHEMES)}")
    parser.add_argument("--shape", metavar="NxK", help="default: 4096x4096")
    parser.add_argument("--m", type=int, default=1, help="rows of activations (default: 1)")
    parser.add_argument("--turns", type=int, help="calls of each format (default: 1500)")
    parser.add_argument("--isas", nargs="+", metavar="NAME", help="default: all of this machine but the portable one")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="where the results go (default: benchmarks/results/cpu_formats.csv)")
    args = parser.parse_args()
    use_threads(1)
    sizes = QUICK if args.quick else Sizes(60_000_000, FULL.buffer_bytes, 1, 1, 2)
    shape = shape_from(args.shape or ("256x512" if args.quick else "4096x4096"), parser)
    path = args.csv or (None if args.quick else RESULTS / "cpu_formats.csv")
    try:
        for isa in args.isas or [name for name in library.isas() if name != "portable"]:
            library.use_isa(isa)
            rows = measure(args.schemes, shape, args.m, args.turns or (20 if args.quick else 1500), sizes)
            for row in rows:
                print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            if path is not None:
                save([provenance() | row for row in rows], path)
    except IsobitError as error:
        stop(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
