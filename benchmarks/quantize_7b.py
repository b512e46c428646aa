"""Quantizes a random checkpoint of Llama-2-7B's shape and measures time, throughput, peak memory and the disk.

    python benchmarks/quantize_7b.py                         # fp8 and int4; makes 13.5 GB, needs 25 GB of disk in all
    python benchmarks/quantize_7b.py --schemes fp8 int8 int4 --folder /scratch/bench
    python benchmarks/quantize_7b.py --layers 2              # a smaller one, for a quick look

The quantizer runs in a child process; its peak memory is the kernel's own count (VmHWM: resident pages, mapped files
included). The disk is measured in the same run, by writing and reading back a file of 4 GB, so that a figure can be
set against what the machine could do at that moment. Results go to benchmarks/results/quantize_7b.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from isobit.checkpoint.shards import INDEX, PlannedTensor, index_json, plan_shards

HIDDEN, INTERMEDIATE, VOCAB, LAYERS = 4096, 11008, 32000, 32
SHARD_BYTES = 5_000_000_000
RESULTS = Path(__file__).parent / "results" / "quantize_7b.csv"
DISK_TEST_BYTES = 4 << 30

# What the child runs. It prints its report and its own peak memory, as the kernel counted it.
CHILD = """
import json, resource, sys
from pathlib import Path
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantize.driver import quantize

source, out, name = sys.argv[1:]
report = quantize(Path(source), Path(out), Policy(scheme(name)))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "peak_rss_kib": int(status["VmHWM"].split()[0]),
    "seconds": report.seconds,
    "cpu_seconds": used.ru_utime + used.ru_stime,
    "source_bytes": report.source_bytes,
    "output_bytes": report.output_bytes,
    "relative_squared_error": report.relative_squared_error,
}))
"""


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, in the order of a real checkpoint."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for part in "qkvo":
            found[f"{layer}.self_attn.{part}_proj.weight"] = (HIDDEN, HIDDEN)
        for part in ("gate", "up"):
            found[f"{layer}.mlp.{part}_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        found[f"{layer}.input_layernorm.weight"] = (HIDDEN,)
        found[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    found["model.norm.weight"] = (HIDDEN,)
    found["lm_head.weight"] = (VOCAB, HIDDEN)
    return found


def make_checkpoint(folder: Path, layers: int) -> int:
    """Writes the random checkpoint, bf16, one tensor at a time; returns its bytes.

    Every tensor is a stretch of one 256 MiB run of normal numbers, each from its own position: drawing 6.7 billion
    numbers would take longer than the measurement.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(1 << 27, generator=generator) * 0.02).to(torch.bfloat16)
    raw = memoryview(pool.view(torch.uint8).numpy())
    shards = plan_shards([[PlannedTensor(n, "BF16", s)] for n, s in shapes(layers).items()], SHARD_BYTES)
    position = 0
    for shard in shards:
        with open(folder / shard.name, "wb") as file:
            file.write(shard.header)
            for tensor in shard.tensors.values():
                left = tensor.nbytes
                while left:
                    part = raw[position : position + left]
                    file.write(part)
                    left -= len(part)
                    position = (position + len(part)) % len(raw)
                position = (position + 2 * 7919) % len(raw)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    index = index_json(shards)
    if index is not None:
        (folder / INDEX).write_bytes(index)
    (folder / "config.json").write_text(json.dumps(config(layers), indent=2))
    return sum(shard.data_bytes for shard in shards)


def config(layers: int) -> dict[str, object]:
    """config.json of Llama-2-7B."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def disk_speed(folder: Path) -> tuple[float, float]:
    """(write, read) in bytes per second: 4 GiB written with a sync at the end, dropped from memory, read back."""
    block = os.urandom(16 << 20)
    path = folder / "disk-test"
    begin = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for _ in range(DISK_TEST_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    write = DISK_TEST_BYTES / (time.monotonic() - begin)
    begin = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        while file.read(len(block)):
            pass
    read = DISK_TEST_BYTES / (time.monotonic() - begin)
    path.unlink()
    return write, read


def drop_from_memory(folder: Path) -> None:
    """Makes the next reading of these files come from the disk."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(source: Path, out: Path, scheme: str) -> dict[str, float]:
    """Runs the child on a cold source; returns what it printed."""
    drop_from_memory(source)
    command = [sys.executable, "-c", CHILD, str(source), str(out), scheme]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def hardware() -> str:
    """Processor, cores and memory of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    widest = next((name for name in ("avx512f", "avx2") if f" {name} " in f"{flags} "), "no avx")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{model} ({widest}), {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB"


def commit() -> str:
    """The commit that was measured; a plus sign if the tree had changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if found.returncode:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no", "../src"], capture_output=True)
    return found.stdout.strip() + ("+" if changed.stdout else "")


def row(
    scheme: str, layers: int, result: dict[str, float], disk: tuple[float, float], load: float
) -> dict[str, object]:
    """One line of the CSV."""
    write, read = disk
    floor = result["source_bytes"] / read + result["output_bytes"] / write
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "shape": f"Llama-2-7B, {layers} layers, bf16",
        "scheme": scheme,
        "source_gb": round(result["source_bytes"] / 1e9, 2),
        "output_gb": round(result["output_bytes"] / 1e9, 2),
        "seconds": round(result["seconds"], 1),
        "cpu_seconds": round(result["cpu_seconds"], 1),
        "source_mb_per_s": round(result["source_bytes"] / result["seconds"] / 1e6),
        "peak_rss_mib": round(result["peak_rss_kib"] / 1024),
        "disk_write_mb_per_s": round(write / 1e6),
        "disk_read_mb_per_s": round(read / 1e6),
        "disk_floor_seconds": round(floor, 1),
        "load_before": round(load, 1),
        "relative_squared_error": result["relative_squared_error"],
    }


def save(rows: list[dict[str, object]], path: Path) -> None:
    """Appends rows to the CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Make, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=["fp8", "int4"])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--folder", type=Path, help="where to work (default: a new folder among the temporary files)")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="where the results go")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="isobit-bench-", dir=args.folder))
    try:
        size = make_checkpoint(work / "source", args.layers)
        print(f"made {size / 1e9:.2f} GB", flush=True)
        for scheme in args.schemes:
            load = os.getloadavg()[0]
            disk = disk_speed(work)
            result = measure(work / "source", work / "out", scheme)
            shutil.rmtree(work / "out")
            found = row(scheme, args.layers, result, disk, load)
            save([found], args.csv)
            print(json.dumps(found, indent=1), flush=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
