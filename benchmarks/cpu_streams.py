"""Many streams on a CPU: tokens per second of 8 at once beside one, and beside llama.cpp's parallel decoding, in turns.

    python benchmarks/cpu_streams.py --llama-batched-bench build/bin/llama-batched-bench    # 1.1B shape; 7 GB of disk
    python benchmarks/cpu_streams.py                             # without llama.cpp: isobit's own figures
    python benchmarks/cpu_streams.py --quick                     # tiny, not recorded

llama-batched-bench and llama-quantize are of the llama.cpp inside llama-cpp-python's source distribution: cpu_peers.py
says how they are built (`make -C build -j2 llama-batched-bench llama-quantize`).

Both sides get random weights, and lm_head in the format of the rest. A round is a process of isobit's, which runs each
number of streams through the engine as `isobit bench` does, and one of llama.cpp's with prompts and answers of the same
lengths and as many threads; figures are medians over the rounds, ratios medians of the rounds' ratios: tokens of all
streams per second of decoding. "share" is of the memory's read rate in the same run. Rows go to
benchmarks/results/cpu_streams.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, median, provenance, require_space, save, stop, use_threads
from cpu_peers import Peer, call, head_of
from gpu_generate import write_tokenizer
from runs import RunSettings
from shapes import SHAPES, Recipe, make

from isobit.cli import openmp
from isobit.errors import IsobitError
from isobit.targets.cores import cores

KINDS = {"int8": "Q8_0", "fp8": "Q8_0", "w4a8-g32": "Q4_0", "int4-g32": "Q4_0", "bf16": "F16"}  # llama.cpp's format


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-batched-bench", type=Path, metavar="PATH", help="default: llama.cpp is left out")
    parser.add_argument("--llama-quantize", type=Path, metavar="PATH", help="default: beside llama-batched-bench")
    parser.add_argument("--shape", choices=SHAPES, help="default: 1b")
    parser.add_argument("--schemes", nargs="+", choices=KINDS, default=["int8"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8], help="at once (default: 1 8)")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for models, which are left there (default: a temporary one)")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the cores this process may use")
    parser.add_argument("--quick", action="store_true", help="a tiny shape; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/cpu_streams.csv")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.prompt, args.new, args.rounds = 8, 8, 1
    args.shape = args.shape or ("tiny" if args.quick else "1b")
    args.csv = args.csv or (None if args.quick else RESULTS / "cpu_streams.csv")
    if min(args.rounds, args.prompt, *args.streams) < 1 or args.new < 4:
        parser.error("--rounds, --prompt and --streams must be at least 1, --new at least 4")
    if args.llama_batched_bench is not None:
        args.llama_quantize = args.llama_quantize or args.llama_batched_bench.with_name("llama-quantize")
        for tool in (args.llama_batched_bench, args.llama_quantize):
            if not os.access(tool, os.X_OK):
                parser.error(f"{tool} is not a program; --help says how llama.cpp is built")
    return args


def measure(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of a checkpoint by number of streams. Runs in a process of its own."""
    from isobit.checkpoint.reader import Checkpoint
    from isobit.engine.generate import load_llm
    from isobit.evaluation import bench
    from isobit.evaluation.measure import bytes_per_token
    from isobit.models.cache.paged import BLOCK

    cases = [bench.Case(streams, args.prompt, args.new) for streams in args.streams]
    tokens = BLOCK * max(case.blocks for case in cases)
    llm = load_llm(folder, sequences=max(args.streams), cache_tokens=tokens, prefix_cache=False)
    read, reader = bytes_per_token(Checkpoint.open(folder)), bench.reader(llm.model)
    found = {}
    for case in cases:
        one = bench.measure(llm, case, reader.memory, rounds=1)
        found[str(case.batch)] = {
            "tok_s": one.decode, "host_us": 1e6 * (one.host or 0.0), "step_ms": 1e3 * one.step,
            "share": read / one.step / one.bandwidth, "read_gb_s": one.bandwidth / 1e9, "prefill_tok_s": one.prefill,
        }  # fmt: skip
    return found


