"""The look at this machine: it never fails, and it respects limits."""

from __future__ import annotations

import os
import subprocess
import sys

from isobit.targets import detect


def test_this_machine_has_cores_and_memory() -> None:
    machine = detect.detect()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 < machine.memory_available <= machine.memory
    assert dict(machine.packages)["torch"] is not None


def test_a_cgroup_quota_caps_the_cores(tmp_path, monkeypatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(detect, "CGROUP_CPU", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    for text, cores in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)):
        quota.write_text(text)
        assert detect.usable_cores() == cores, text


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


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, isobit.targets.detect, isobit.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
