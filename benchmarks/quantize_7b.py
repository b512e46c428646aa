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
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common import RESULTS, drop_from_memory, provenance, save
from shapes import SHAPES, make_checkpoint

DISK_TEST_BYTES = 4 << 30

# What the child runs. It prints its report and its own peak memory, as the kernel counted it.
CHILD = """
import json, resource, sys
from pathlib import Path
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize

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


def measure(source: Path, out: Path, scheme: str) -> dict[str, float]:
    """Runs the child on a cold source; returns what it printed."""
    drop_from_memory(source)
    command = [sys.executable, "-c", CHILD, str(source), str(out), scheme]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(
    scheme: str, layers: int, result: dict[str, float], disk: tuple[float, float], load: float
) -> dict[str, object]:
    """One line of the CSV."""
    write, read = disk
    floor = result["source_bytes"] / read + result["output_bytes"] / write
    return provenance() | {
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


def main() -> None:
    """Make, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=["fp8", "int4"])
    parser.add_argument("--layers", type=int, default=SHAPES["7b"].layers)
    parser.add_argument("--folder", type=Path, help="where to work (default: a new folder among the temporary files)")
    parser.add_argument("--csv", type=Path, default=RESULTS / "quantize_7b.csv", help="where the results go")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="isobit-bench-", dir=args.folder))
    try:
        size = make_checkpoint(work / "source", replace(SHAPES["7b"], layers=args.layers))
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
