"""Two source trees beside each other on the CPU, in one run: is a change of isobit as fast as what was before?

    git worktree add ../before COMMIT && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/cpu_trees.py --before ../before            # 1.1B shape, 4 minutes, 7 GB of disk
    python benchmarks/cpu_trees.py --before ../before --quick    # a tiny model, not recorded: shows that it works

Each tree loads the same random checkpoint in a process of its own, through ``isobit.load``, and both take turns of
about a second: a prompt, then tokens one at a time behind it, as a user gets them from ``stream``. Who else uses the
machine changes from second to second, so what counts is the ratio within a pair of turns; their order changes from pair
to pair. Reported are the medians of the rates and of the ratios, and the quartiles of the ratios of decoding.

Results are appended to benchmarks/results/cpu_trees.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, hardware, median, provenance, require_space, save, settle, stop, use_threads
from shapes import SHAPES, Recipe, make

from isobit.cli import openmp
from isobit.errors import IsobitError
from isobit.formats.schemes import scheme
from isobit.targets.cores import cores

HERE = Path(__file__).parents[1]
DEFAULT_SCHEMES = ["bf16", "fp8", "int8", "int4"]

# What runs in each tree; nothing of it but the Python interface, which stays.
WORKER = """
import json, sys, time
import isobit
model = isobit.load(sys.argv[1])
for line in sys.stdin:
    prompt, seconds = json.loads(line)
    begin = time.perf_counter()
    pieces = model.stream(list(range(2, 2 + prompt)), max_tokens=1000, temperature=0, ignore_eos=True)
    next(pieces)
    first = time.perf_counter()
    count = 0
    while time.perf_counter() - first < seconds and next(pieces, None) is not None:
        count += 1
    end = time.perf_counter()
    pieces.close()
    print(json.dumps([prompt / (first - begin), count / (end - first)]), flush=True)
"""


class Tree:
    """A process that runs a checkpoint on one source tree.

    Attributes:
        prefill, decode: tokens per second of each turn so far.
    """

    def __init__(self, tree: Path, folder: Path) -> None:
        environment = os.environ | openmp.settings(os.environ, cores()) | {"PYTHONPATH": str(tree / "src")}
        command = [sys.executable, "-c", WORKER, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        self.prefill: list[float] = []
        self.decode: list[float] = []

    def turn(self, prompt: int, seconds: float, *, warm_up: bool = False) -> None:
        """A prompt and about so many seconds of decoding."""
        assert self._process.stdin is not None and self._process.stdout is not None
        settle()
        self._process.stdin.write(json.dumps([prompt, seconds]) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        if not said:
            stop(f"a tree's process ended with status {self._process.wait()}; what it said stands above")
        if not warm_up:
            prefill, decode = json.loads(said)
            self.prefill.append(prefill)
            self.decode.append(decode)

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(before: Path, after: Path, folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """Both trees on one checkpoint, in turns."""
    trees = Tree(before, folder), Tree(after, folder)
    for tree in trees:
        tree.turn(args.prompt, args.seconds / 4, warm_up=True)
    for turn in range(args.turns):
        for tree in trees if turn % 2 == 0 else trees[::-1]:
            tree.turn(args.prompt, args.seconds)
    for tree in trees:
        tree.end()
    old, new = trees
    ratios = [b / a for a, b in zip(old.decode, new.decode, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "turns": args.turns,
        "decode_before_tok_s": round(median(old.decode), 2),
        "decode_after_tok_s": round(median(new.decode), 2),
        "decode_ratio": round(median(ratios), 3),
        "decode_ratio_low": round(low, 3),
        "decode_ratio_high": round(high, 3),
        "prompt": args.prompt,
        "prefill_before_tok_s": round(median(old.prefill), 1),
        "prefill_after_tok_s": round(median(new.prefill), 1),
        "prefill_ratio": round(median([b / a for a, b in zip(old.prefill, new.prefill, strict=True)]), 3),
        "load_before": round(os.getloadavg()[0], 1),
    }


def with_tokenizer(folder: Path) -> Path:
    """The folder with a tokenizer of a token per byte, which ``isobit.load`` wants."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return folder


def head(tree: Path) -> str:
    """The commit of a tree; a plus sign if its sources have changes."""
    git = ["git", "-C", str(tree)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no", "src"], capture_output=True)
    return (found.stdout.strip() + ("+" if changed.stdout else "")) if found.returncode == 0 else "unknown"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="TREE", help="a checkout with its kernels built")
    parser.add_argument("--after", type=Path, default=HERE, metavar="TREE", help="another (default: this one)")
    parser.add_argument("--shape", choices=SHAPES, help="default: 1b")
    parser.add_argument("--schemes", nargs="+", metavar="NAME", help=f"default: {' '.join(DEFAULT_SCHEMES)}")
    parser.add_argument("--turns", type=int, default=16, help="of each tree (default: 16)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of decoding in a turn (default: 1)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a turn's prompt (default: 32)")
    parser.add_argument("--work", type=Path, help="where checkpoints are made and kept (default: made for this run)")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the cores this process may use")
    parser.add_argument("--quick", action="store_true", help="a tiny shape; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="where the results go (default: benchmarks/results/cpu_trees.csv)")
    args = parser.parse_args()
    if args.turns < 2 or args.prompt < 1:
        parser.error("--turns must be at least 2 and --prompt at least 1")
    for tree in (args.before, args.after):
        if not (tree / "src" / "isobit").is_dir():
            parser.error(f"{tree} is no checkout of isobit: it has no src/isobit")
    args.shape = args.shape or ("tiny" if args.quick else "1b")
    return args


def benchmark(args: argparse.Namespace, work: Path) -> None:
    """Makes one checkpoint after the other and compares the trees on it."""
    path = args.csv or (None if args.quick else RESULTS / "cpu_trees.csv")
    before, after = args.before.resolve(), args.after.resolve()
    threads = int(os.environ["OMP_NUM_THREADS"])
    common = provenance() | {"commit": head(after), "commit_before": head(before), "threads": threads}
    print(f"{SHAPES[args.shape].title}; {hardware()}; {common['commit_before']} beside {common['commit']}", flush=True)
    for name in [scheme(one).name for one in args.schemes or DEFAULT_SCHEMES]:
        folder = with_tokenizer(make(work, Recipe(args.shape, name)))
        found = compare(before, after, folder, args)
        print(
            f"{name:<8} decoding {found['decode_before_tok_s']:>8} and {found['decode_after_tok_s']:>8} tokens/s, ratio"
            f" {found['decode_ratio']} ({found['decode_ratio_low']} to {found['decode_ratio_high']}); prompts"
            f" {found['prefill_before_tok_s']:>7} and {found['prefill_after_tok_s']:>7}, {found['prefill_ratio']}",
            flush=True,
        )
        if path is not None:
            save([common | {"shape": SHAPES[args.shape].title, "scheme": name} | found], path)


def main() -> int:
    """Measures; returns the exit status."""
    args = parse()
    use_threads(args.threads)
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    work = args.work or Path(tempfile.mkdtemp(prefix="isobit-bench-"))
    try:
        require_space(work, sum(Recipe(args.shape, name).nbytes() for name in args.schemes or DEFAULT_SCHEMES))
        benchmark(args, work)
    except IsobitError as error:
        stop(str(error))
    finally:
        if args.work is None:
            shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
