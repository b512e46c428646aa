"""The threads of the CPU kernels in processes as they come: forked, spawned, with many callers, without room for more.

Each case is a process of its own, ended after a while: what is tested here hangs when it is wrong.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_model

from isobit.kernels.cpu import library as cpu_library

PROBLEM = cpu_library.problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

# A linear through the library alone, without torch: `work()` says whether the result is right.
SETUP = """
import ctypes, os, sys
import numpy as np
from isobit.kernels.cpu import library as cpu_library

class Linear(ctypes.Structure):
    _fields_ = (
        [("n", ctypes.c_int64), ("k", ctypes.c_int64), ("format", ctypes.c_int32), ("activations", ctypes.c_int32)]
        + [("activation_group", ctypes.c_int32), ("input_scale", ctypes.c_float)]
        + [(name, ctypes.c_int64) for name in ("group", "block_rows", "row_bytes")]
        + [("scale_format", ctypes.c_int32), ("alike", ctypes.c_int32)]
        + [(name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "bias", "over")]
        + [(name, ctypes.c_int32) for name in ("over_rule", "over_each", "activation_scales")]
    )

N, K, M = 1024, 512, 4  # 2 MB: pieces for many threads
random = np.random.default_rng(0)
w = random.integers(-8, 9, (N, K)).astype(np.float32)
x = random.integers(-8, 9, (M, K)).astype(np.float32)
expected = x @ w.T  # integers: exact in any order

def work():
    y = np.full((M, N), np.nan, np.float32)
    linear = Linear(n=N, k=K, format=0, row_bytes=4 * K, codes=w.ctypes.data)
    code = cpu_library.library().isobit_cpu_linear(ctypes.byref(linear), x.ctypes.data, M, K, y.ctypes.data, N)
    return code == 0 and bool((y == expected).all())
"""


def run(code: str, tmp_path: Path) -> None:
    """Runs a script behind SETUP with four threads; it prints "fine" at its end."""
    script = tmp_path / "script.py"
    script.write_text(SETUP + code)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False,
        env={"ISOBIT_THREADS": "4", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_a_forked_child_works_whether_or_not_the_pool_was_used_before(tmp_path: Path) -> None:
    code = """
def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() and work() else 1)
    return os.waitpid(pid, 0)[1] == 0

assert child()  # the pool is first made in the child
assert work()
assert all(child() for _ in range(5))
pid = os.fork()
if pid == 0:  # a child of a child
    os._exit(0 if work() and child() and work() else 1)
assert os.waitpid(pid, 0)[1] == 0
assert work()
print("fine")
"""
    run(code, tmp_path)


def test_a_fork_while_other_threads_compute(tmp_path: Path) -> None:
    code = """
import threading
stop, wrong = False, []

def compute():
    while not stop:
        if not work():
            wrong.append(1)

callers = [threading.Thread(target=compute) for _ in range(2)]
for caller in callers:
    caller.start()
statuses = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    statuses.append(os.waitpid(pid, 0)[1])
stop = True
for caller in callers:
    caller.join()
assert not wrong and not any(statuses)
print("fine")
"""
    run(code, tmp_path)


def test_a_whole_model_in_a_forked_child(tmp_path: Path) -> None:
    """With PyTorch's threads out of the way: once used, they hang in a forked child, without isobit too."""
    code = f"""
import torch
import isobit

model = isobit.load({str(save_model(tmp_path / "model"))!r})
text = model.generate("x = " * 50, max_tokens=5).text
pid = os.fork()
if pid == 0:
    torch.set_num_threads(1)
    os._exit(0 if model.generate("x = " * 50, max_tokens=5).text == text else 1)
assert os.waitpid(pid, 0)[1] == 0
print("fine")
"""
    run(code, tmp_path)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    code = f"""
import multiprocessing

def task(_):
    return work()

if __name__ == "__main__":
    assert work()
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert all(pool.map(task, range(6)))
    assert work()
    print("fine")
"""
    run(code, tmp_path)


def test_calls_from_many_threads_at_once(tmp_path: Path) -> None:
    code = """
import threading
wrong = []

def compute(number):
    for turn in range(30):
        if number == 0 and turn % 10 == 0:
            cpu_library.set_threads(1 + turn // 10)
        if not work():
            wrong.append(number)

callers = [threading.Thread(target=compute, args=(number,)) for number in range(6)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
assert not wrong
print("fine")
"""
    run(code, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as on Linux")
def test_no_room_for_threads_is_an_error_and_passes(tmp_path: Path) -> None:
    code = """
import resource, threading
from isobit.errors import IsobitError
assert work()
threading.stack_size(0)
cpu_library.set_threads(1000)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (pages + (64 << 20), before[1]))  # a thread has 8 MB of stack
read, big = cpu_library.library().isobit_cpu_read, np.ones(1 << 19)
failed = not work(), cpu_library.last_error(), read(big.ctypes.data, big.nbytes), cpu_library.last_error()
resource.setrlimit(resource.RLIMIT_AS, before)
cpu_library.set_threads(4)
assert failed[0] and failed[1] and failed[2] == 2**64 - 1 and failed[3], failed
assert work() and read(big.ctypes.data, big.nbytes) == int(big.view(np.uint64).sum()) and not cpu_library.last_error()
print("fine")
"""
    run(code, tmp_path)
