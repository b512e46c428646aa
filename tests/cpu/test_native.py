"""The native test of the linears (tests/native/linear_test.cpp) on this machine; `make emulate` runs it on others."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu.cpp.build import SOURCES, BuildError, find_compiler

ROOT = Path(__file__).parents[2]
QEMU = shutil.which("qemu-x86_64") if platform.machine() == "x86_64" else None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if problem := cpu_library.problem():
        pytest.skip(problem)
    try:
        compiler = find_compiler().split()
    except BuildError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("native") / "linear_test"
    source, library = ROOT / "tests" / "native" / "linear_test.cpp", cpu_library.LIBRARY
    flags = ["-std=c++17", "-O2", f"-I{SOURCES}", f"-Wl,-rpath,{library.parent}"]
    subprocess.run([*compiler, *flags, str(source), str(library), "-o", str(out)], check=True)
    return out


def test_every_format_on_every_instruction_set_here(program: Path) -> None:
    done = subprocess.run([str(program), ",".join(cpu_library.isas())], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(QEMU is None, reason="there is no qemu-x86_64 here (package qemu-user); make emulate installs it")
def test_the_library_says_portable_on_a_machine_without_avx2(program: Path) -> None:
    assert QEMU
    # Wanting something else ends the program after it has said what there is.
    done = subprocess.run([QEMU, "-cpu", "Nehalem", str(program), "-"], capture_output=True, text=True, check=False)
    assert done.stdout == "portable\nwanted -\n", done.stdout + done.stderr
