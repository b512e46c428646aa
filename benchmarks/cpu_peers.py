"""llama.cpp and isobit in turn on the same shape and about the same bits per weight: decoding, prefill, and the ratio.

    python benchmarks/cpu_peers.py --llama-bench build/bin/llama-bench                  # 1.1B shape; 18 GB of disk
    python benchmarks/cpu_peers.py --llama-bench ... --pairs Q4_0 --work DIR --keep     # in pieces
    python benchmarks/cpu_peers.py --llama-bench ... --quick                            # tiny, not recorded

llama-bench and llama-quantize (looked for beside it, or --llama-quantize) come from the llama.cpp that is inside
llama-cpp-python's source distribution:

    pip download --no-binary :all: --no-deps llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build \\
        -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TOOLS=ON
    make -C build -j2 llama-bench llama-quantize

Both sides get random weights: GGUF files are written here in F16 and quantized by llama-quantize (or taken from --gguf,
as SHAPE-FORMAT.gguf), isobit's checkpoints by isobit. lm_head is quantized like llama.cpp does it: in the same format
for 8 bits; Q6_K there and int8 here for 4 bits. "bits" counts what decoding reads: all weights but the embedding table.

A round is one run of llama-bench (which warms up by itself) and one of each of isobit's formats of the pair, each a
process of its own; figures are medians over the rounds, ratios medians of the rounds' ratios. Decoding: 64 tokens, here
behind 16 tokens of prompt, there from an empty context. Results are appended to benchmarks/results/cpu_peers.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import gguf_file
from common import RESULTS, median, provenance, require_space, save, stop, use_threads
from runs import QUICK, RunSettings, run
from shapes import SHAPES, Recipe, make

from isobit.errors import IsobitError
from isobit.formats.schemes import scheme

# llama.cpp's format -> isobit's schemes of about the same bits per weight. llama.cpp rounds activations to 8-bit
# integers for Q8_0 and Q4_0, as int8 and w4a8 do; w4a8-g32 has a scale per 32 weights like Q4_0.
PAIRS = {
    "F16": ("bf16", "f16"),
    "Q8_0": ("fp8", "int8", "int8-w8a16"),
    "Q4_0": ("w4a8", "w4a8-g32", "int4", "int4-g32"),
}


@dataclass(frozen=True)
class Peer:
    """llama.cpp's tools and what they are run with."""

    bench: Path
    quantize: Path
    threads: int
    settings: RunSettings

    def make(self, folder: Path, shape: str, kind: str) -> Path:
        """The GGUF file of a shape in a format; made, by way of F16, if it is not there yet."""
        path = folder / f"{shape}-{kind}.gguf"
        if path.exists():
            return path
        if kind == "F16":
            gguf_file.write_random(path, SHAPES[shape])
            return path
        unfinished = folder / f"part-{path.name}"  # llama-quantize takes a name that begins with a digit for a number
        source = self.make(folder, shape, "F16")
        call([str(self.quantize), str(source), str(unfinished), kind, str(self.threads)])
        os.replace(unfinished, path)
        return path

    def measure(self, path: Path) -> dict[str, object]:
        """One round of a file."""
        options = ["-p", str(self.settings.prefill), "-n", str(self.settings.tokens), "-t", str(self.threads)]
        results = json.loads(call([str(self.bench), "-m", str(path), *options, "-r", "1", "-o", "json"]))
        of_prefill = next(result for result in results if result["n_prompt"])
        of_decode = next(result for result in results if result["n_gen"])
        return {
            "commit": of_prefill["build_commit"],
            "prefill_tok_s": of_prefill["avg_ts"],
            "decode_tok_s": of_decode["avg_ts"],
        }


