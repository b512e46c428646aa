"""How many threads the CPU kernels use, and why: a pure choice from the environment and the cores of the process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from isobit.errors import UsageError
from isobit.targets.cores import Cores

MOST = 4096  # isobit_cpu_set_threads takes no more


@dataclass(frozen=True)
class Threads:
    """Threads of the pool, the caller included, and where their number comes from."""

    count: int
    reason: str


def choose(environment: Mapping[str, str], cores: Cores) -> Threads:
    """Threads of the pool.

    ISOBIT_THREADS is taken as it is. OMP_NUM_THREADS counts up to the cores that this process may use: images and job
    scripts set it for whole machines, and threads that share a core wait for each other in every layer. Its first
    number counts, as in OpenMP; the others are for loops within loops. Without either, all cores.

    Args:
        environment: the variables.
        cores: what this process may use.

    Raises:
        UsageError: a variable holds no number of threads.
    """
    own, openmp = (environment.get(name, "").strip() for name in ("ISOBIT_THREADS", "OMP_NUM_THREADS"))
    if own:
        return Threads(_number("ISOBIT_THREADS", own, own, "for example ISOBIT_THREADS=4"), "ISOBIT_THREADS")
    if openmp:
        wanted = _number("OMP_NUM_THREADS", openmp, openmp.split(",")[0].strip(), "or set ISOBIT_THREADS instead of it")
        if wanted <= cores.count:
            return Threads(wanted, "OMP_NUM_THREADS")
        return Threads(cores.count, f"{cores.reason}; OMP_NUM_THREADS={openmp} is more than that")
    return Threads(cores.count, cores.reason)


def _number(name: str, value: str, text: str, instead: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST:
        raise UsageError(f"{name}={value}: give a number of threads from 1 to {MOST}, {instead}")
    return int(text)
