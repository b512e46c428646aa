"""Cores and threads: affinity, CPU quotas of both kinds of control groups, the variables; on trees made for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isobit.cli import openmp
from isobit.errors import UsageError
from isobit.kernels.cpu import threads as cpu_threads
from isobit.targets.cores import Cores, Quota, cores, quota

V2 = "30 23 0:27 {root} {point} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 31 0:30 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct"
OTHER = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:3 master:2 - cgroup cgroup rw,memory"


def tree(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A machine's files: /proc/self/cgroup, /proc/self/mountinfo and control groups."""
    files = {
        "proc/self/cgroup": groups,
        "proc/self/mountinfo": "\n".join(["20 1 8:1 / / rw - ext4 /dev/a rw", *mounts]),
    } | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def v2(point: str = "/sys/fs/cgroup", root: str = "/") -> str:
    return V2.format(point=point, root=root)


def v1(point: str = "/sys/fs/cgroup/cpu,cpuacct", root: str = "/") -> str:
    return V1.format(point=point, root=root)


def cfs(folder: str, quota: int) -> dict[str, str]:
    """A group's files in version 1."""
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": "100000"}


CASES = {
    "no control groups": ("", [], {}, None),
    "no limit": ("0::/", [v2()], {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
    "a container: its group is the root": (
        "0::/", [v2()], {"sys/fs/cgroup/cpu.max": "250000 100000"}, (2.5, "/sys/fs/cgroup/cpu.max")
    ),
    "a service: the process' own group": (
        "0::/system.slice/llm.service", [v2()],
        {"sys/fs/cgroup/system.slice/llm.service/cpu.max": "150000 100000"},
        (1.5, "/sys/fs/cgroup/system.slice/llm.service/cpu.max"),
    ),
    "a group above has less": (
        "0::/a/b/c", [v2()],
        {"sys/fs/cgroup/a/b/c/cpu.max": "800000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000",
         "sys/fs/cgroup/a/cpu.max": "300000 100000"},
        (3.0, "/sys/fs/cgroup/a/cpu.max"),
    ),
    "a group beside it does not matter": (
        "0::/a/b", [v2()],
        {"sys/fs/cgroup/a/other/cpu.max": "10000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"},
        None,
    ),
    "another period": ("0::/", [v2()], {"sys/fs/cgroup/cpu.max": "100000 50000"}, (2.0, "/sys/fs/cgroup/cpu.max")),
    "version 1": (
        "4:memory:/m\n3:cpu,cpuacct:/job", [OTHER, v1()],
        cfs("sys/fs/cgroup/cpu,cpuacct/job", 400000) | cfs("sys/fs/cgroup/cpu,cpuacct", -1),
        (4.0, "/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us"),
    ),
    "version 1, a container that sees its own group only": (
        "3:cpu,cpuacct:/docker/abc", [v1(root="/docker/abc")],
        cfs("sys/fs/cgroup/cpu,cpuacct", 150000),
        (1.5, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"),
    ),
    "version 1, a group below the one that is mounted": (
        "3:cpu,cpuacct:/docker/abc/job", [v1(root="/docker/abc")],
        cfs("sys/fs/cgroup/cpu,cpuacct/job", 50000),
        (0.5, "/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us"),
    ),
    "a group that is not mounted": (
        "3:cpu,cpuacct:/elsewhere", [v1(root="/docker/abc")],
        cfs("sys/fs/cgroup/cpu,cpuacct", 200000),
        (2.0, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"),
    ),
    "a group outside of the namespace": (
        "0::/../../host", [v2()], {"sys/fs/cgroup/cpu.max": "200000 100000"}, (2.0, "/sys/fs/cgroup/cpu.max")
    ),
    "both versions, CPU time by version 1": (
        "3:cpu:/\n0::/x", [v1("/sys/fs/cgroup/cpu"), v2("/sys/fs/cgroup/unified")],
        cfs("sys/fs/cgroup/cpu", 300000) | {"sys/fs/cgroup/unified/x/cgroup.procs": "1"},
        (3.0, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
    ),
    "a blank in the path": (
        "0::/", [v2("/mnt/my\\040groups")], {"mnt/my groups/cpu.max": "200000 100000"}, (2.0, "/mnt/my groups/cpu.max")
    ),
    "nonsense": ("0\n::::\n0::/", ["- -", "x", v2()], {"sys/fs/cgroup/cpu.max": "a few"}, None),
}  # fmt: skip


@pytest.mark.parametrize(("groups", "mounts", "files", "expected"), CASES.values(), ids=CASES)
def test_the_tightest_quota_counts(
    tmp_path: Path, groups: str, mounts: list[str], files: dict[str, str], expected
) -> None:
    found = quota(tree(tmp_path, groups, mounts, files))
    assert (found and (found.cores, found.file)) == expected


@pytest.mark.parametrize(
    ("affinity", "limit", "count"),
    [(8, None, 8), (8, 2.0, 2), (8, 2.4, 2), (8, 2.5, 3), (8, 1.5, 2), (8, 0.2, 1), (2, 64.0, 2), (1, 1.5, 1)],
)
def test_cores_are_the_affinity_mask_and_the_quota_rounded(affinity: int, limit: float | None, count: int) -> None:
    found = Cores(affinity, None if limit is None else Quota(limit, "/g/cpu.max"))
    assert found.count == count
    assert ("/g/cpu.max" in found.reason) == (count < affinity)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_an_affinity_mask_set_before_the_start_counts() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}])\n"
        "from isobit.kernels.cpu import library as cpu_library\nprint(cpu_library.wanted_threads())\n"
        "print(cpu_library.threads() if cpu_library.problem() is None else 1)"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "ISOBIT_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=clean)
    assert done.stdout == "Threads(count=1, reason='the affinity mask')\n1\n", done.stderr


def test_this_process_has_cores() -> None:
    assert 1 <= cores().count <= cores().affinity <= (os.cpu_count() or 1)


# ---------------------------------------------------------------------- threads


THREADS = {
    "nothing is set": ({}, 4, "the affinity mask"),
    "our own variable": ({"ISOBIT_THREADS": "3"}, 3, "ISOBIT_THREADS"),
    "our own variable may ask for more than cores": ({"ISOBIT_THREADS": " 64 "}, 64, "ISOBIT_THREADS"),
    "it comes first": ({"ISOBIT_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3, "ISOBIT_THREADS"),
    "OpenMP": ({"OMP_NUM_THREADS": "2"}, 2, "OMP_NUM_THREADS"),
    "OpenMP, a list": ({"OMP_NUM_THREADS": "3,2"}, 3, "OMP_NUM_THREADS"),
    "OpenMP, blanks": ({"OMP_NUM_THREADS": " 2 , 1 "}, 2, "OMP_NUM_THREADS"),
    "OpenMP, more than cores": (
        {"OMP_NUM_THREADS": "64"},
        4,
        "the affinity mask; OMP_NUM_THREADS=64 is more than that",
    ),
    "empty ones": ({"ISOBIT_THREADS": " ", "OMP_NUM_THREADS": ""}, 4, "the affinity mask"),
}


@pytest.mark.parametrize(("environment", "count", "reason"), THREADS.values(), ids=THREADS)
def test_threads_and_why(environment: dict[str, str], count: int, reason: str) -> None:
    assert cpu_threads.choose(environment, Cores(4)) == cpu_threads.Threads(count, reason)


LIMITED = Cores(8, Quota(2.0, "/g/cpu.max"))


@pytest.mark.parametrize(
    ("environment", "machine", "expected"),
    [
        ({}, Cores(8), {"GOMP_SPINCOUNT": "10000"}),
        ({}, LIMITED, {"GOMP_SPINCOUNT": "10000", "OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "8", "OMP_WAIT_POLICY": "ACTIVE"}, LIMITED, {}),
        ({"GOMP_SPINCOUNT": "infinity"}, LIMITED, {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_openmp_is_told_what_nobody_else_has_told_it(environment: dict[str, str], machine: Cores, expected) -> None:
    assert openmp.settings(environment, machine) == expected


def test_commands_that_compute_tell_openmp_and_doctor_does_not() -> None:
    code = """if True:
        import os, sys
        from isobit.cli import main
        main.build_parser = lambda *name: type("P", (), {"parse_args": lambda self, argv: argv_of})()
        for module in ("isobit.cli.doctor", "isobit.cli.info"):
            argv_of = type("A", (), {"run": type("R", (), {"__module__": module, "__call__": lambda self, a: 0})()})()
            assert main.main() == 0
            print("GOMP_SPINCOUNT" in os.environ)
    """
    clean = {"PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=clean)
    assert done.stdout == "False\nTrue\n", done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "many", "4.0", "4097", "9" * 5000, "4,2", "٣"])
def test_nonsense_in_our_variable_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="ISOBIT_THREADS=.*from 1 to 4096"):
        cpu_threads.choose({"ISOBIT_THREADS": value}, Cores(4))


@pytest.mark.parametrize("value", ["0", "-2", "auto", ",2", "2;1", "0,2"])
def test_nonsense_in_openmps_variable_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="OMP_NUM_THREADS=.*ISOBIT_THREADS"):
        cpu_threads.choose({"OMP_NUM_THREADS": value}, Cores(4))
    assert cpu_threads.choose({"OMP_NUM_THREADS": value, "ISOBIT_THREADS": "1"}, Cores(4)).count == 1
