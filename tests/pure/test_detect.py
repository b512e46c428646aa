"""The look at this machine: it never fails, and it respects limits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from isobit.kernels.cpu.cpp import build
from isobit.targets import detect


def test_this_machine_has_cores_and_memory() -> None:
    machine = detect.detect()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 < machine.memory_available <= machine.memory
    assert dict(machine.packages)["torch"] is not None


def test_a_cgroup_memory_limit_caps_the_memory(tmp_path, monkeypatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(detect, "CGROUP_MEMORY", (limit,))
    machine = detect.detect()
    assert machine.memory == 1_000_000 and machine.memory_available <= 1_000_000


def test_missing_tools_are_not_errors(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    machine = detect.detect()
    assert machine.compiler is None and machine.gpus == ()


@pytest.mark.parametrize(
    ("named", "found"), [("sh -O2", "sh"), ("'sh' -x", "sh"), ("nonesuch", None), ("'", None), ("  ", "usual")]
)
def test_the_compiler_is_the_one_that_builds_the_kernels(monkeypatch, named: str, found: str | None) -> None:
    assert detect.COMPILERS == build.COMPILERS
    usual = next((path for name in detect.COMPILERS if (path := shutil.which(name))), None)
    monkeypatch.setenv("CXX", named)
    expected = usual if found == "usual" else found and shutil.which(found)
    assert detect.find_compiler() == expected
    if expected is None:
        with pytest.raises(build.BuildError, match=r"there is no C\+\+ compiler"):
            build._words(build.find_compiler())
    else:
        assert Path(build._words(build.find_compiler())[0]).name == Path(expected).name


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, isobit.targets.detect, isobit.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
