"""A whole Llama-shaped model on the CPU, in every format: loading, memory, decoding, prefill, each beside its ceiling.

    python benchmarks/cpu_decode.py                            # 1.1B shape; 7 GB of disk
    python benchmarks/cpu_decode.py --shape 7b --schemes int4 fp8 --rounds 1     # 13.5 GB are made; 22 GB of disk
    python benchmarks/cpu_decode.py --quick                    # a tiny model, not recorded: shows that it works
    python benchmarks/cpu_decode.py --work DIR --prepare       # makes the checkpoints in DIR and measures nothing
    python benchmarks/cpu_decode.py --work DIR --keep          # uses what is in DIR and keeps it

Weights are random. lm_head stays in bf16, as isobit leaves it, unless --lm-head names a scheme. Each checkpoint runs in
a process of its own:

- load: seconds until the first token is there, from a cold disk, beside the time that plain reading of the same files
  takes (the mean of one reading before and one after); the kernel's page cache of these files is dropped before each;
- memory: peak resident memory (mapped files included) less the interpreter with PyTorch before loading, over what is
  needed: the checkpoint and the key-value cache;
- decode: tokens per second behind 16 tokens of prompt, GB/s of weights read, share of the read bandwidth that is
  measured before and after each round;
- prefill of 512 tokens: tokens per second, and the share of the rate of PyTorch's float32 matrix product, which is
  measured after each round.

Results are appended to benchmarks/results/cpu_decode.csv.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from common import RESULTS, cold_read_seconds, provenance, require_space, save, stop, use_threads
from runs import QUICK, RunSettings, run
from shapes import SHAPES, Recipe, make

from isobit.errors import IsobitError
from isobit.formats.schemes import scheme

# What is measured unless schemes are named: the formats that the project states figures for.
DEFAULT_SCHEMES = ["bf16", "fp8", "int8", "int4", "w4a8"]


def row(recipe: Recipe, settings: RunSettings, read_before: float, read_after: float, found: dict) -> dict[str, object]:
    """One line of the CSV."""
    shape = SHAPES[recipe.shape]
    disk = (read_before + read_after) / 2
    needed = found["checkpoint_bytes"] + found["cache_bytes"]
    return {
        "kernel": found["kernel"],
        "isa": found["isa"],
        "threads": found["threads"],
        "shape": shape.title,
        "scheme": recipe.scheme,
        "lm_head": recipe.head,
        "read_bits_per_weight": round(8 * found["read_bytes"] / shape.read_weights, 3),
        "checkpoint_gb": round(found["checkpoint_bytes"] / 1e9, 3),
        "rounds": settings.rounds,
        "load_s": round(found["load_seconds"], 2),
        "ready_s": round(found["ready_seconds"], 2),
        "disk_read_s": round(disk, 2),
        "ready_over_disk_read": round(found["ready_seconds"] / disk, 2),
        "base_rss_mib": found["base_rss"] >> 20,
        "steady_rss_mib": found["steady_rss"] >> 20,
        "peak_rss_mib": found["peak_rss"] >> 20,
        "needed_mib": needed >> 20,
        "peak_over_needed": round((found["peak_rss"] - found["base_rss"]) / needed, 3),
        "decode_tok_s": round(found["decode_tok_s"], 2),
        "decode_gb_s": round(found["decode_gb_s"], 2),
        "read_gb_s": round(found["read_gb_s"], 2),
        "share_of_read": round(found["share_of_read"], 3),
        "prefill_tokens": settings.prefill,
        "prefill_tok_s": round(found["prefill_tok_s"], 1),
        "prefill_gflop_s": round(found["prefill_flop_s"] / 1e9, 1),
        "torch_f32_gflop_s": round(found["matrix_flop_s"] / 1e9, 1),
        "share_of_matrix": round(found["share_of_matrix"], 3),
        "load_before": round(os.getloadavg()[0], 1),
    }


HEADER = f"{'scheme':<12}{'kernel':>16}{'bits':>7}{'ready s':>9}{'/disk':>7}{'peak MiB':>10}{'/needed':>9}"
HEADER += f"{'decode t/s':>12}{'GB/s':>7}{'ceiling':>9}{'share':>7}{'prefill t/s':>13}{'GFLOP/s':>9}{'share':>7}"


def line(row: dict[str, object]) -> str:
    """A row for people."""
    kernel = f"{row['kernel']}/{row['isa']}" if row["isa"] else str(row["kernel"])
    return (
        f"{row['scheme']:<12}{kernel:>16}{row['read_bits_per_weight']:>7}{row['ready_s']:>9}"
        f"{row['ready_over_disk_read']:>7}{row['peak_rss_mib']:>10}{row['peak_over_needed']:>9}"
        f"{row['decode_tok_s']:>12}{row['decode_gb_s']:>7}{row['read_gb_s']:>9}{row['share_of_read']:>7}"
        f"{row['prefill_tok_s']:>13}{row['prefill_gflop_s']:>9}{row['share_of_matrix']:>7}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="default: 1b")
    parser.add_argument("--schemes", nargs="+", metavar="NAME", help=f"default: {' '.join(DEFAULT_SCHEMES)}")
    parser.add_argument("--lm-head", default="keep", metavar="NAME", help="scheme of lm_head, or 'same' as the others'")
    parser.add_argument("--work", type=Path, help="where checkpoints are made (default: among the temporary files)")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints in --work for another run")
    parser.add_argument("--prepare", action="store_true", help="make the checkpoints in --work and end")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; figures are their medians (default: 3)")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the cores this process may use")
    parser.add_argument("--quick", action="store_true", help="a tiny shape; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="where the results go (default: benchmarks/results/cpu_decode.csv)")
    args = parser.parse_args()
    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--rounds and --threads must be at least 1")
    args.keep |= args.prepare
    if args.keep and args.work is None:
        parser.error("--keep and --prepare need --work")
    args.shape = args.shape or ("tiny" if args.quick else "1b")
    return args


def recipes(args: argparse.Namespace) -> list[Recipe]:
    """What to measure, in order.

    Raises:
        SchemeError: no such scheme.
    """
    names = [scheme(name).name for name in args.schemes or DEFAULT_SCHEMES]
    head = args.lm_head if args.lm_head in ("keep", "same") else scheme(args.lm_head).name
    return [Recipe(args.shape, name, _head(name, head)) for name in names]


def _head(name: str, head: str) -> str:
    head = name if head == "same" else head
    return "keep" if head == "bf16" else head


def benchmark(args: argparse.Namespace, work: Path, wanted: list[Recipe]) -> None:
    """Makes and measures one checkpoint after the other."""
    settings = replace(QUICK if args.quick else RunSettings(), rounds=args.rounds)
    path = args.csv or (None if args.quick else RESULTS / "cpu_decode.csv")
    first = provenance()
    print(f"{SHAPES[args.shape].title}; {first['hardware']}; torch {first['torch']}; commit {first['commit']}")
    print(HEADER, flush=True)
    for recipe in wanted:
        folder = make(work, recipe)
        if args.prepare:
            print(f"{recipe.name}: made", flush=True)
            continue
        before = cold_read_seconds(folder)
        found = run(folder, settings)
        result = row(recipe, settings, before, cold_read_seconds(folder), found)
        print(line(result), flush=True)
        if path is not None:
            save([first | result], path)
        if not args.keep and recipe.name != f"{recipe.shape}-bf16":
            shutil.rmtree(folder)


def main() -> int:
    """Measures; returns the exit status."""
    args = parse()
    use_threads(args.threads)
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    work = args.work if args.keep else Path(tempfile.mkdtemp(prefix="isobit-bench-", dir=args.work))
    try:
        wanted = recipes(args)
        sizes = [r.nbytes() for r in wanted if not (work / r.name / "config.json").exists()]
        source = (
            Recipe(args.shape, "bf16").nbytes() if not (work / f"{args.shape}-bf16" / "config.json").exists() else 0
        )
        require_space(work, int(1.05 * (source + (sum(sizes) if args.keep else max(sizes, default=0)))))
        benchmark(args, work, wanted)
    except IsobitError as error:
        stop(str(error))
    finally:
        if not args.keep:
            shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