def call(command: list[str]) -> str:
    """What a program printed on stdout."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        stop(f"{command[0]} cannot be run: {error.strerror}")
    if done.returncode:
        stop(f"{' '.join(command)} failed with exit status {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def head_of(name: str) -> str:
    """The scheme of lm_head: that of the rest, and int8 where the rest has fewer bits."""
    which = scheme(name)
    if which.weights is None:
        return "keep" if name == "bf16" else name
    if which.bits_per_weight() >= 8:
        return name
    return "int8-w8a16" if which.activations is None else "int8"


def measure_pair(peer: Peer, kind: str, schemes: list[str], args: argparse.Namespace, work: Path) -> list[dict]:
    """Rows of one of llama.cpp's formats against some of isobit's, measured in turn."""
    recipes = {name: Recipe(args.shape, name, head_of(name)) for name in schemes}
    folders = {name: make(work, recipe) for name, recipe in recipes.items()}
    path = peer.make(args.gguf or work, args.shape, kind)
    theirs: list[dict] = []
    ours: dict[str, list[dict]] = {name: [] for name in schemes}
    for _ in range(args.rounds):
        theirs.append(peer.measure(path))
        for name in schemes:
            ours[name].append(run(folders[name], peer.settings))
    sizes = gguf_file.tensor_bytes(path)
    read = sum(sizes.values()) - sizes["token_embd.weight"]
    return [row(recipes[name], kind, read, theirs, ours[name], peer) for name in schemes]


def row(recipe: Recipe, kind: str, read: int, theirs: list[dict], ours: list[dict], peer: Peer) -> dict[str, object]:
    """One line of the CSV."""
    shape = SHAPES[recipe.shape]

    def both(figure: str) -> tuple[float, float, float]:
        pairs = [(here[figure], there[figure]) for here, there in zip(ours, theirs, strict=True)]
        ratio = median([here / there for here, there in pairs])
        return median([here for here, _ in pairs]), median([there for _, there in pairs]), ratio

    decode, peer_decode, decode_ratio = both("decode_tok_s")
    prefill, peer_prefill, prefill_ratio = both("prefill_tok_s")
    return {
        "kernel": ours[0]["kernel"],
        "isa": ours[0]["isa"],
        "threads": peer.threads,
        "shape": shape.title,
        "rounds": len(ours),
        "peer": f"llama.cpp {theirs[0]['commit']}",
        "peer_format": kind,
        "peer_bits": round(8 * read / shape.read_weights, 3),
        "scheme": recipe.scheme,
        "lm_head": recipe.head,
        "bits": round(8 * ours[0]["read_bytes"] / shape.read_weights, 3),
        "decode_tok_s": round(decode, 2),
        "peer_decode_tok_s": round(peer_decode, 2),
        "decode_ratio": round(decode_ratio, 3),
        "decode_gb_s": round(decode * ours[0]["read_bytes"] / 1e9, 2),
        "peer_decode_gb_s": round(peer_decode * read / 1e9, 2),
        "read_gb_s": round(median([one["read_gb_s"] for one in ours]), 2),
        "share_of_read": round(median([one["share_of_read"] for one in ours]), 3),
        "prefill_tokens": peer.settings.prefill,
        "prefill_tok_s": round(prefill, 1),
        "peer_prefill_tok_s": round(peer_prefill, 1),
        "prefill_ratio": round(prefill_ratio, 3),
        "load_before": round(os.getloadavg()[0], 1),
    }


HEADER = (
    f"{'peer':<7}{'bits':>7}  {'scheme':<12}{'bits':>7}{'decode t/s':>12}{'peer':>8}{'ratio':>7}{'GB/s':>8}{'peer':>7}"
)
HEADER += f"{'ceiling':>9}{'prefill t/s':>13}{'peer':>8}{'ratio':>7}"


def line(row: dict[str, object]) -> str:
    """A row for people."""
    return (
        f"{row['peer_format']:<7}{row['peer_bits']:>7}  {row['scheme']:<12}{row['bits']:>7}{row['decode_tok_s']:>12}"
        f"{row['peer_decode_tok_s']:>8}{row['decode_ratio']:>7}{row['decode_gb_s']:>8}{row['peer_decode_gb_s']:>7}"
        f"{row['read_gb_s']:>9}{row['prefill_tok_s']:>13}{row['peer_prefill_tok_s']:>8}{row['prefill_ratio']:>7}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", type=Path, required=True, metavar="PATH")
    parser.add_argument("--llama-quantize", type=Path, metavar="PATH", help="default: beside llama-bench")
    parser.add_argument("--gguf", type=Path, metavar="DIR", help="where GGUF files are or are made (default: --work)")
    parser.add_argument("--shape", choices=SHAPES, help="default: 1b")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="llama.cpp's formats; all")
    parser.add_argument("--schemes", nargs="+", metavar="NAME", help="isobit's, of those pairs; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="figures are medians of them (default: 3)")
    parser.add_argument("--work", type=Path, help="where checkpoints are made (default: among the temporary files)")
    parser.add_argument("--keep", action="store_true", help="keep what is made in --work for another run")
    parser.add_argument("--prepare", action="store_true", help="make the files in --work and end")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the cores this process may use")
    parser.add_argument("--quick", action="store_true", help="a tiny shape; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="where the results go (default: benchmarks/results/cpu_peers.csv)")
    args = parser.parse_args()
    if args.rounds < 1 or (args.threads is not None and args.threads < 1):
        parser.error("--rounds and --threads must be at least 1")
    args.keep |= args.prepare
    if args.keep and args.work is None:
        parser.error("--keep and --prepare need --work")
    args.llama_quantize = args.llama_quantize or args.llama_bench.with_name("llama-quantize")
    for tool in (args.llama_bench, args.llama_quantize):
        if not os.access(tool, os.X_OK):
            parser.error(f"{tool} is not a program; --help says how llama.cpp is built")
    args.shape = args.shape or ("tiny" if args.quick else "1b")
    return args


def wanted_schemes(args: argparse.Namespace) -> dict[str, list[str]]:
    """The pairs to measure: llama.cpp's format -> isobit's schemes that were asked for."""
    known = {kind: list(PAIRS[kind]) for kind in args.pairs}
    if args.schemes is None:
        return known
    surplus = [name for name in args.schemes if not any(name in names for names in known.values())]
    if surplus:
        stop(f"{', '.join(surplus)}: none of the schemes that are compared with {', '.join(args.pairs)}: {known}")
    return {kind: found for kind, names in known.items() if (found := [name for name in names if name in args.schemes])}


def disk_needed(shape: str, pairs: dict[str, list[str]], work: Path) -> int:
    """About how many bytes are still to be made: checkpoints, and GGUF files at most as large as they."""
    names = ["bf16", *(name for names in pairs.values() for name in names)]
    missing = [recipe for name in names if not (work / (recipe := Recipe(shape, name, head_of(name))).name).exists()]
    gguf = [SHAPES[shape].read_weights * 2] + [Recipe(shape, names[0]).nbytes() for names in pairs.values() if names]
    return int(1.1 * (sum(recipe.nbytes() for recipe in missing) + sum(gguf)))


def benchmark(args: argparse.Namespace, work: Path, threads: int) -> None:
    """Measures pair after pair."""
    settings = replace(QUICK if args.quick else RunSettings(), rounds=1, warm_up=True)
    peer = Peer(args.llama_bench.resolve(), args.llama_quantize.resolve(), threads, settings)
    pairs = wanted_schemes(args)
    require_space(work, disk_needed(args.shape, pairs, work))
    path = args.csv or (None if args.quick else RESULTS / "cpu_peers.csv")
    first = provenance()
    print(f"{SHAPES[args.shape].title}; {first['hardware']}; torch {first['torch']}; commit {first['commit']}")
    print(HEADER, flush=True)
    for kind, schemes in pairs.items():
        if args.prepare:
            made = [make(work, Recipe(args.shape, name, head_of(name))).name for name in schemes]
            print(", ".join([*made, peer.make(args.gguf or work, args.shape, kind).name]) + ": made", flush=True)
            continue
        rows = measure_pair(peer, kind, schemes, args, work)
        print("\n".join(line(row) for row in rows), flush=True)
        if path is not None:
            save([first | row for row in rows], path)


def main() -> int:
    """Measures; returns the exit status."""
    args = parse()
    threads = use_threads(args.threads)
    for folder in (args.work, args.gguf):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    work = args.work if args.keep else Path(tempfile.mkdtemp(prefix="isobit-bench-", dir=args.work))
    try:
        benchmark(args, work, threads)
    except (IsobitError, ValueError) as error:
        stop(str(error))
    finally:
        if not args.keep:
            shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
