"""The processes that compile: none outlives the one that asked, however that ends."""

from __future__ import annotations

import subprocess
import sys

import psutil

ASKS = """
import os, time
from isobit.kernels.gpu.compile.processes import compilers
if __name__ == "__main__":
    with compilers(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 3600).result()
"""


def test_compilers_end_with_the_process_that_was_killed() -> None:
    asks = subprocess.Popen([sys.executable, "-c", ASKS], stdout=subprocess.PIPE, text=True)
    assert asks.stdout is not None
    compiler = psutil.Process(int(asks.stdout.readline()))
    assert compiler.is_running()
    asks.kill()
    asks.communicate()
    compiler.wait(timeout=600)
