"""How fast the engine answers: formats x batches, behind a long context, prompts; each beside the memory's read rate.

    python benchmarks/engine_decode.py --work /dev/shm/isobit                      # 7B shape on the GPU, all of it
    python benchmarks/engine_decode.py --work DIR --schemes fp8 --only batch       # a part of it
    python benchmarks/engine_decode.py --work DIR --schemes fp8 --target sm_86     # the lowering of another card
    python benchmarks/engine_decode.py --device cpu --shape 1b --schemes int8 --batches 1,8 --only batch
    python benchmarks/engine_decode.py --device cpu --quick                        # tiny, not recorded

Weights are random. Each scheme runs in a process of its own, and its rows are appended to the CSV as it ends. Figures
are medians, as `isobit bench` takes them (isobit/evaluation/bench.py): a step counts when every sequence has a token of
it; "all" is tokens of answers over the time of the whole run, as other engines' throughput is given; the host's time is
that of a step in which nobody waits for the model. "share" is bytes of a step, as the plan counts them, over the bytes
that the card reads in the same time and run when it does nothing else.

--only start times processes: from `isobit generate` to its first token, with the checkpoint in the file cache; with an
empty cache of compiled kernels, with one that is filled, and with a kernel pack.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, provenance, save, stop, use_threads
from shapes import SHAPES, Recipe, make

SCHEMES = "bf16,fp8,int8,int4"
PARTS = ("batch", "behind", "prefill", "start")


@dataclass(frozen=True)
class Wanted:
    """What is measured of one checkpoint."""

    shape: str
    device: str
    target: str | None
    batches: tuple[int, ...]
    prompt: int
    new: int
    behind: int
    prefill: tuple[int, int]
    rounds: int
    parts: tuple[str, ...]

    def cases(self) -> list[tuple[str, Any]]:
        """(part, case), the longest cache first."""
        from isobit.evaluation.bench import Case

        found = []
        if "batch" in self.parts:
            found += [("batch", Case(batch, self.prompt, self.new)) for batch in self.batches]
        if "behind" in self.parts:
            found.append(("behind", Case(1, self.behind, min(self.new, SHAPES[self.shape].context - self.behind))))
        if "prefill" in self.parts:
            found.append(("prefill", Case(*self.prefill, 2)))
        return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for checkpoints, which are left there")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--target", help="whose lowering runs on the GPU (default: its own)")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="default: 7b")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--behind", type=int, default=4032, help="tokens in front, for one sequence")
    parser.add_argument("--prefill", default="8x2048", help="prompts x tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="batch,behind,prefill", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, help="on a CPU; default: OMP_NUM_THREADS, or the cores there are")
    parser.add_argument("--quick", action="store_true", help="a tiny shape; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/engine_decode.csv")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.shape = args.shape or ("tiny" if args.quick else "7b")
    args.csv = args.csv or (None if args.quick else RESULTS / "engine_decode.csv")
    unknown = sorted(set(args.only.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    return args


def wanted(args: argparse.Namespace) -> Wanted:
    """What the options ask for."""
    try:
        batches = tuple(int(part) for part in args.batches.split(","))
        first, second = (int(part) for part in args.prefill.split("x"))
    except ValueError:
        stop("--batches takes numbers like 1,8,64 and --prefill two like 8x2048")
    quick = args.quick
    return Wanted(
        args.shape, args.device, args.target, (1, 2) if quick else batches, 8 if quick else args.prompt,
        8 if quick else args.new, 64 if quick else args.behind, (2, 64) if quick else (first, second),
        1 if quick else args.rounds, tuple(args.only.split(",")),
    )  # fmt: skip


# ---------------------------------------------------------------------- one checkpoint, in a process of its own


def measure(folder: Path, scheme: str, what: Wanted) -> None:
    """Prints a line of JSON for each case."""
    import torch

    from isobit.engine.llm import LLM
    from isobit.engine.tokenizer import Tokenizer
    from isobit.evaluation import bench
    from isobit.models.cache.paged import BLOCK
    from isobit.models.weights import load_model

    begin = time.perf_counter()
    model = load_model(folder, device=what.device, lowering=what.target)
    name = torch.cuda.get_device_name() if what.device == "cuda" else "CPU"
    if what.device == "cuda":
        torch.cuda.synchronize()
    loading = time.perf_counter() - begin
    reader = bench.reader(model)
    cases = what.cases()
    llm = LLM(
        model, Tokenizer.from_folder(folder), sequences=max(case.batch for _, case in cases),
        cache_tokens=BLOCK * max(case.blocks for _, case in cases), prefix_cache=False,
    )  # fmt: skip
    for part, case in cases:
        found = bench.measure(llm, case, reader.memory, rounds=what.rounds)
        row = {"device": name, "target": what.target or "", "shape": what.shape, "scheme": scheme, "part": part}
        row |= {"batch": case.batch, "prompt": case.prompt, "new": case.new} | figures(found, folder, scheme, what)
        print(json.dumps(row | {"loading_s": round(loading, 2)}), flush=True)


def figures(found: Any, folder: Path, scheme: str, what: Wanted) -> dict[str, object]:
    """The columns of a measured case."""
    cost = planned(folder, scheme, what, found.case)
    read, decodes = cost.step_bytes / found.step, found.case.new > 2  # a prompt alone has no step to speak of
    return {
        "tok_s": round(found.decode, 1) if decodes else "",
        "step_ms": round(1e3 * found.step, 4) if decodes else "",
        "host_us": "" if found.host is None or not decodes else round(1e6 * found.host, 1),
        "share": round(read / found.bandwidth, 3) if decodes else "",
        "read_tb_s": round(found.bandwidth / 1e12, 4),
        "all_tok_s": round(found.whole, 1),
        "first_token_ms": round(1e3 * found.first_token, 2),
        "prefill_tok_s": round(found.prefill, 1),
        "planned_tok_s": round(cost.decode, 1) if decodes else "",
        "planned_prefill_tok_s": round(cost.prefill, 1),
    }


def planned(folder: Path, scheme: str, what: Wanted, case: Any) -> Any:
    """What the plan says of a case."""
    from isobit.models.planning import plans

    names = (scheme,) if scheme in ("bf16", "f16") else ()
    found = plans(folder, targets=["here"], scheme_names=names, context=case.context, batch=case.batch)[1]
    return next(of[0] for of in found if of[0].target.is_gpu == (what.device == "cuda")).cost


# ---------------------------------------------------------------------- starting


def starts(folder: Path, scheme: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds from the start of a process to its first token."""
    work = Path(tempfile.mkdtemp(prefix="isobit-start-", dir=args.work))
    rows = []
    try:
        pack = work / "pack"
        target = args.target or _own_target()
        made = [sys.executable, "-m", "isobit", "compile", str(folder), "--target", target, "-o", str(pack)]
        packed = subprocess.run(made, capture_output=True, text=True)
        first_token(folder, {"TRITON_CACHE_DIR": str(work / "warm")})  # the checkpoint is in the file cache now
        ways = (("compiling", "cold", None), ("compiled before", "warm", None), ("pack", "none", pack))
        for how, cache, held in ways:
            if held is not None and packed.returncode:
                print(f"no pack: {packed.stderr[-300:]}", file=sys.stderr)
                continue
            environment = {"TRITON_CACHE_DIR": str(work / cache)} | ({"ISOBIT_PACK": str(held)} if held else {})
            row = {"shape": args.shape, "scheme": scheme, "start": how, **first_token(folder, environment)}
            print(*row.values(), flush=True)
            rows.append(row)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return rows


