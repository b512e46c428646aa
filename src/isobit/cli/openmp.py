"""PyTorch's threads beside those of the CPU kernels: what OpenMP must be told before PyTorch is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from isobit.targets.cores import Cores

# How often GNU OpenMP looks for work before a thread of it sleeps. By default it goes on for milliseconds behind every
# operation and holds the cores meanwhile: a linear of the CPU kernels behind one then took 2.0 ms instead of 1.1, and
# with this 1.3 (docs/cpu.md). Sequences of operations do not lose: it still spans the gaps between them.
_SPINS = "10000"
_ASKED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # the user's own answers to the same question


def settings(environment: Mapping[str, str], cores: Cores) -> dict[str, str]:
    """Variables to set that are not set: how long to spin; and no more threads than a CPU quota lets run.

    Args:
        environment: the variables that there are.
        cores: what this process may use. OpenMP looks at the affinity mask only.
    """
    found = {}
    if not any(name in environment for name in _ASKED):
        found["GOMP_SPINCOUNT"] = _SPINS
    if "OMP_NUM_THREADS" not in environment and cores.count < cores.affinity:
        found["OMP_NUM_THREADS"] = str(cores.count)
    return found
