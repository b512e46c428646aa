"""Processes that compile side by side, each fit for it before Triton is imported."""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from isobit.errors import Unsupported

# Variables of the environment that change what Triton compiles, or keep it from compiling.
_UNSET = ("TRITON_INTERPRET", "TRITON_ALWAYS_COMPILE", "TRITON_OVERRIDE_ARCH", "TRITON_KERNEL_OVERRIDE", "TRITON_DEBUG")


def triton_version() -> str:
    """The installed Triton's version.

    Raises:
        Unsupported: Triton is not installed.
    """
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError as error:
        raise Unsupported(
            "compiling GPU kernels",
            ["Triton is not installed"],
            "pip install triton (it needs no GPU and stands beside any torch, the CPU build included)",
        ) from error


def prepare(cache: str, path: list[str]) -> None:
    """Runs once in every worker, before Triton is imported.

    Args:
        cache: folder for Triton's own cache.
        path: where modules are found.
    """
    for name in _UNSET:
        os.environ.pop(name, None)
    os.environ["TRITON_CACHE_DIR"] = cache
    # The default changes between versions of Triton; kernels say what they need, and this silences the warning.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    sys.path[:] = path
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A compiler whose process is killed would go on with what is queued, and then wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def compilers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes (no fork: torch and Triton have threads) with a Triton cache of their own, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="isobit-triton-") as cache:
        pool = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            initializer=prepare,
            initargs=(cache, list(sys.path)),
        )
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