def _own_target() -> str:
    from isobit.targets.here import here

    return next((target.name for target, _ in here() if target.is_gpu), "sm_90")


def first_token(folder: Path, environment: dict[str, str]) -> dict[str, object]:
    """One process: until its first token is there, and until it has ended."""
    command = [sys.executable, "-m", "isobit", "generate", str(folder), "w1 w2 w3 w4", "--device", "cuda",
               "--max-tokens", "2", "--ignore-eos", "--echo"]  # fmt: skip
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment) as process:
        assert process.stdout is not None
        echoed = len("w1 w2 w3 w4")
        process.stdout.read(echoed)
        process.stdout.read(1)
        first = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode:
        stop(f"{' '.join(command)} failed with exit status {process.returncode}")
    return {"first_token_s": round(first, 2), "process_s": round(time.perf_counter() - begin, 2)}


# ---------------------------------------------------------------------- all of them


def run_child(folder: Path, scheme: str, args: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one checkpoint."""
    command = [sys.executable, *sys.argv, "--child", str(folder), "--schemes", scheme]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
            print(*rows[-1].values(), flush=True)
    if process.returncode:
        print(f"{folder.name} failed with exit status {process.returncode}; what it said stands above", flush=True)
    return rows


def benchmark(args: argparse.Namespace, work: Path) -> bool:
    """Measures scheme after scheme; False if one failed."""
    from gpu_generate import write_tokenizer

    what, good = wanted(args), True
    for scheme in args.schemes.split(","):
        folder = make(work, Recipe(args.shape, scheme))
        write_tokenizer(folder, SHAPES[args.shape].vocab)
        if set(what.parts) - {"start"}:
            rows = run_child(folder, scheme, args)
            good = good and len(rows) == len(what.cases())
            if args.csv is not None:
                save([provenance() | row for row in rows], args.csv)
        if "start" in what.parts:
            rows = starts(folder, scheme, args)
            if args.csv is not None:
                save([provenance() | row for row in rows], args.csv.with_name("engine_start.csv"))
    return good


def main() -> int:
    """Measures; returns the exit status."""
    args = parse()
    if args.device == "cpu":
        use_threads(args.threads)
    if args.child is not None:
        measure(args.child, args.schemes, wanted(args))
        return 0
    work = args.work or Path(tempfile.mkdtemp(prefix="isobit-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    args.work = work
    try:
        return 0 if benchmark(args, work) else 1
    finally:
        if work.name.startswith("isobit-bench-"):
            shutil.rmtree(work)


if __name__ == "__main__":
    raise SystemExit(main())