def ours(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One round of isobit's."""
    options = ["--prompt", args.prompt, "--new", args.new, "--streams", *args.streams, "--child", folder]
    command = [sys.executable, __file__, *map(str, options)]
    environment = os.environ | openmp.settings(os.environ, cores())
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        stop(f"the run of {folder.name} failed with exit status {done.returncode}; what it said stands above")
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def theirs(path: Path, args: argparse.Namespace, threads: int) -> dict[str, dict[str, float]]:
    """One round of llama.cpp's."""
    room = max(args.streams) * (args.prompt + args.new)
    options = ["-m", path, "-c", room, "-npp", args.prompt, "-ntg", args.new, "-t", threads, "-tb", threads]
    options += ["-npl", ",".join(map(str, args.streams)), "--output-format", "jsonl"]
    said = call([str(args.llama_batched_bench.resolve()), *map(str, options)])
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return {str(row["pl"]): {"tok_s": row["speed_tg"], "prefill_tok_s": row["speed_pp"]} for row in rows}


def benchmark(scheme: str, args: argparse.Namespace, work: Path, threads: int) -> list[dict[str, object]]:
    """Rows of one scheme: one for each number of streams."""
    require_space(work, int(2.5 * Recipe(args.shape, "bf16").nbytes()))
    folder = make(work, Recipe(args.shape, scheme, head_of(scheme)))
    write_tokenizer(folder, SHAPES[args.shape].vocab)
    path = None
    if args.llama_batched_bench is not None:
        tools = args.llama_batched_bench.resolve(), args.llama_quantize.resolve()
        path = Peer(*tools, threads, RunSettings()).make(work, args.shape, KINDS[scheme])
    here, there = [], []
    for _ in range(args.rounds):
        here.append(ours(folder, args))
        if path is not None:
            there.append(theirs(path, args, threads))
    fixed = {"shape": args.shape, "scheme": scheme, "threads": threads, "prompt": args.prompt, "new": args.new}
    return [fixed | row(str(streams), str(min(args.streams)), here, there) for streams in args.streams]


def row(streams: str, fewest: str, here: list[dict], there: list[dict]) -> dict[str, object]:
    """The figures of a number of streams."""
    found: dict[str, object] = {"streams": streams, "rounds": len(here)}
    for name, digits in (("tok_s", 2), ("step_ms", 2), ("host_us", 0), ("share", 3), ("read_gb_s", 1)):
        found[name] = round(median([one[streams][name] for one in here]), digits)
    found["to_fewest"] = round(median([one[streams]["tok_s"] / one[fewest]["tok_s"] for one in here]), 2)
    found |= {"peer_tok_s": "", "ratio": "", "peer_prefill_tok_s": ""}
    found["prefill_tok_s"] = round(median([one[streams]["prefill_tok_s"] for one in here]), 1)
    if there:
        found["peer_tok_s"] = round(median([one[streams]["tok_s"] for one in there]), 2)
        found["peer_prefill_tok_s"] = round(median([one[streams]["prefill_tok_s"] for one in there]), 1)
        pairs = zip(here, there, strict=True)
        found["ratio"] = round(median([one[streams]["tok_s"] / peer[streams]["tok_s"] for one, peer in pairs]), 3)
    return found | {"load_before": round(os.getloadavg()[0], 1)}


def main() -> int:
    """Measures; returns the exit status."""
    args = parse()
    threads = use_threads(args.threads)
    if args.child is not None:
        print(json.dumps(measure(args.child, args)))
        return 0
    work = args.work or Path(tempfile.mkdtemp(prefix="isobit-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        for scheme in args.schemes:
            rows = benchmark(scheme, args, work, threads)
            for one in rows:
                print(", ".join(f"{name} {value}" for name, value in one.items() if value != ""), flush=True)
            if args.csv is not None:
                save([provenance() | one for one in rows], args.csv)
    except (IsobitError, ValueError) as error:
        stop(str(error))
    finally:
        if args.work is None:
            shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
