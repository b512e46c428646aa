"""How many cores this process may use: its affinity mask and the CPU quotas of its control groups. Reads only.

A quota is time, not cores: with 1.5 cores' worth every thread may run anywhere until the group has used 150 ms of each
100 ms, and then all of them stand still until the next. Both versions of control groups are read, in every group from
the process' own up to the root that it can see, since each of them limits what is below it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Quota:
    """The tightest CPU quota: cores' worth of time, and the file that says so."""

    cores: float
    file: str


@dataclass(frozen=True)
class Cores:
    """Cores a process may use.

    Attributes:
        affinity: cores in its affinity mask, which cpusets narrow too.
        quota: of its control groups, or None.
    """

    affinity: int
    quota: Quota | None = None

    @property
    def count(self) -> int:
        """Threads that can run side by side.

        A quota counts rounded to the nearest number, half a core as a whole one: see docs/cpu.md for the measurement.
        """
        return self.affinity if self.quota is None else max(1, min(self.affinity, int(self.quota.cores + 0.5)))

    @property
    def reason(self) -> str:
        """What the count comes from."""
        if self.quota is not None and self.count < self.affinity:
            return f"a cgroup's quota of {self.quota.cores:g} cores, {self.quota.file}"
        return "the affinity mask"


def cores() -> Cores:
    """The cores of this process."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cores(affinity, quota())


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy of control groups: version, the group that is its root, and where."""

    version: int
    root: PurePosixPath
    point: PurePosixPath


def quota(root: Path = Path("/")) -> Quota | None:
    """The tightest CPU quota on this process, or None.

    Args:
        root: where ``proc`` and the control groups are looked for; tests have trees of their own.
    """
    own = _own_groups(_text(root / "proc/self/cgroup"))
    found = []
    for mount in _mounts(_text(root / "proc/self/mountinfo")):
        if mount.version in own:
            for folder in _folders(mount, own[mount.version]):
                limit = _limit(root / str(folder).lstrip("/"), mount.version)
                if limit is not None:
                    found.append(Quota(limit[0], str(folder / limit[1])))
    return min(found, key=lambda one: one.cores, default=None)


def _own_groups(text: str) -> dict[int, PurePosixPath]:
    """The group this process is in, for each version: lines ``number:controllers:path`` of /proc/self/cgroup."""
    found = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[2] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            found[1] = PurePosixPath(path)
    return found


def _mounts(text: str) -> Iterator[_Mount]:
    """Mounted hierarchies that can hold CPU quotas; man 5 proc_pid_mountinfo has the fields."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        root, point = (PurePosixPath(_unescaped(field)) for field in fields[3:5])
        if kind[0] == "cgroup2":
            yield _Mount(2, root, point)
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            yield _Mount(1, root, point)


def _folders(mount: _Mount, group: PurePosixPath) -> Iterator[PurePosixPath]:
    """The folders of a group and of all groups above it that are mounted.

    In a container without a namespace of its own for groups only the container's group may be mounted, or a group
    outside of it may be named: then what is mounted is all there is to see.
    """
    inside = group.is_relative_to(mount.root) and ".." not in group.parts
    folder = mount.point / (group.relative_to(mount.root) if inside else "")
    yield folder
    while folder != mount.point:
        folder = folder.parent
        yield folder


def _limit(folder: Path, version: int) -> tuple[float, str] | None:
    """A group's own quota in cores, and the name of its file; None without one."""
    if version == 2:
        name, (quota, _, period) = "cpu.max", _text(folder / "cpu.max").strip().partition(" ")
    else:
        name = "cpu.cfs_quota_us"  # -1 without a limit
        quota, period = (_text(folder / file).strip() for file in (name, "cpu.cfs_period_us"))
    if not quota.isdecimal() or not period.isdecimal() or not int(quota) or not int(period):
        return None
    return int(quota) / int(period), name


def _unescaped(text: str) -> str:
    """A path of mountinfo, where blanks and such are octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
