"""What the benchmarks share: the machine, threads, the clock, ceilings to compare with, memory, CSV files."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from isobit.targets.detect import usable_cores

if TYPE_CHECKING:
    import torch

RESULTS = Path(__file__).parent / "results"

# ---------------------------------------------------------------------- what was measured, and on what


def hardware() -> str:
    """Processor, cores and memory of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    widest = next((name for name in ("avx512f", "avx2", "asimddp") if f" {name} " in f"{flags} "), "no avx")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{model} ({widest}), {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB"


def commit() -> str:
    """The commit that was measured; a plus sign if the sources had changes."""
    git = ["git", "-C", str(Path(__file__).parent)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if found.returncode:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no", "../src"], capture_output=True)
    return found.stdout.strip() + ("+" if changed.stdout else "")


def provenance() -> dict[str, object]:
    """The first columns of every row: date, commit, hardware, PyTorch."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "hardware": hardware(),
        "torch": torch.__version__,
    }


def save(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Appends rows to a CSV.

    Raises:
        SystemExit: the file has other columns than the rows.
    """
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0])
    if path.exists():
        with open(path, newline="") as file:
            if next(csv.reader(file), columns) != columns:
                stop(f"{path} has other columns than this benchmark writes; name another file with --csv")
    new = not path.exists() or path.stat().st_size == 0
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def stop(reason: str) -> NoReturn:
    """Ends the benchmark with exit status 2 and the reason on stderr."""
    print(f"{Path(sys.argv[0]).name}: {reason}", file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------------- threads and time


def use_threads(count: int | None) -> int:
    """Makes PyTorch and isobit use ``count`` threads; call it before either is imported.

    Both read OMP_NUM_THREADS when they start, so the script is started anew, once, if it says something else. Without a
    count, OMP_NUM_THREADS is taken as it is, or all cores that this process may use.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    wanted = count or (int(named) if named.isdigit() and int(named) else usable_cores())
    if named != str(wanted):
        os.environ["OMP_NUM_THREADS"] = str(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return wanted


def settle() -> None:
    """Waits until PyTorch's threads have stopped spinning; behind a call they hold the cores for a while."""
    time.sleep(0.02)


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes, on cores that are free."""
    settle()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


# ---------------------------------------------------------------------- ceilings


class ReadBandwidth:
    """What the memory gives to threads that do nothing but read, in bytes per second.

    Two readers go over a buffer much larger than every cache: isobit's own (``isobit_cpu_read``, where it is built) and
    PyTorch's sum of 64-bit integers. The faster one counts.
    """

    def __init__(self, nbytes: int = 1 << 30) -> None:
        import torch

        # Random numbers: a hypervisor may keep equal pages once, and a cache would hold that one.
        self.buffer = torch.empty(nbytes // 8, dtype=torch.int64).random_()
        self._readers: list[Callable[[torch.Tensor], object]] = [torch.sum, *_own_readers()]
        self()

    def __call__(self) -> float:
        """Measures once."""
        nbytes = self.buffer.numel() * 8
        return max(nbytes / seconds(lambda reader=reader: reader(self.buffer)) for reader in self._readers)  # type: ignore[misc]


def _own_readers() -> list[Callable[[torch.Tensor], object]]:
    """isobit's reader, if its CPU kernels are built."""
    try:
        from isobit.kernels.cpu import library as cpu_library
    except ImportError:
        return []
    if cpu_library.problem() is not None:
        return []
    read = cpu_library.library().isobit_cpu_read
    return [lambda buffer: read(buffer.data_ptr(), buffer.numel() * buffer.element_size())]


class MatrixRate:
    """PyTorch's float32 matrix product, ``[m, k] x [k, n]``, in operations per second (a multiply-add counts two)."""

    def __init__(self, m: int, n: int, k: int) -> None:
        import torch

        self.operations = 2.0 * m * n * k
        self.x, self.w = torch.randn(m, k), torch.randn(n, k)
        self()

    def __call__(self) -> float:
        """Measures once."""
        import torch.nn.functional as F

        return self.operations / seconds(lambda: F.linear(self.x, self.w))


# ---------------------------------------------------------------------- memory and disk


def memory() -> dict[str, int]:
    """This process, in bytes: ``rss`` (resident, mapped files included), ``anonymous`` (of it), ``peak`` (of rss)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"rss": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {name: int(status[field].split()[0]) * 1024 for name, field in fields.items()}


def drop_from_memory(folder: Path) -> None:
    """Makes the next reading of a folder's files come from the disk."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_read_seconds(folder: Path) -> float:
    """How long it takes to read a folder's weight files from the disk, one after another; they are dropped again."""
    drop_from_memory(folder)
    block = bytearray(16 << 20)
    begin = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(block):
                pass
    taken = time.perf_counter() - begin
    drop_from_memory(folder)
    return taken


def require_space(folder: Path, needed: int) -> None:
    """Stops the benchmark when a folder's disk lacks space."""
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        have = f"{folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed"
        stop(f"{have}; name another folder with --work")
