"""What there is of the CPU kernels on this machine, for `isobit doctor`. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from isobit.kernels import backends
from isobit.kernels.cpu import library as cpu_library


@dataclass(frozen=True)
class CpuKernels:
    """The CPU kernels as they are here.

    Attributes:
        problem: why they cannot be used, or None.
        remedy: how to mend that, or None.
        compiler: what built them; None if they cannot be used.
        built: instruction sets they were built for, best first.
        left_out: those for this kind of machine that the compiler did not know.
        runnable: instruction sets that this machine has, too.
        isa: the one in use.
        isa_reason: why this one.
        threads: of their pool.
        threads_reason: why so many.
        forced: the kernel that ISOBIT_KERNEL forces, or None.
    """

    problem: str | None
    remedy: str | None
    compiler: str | None
    built: tuple[str, ...]
    left_out: tuple[str, ...]
    runnable: tuple[str, ...]
    isa: str | None
    isa_reason: str | None
    threads: int
    threads_reason: str
    forced: str | None

    @property
    def used(self) -> bool:
        """Whether linears on the CPU run through them."""
        return self.problem is None and self.forced in (None, "cpu")


def cpu_kernels() -> CpuKernels:
    """Looks at the library, and loads it.

    Raises:
        UsageError: an environment variable asks for what cannot be.
    """
    threads, forced, found = cpu_library.wanted_threads(), backends.forced(), cpu_library.problem_found()
    if found is not None:
        return CpuKernels(
            found.reason, found.remedy, None, (), (), (), None, None, threads.count, threads.reason, forced
        )  # fmt: skip
    asked = os.environ.get("ISOBIT_ISA", "").strip()
    return CpuKernels(
        problem=None,
        remedy=None,
        compiler=cpu_library.compiler(),
        built=cpu_library.built_isas(),
        left_out=cpu_library.left_out(),
        runnable=cpu_library.isas(),
        isa=cpu_library.isa(),
        isa_reason="ISOBIT_ISA" if asked else "the best that runs here",
        threads=cpu_library.threads(),
        threads_reason=threads.reason,
        forced=forced,
    )
