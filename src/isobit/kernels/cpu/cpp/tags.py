"""What a shared library needs of a system, and the tag of the wheel that has it. Standard library only: ``setup.py``
loads this file by its path.

A wheel's tag is a promise: pip installs ``manylinux_2_28_x86_64`` on every x86-64 Linux whose C library is glibc 2.28
or newer. So the tag is read out of the library that was built.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Libraries that every Linux with glibc has (PEP 600 leaves it at those), libgcc_s with what GCC 7 had of it.
SYSTEM = re.compile(r"(libc|libm|libgcc_s|libpthread|ld-linux(-[\w-]+)?)\.so\.\d")
NEWEST_GCC = (7, 0, 0)

# glibc 2.28 is what PyTorch's own wheels ask for: nothing older could run isobit.
OLDEST_GLIBC = (2, 28)

# The tables of a 64-bit ELF file, little endian, as in elf(5) and the Linux Standard Base.
_HEADER, _SECTION, _DYNAMIC, _NEED, _NEED_VERSION = "<16s2HI3QI6H", "<2I4Q2I2Q", "<2Q", "<2H3I", "<I2H2I"
_SHT_DYNAMIC, _SHT_VERNEED, _DT_NEEDED = 6, 0x6FFFFFFE, 1


class Needs(NamedTuple):
    """What a library needs of a system."""

    libraries: tuple[str, ...]  # by name, e.g. libm.so.6
    versions: tuple[str, ...]  # of symbols, e.g. GLIBC_2.14

    def newest(self, family: str) -> tuple[int, ...]:
        """The newest version of a family such as ``GLIBC``; empty if none is asked for."""
        numbers = (version.removeprefix(f"{family}_") for version in self.versions if version.startswith(f"{family}_"))
        return max((tuple(int(part) for part in text.split(".")) for text in numbers), default=())


def needs(library: bytes) -> Needs:
    """The libraries and symbol versions that a 64-bit little-endian ELF library asks for.

    Raises:
        ValueError: it is none.
    """
    if library[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF library")
    sections = list(_sections(library))
    libraries, versions = [], []
    for kind, begin, size, link in sections:
        names = sections[link][1] if link < len(sections) else 0
        if kind == _SHT_DYNAMIC:
            entries = struct.iter_unpack(_DYNAMIC, library[begin : begin + size])
            libraries += [_text(library, names + value) for tag, value in entries if tag == _DT_NEEDED]
        if kind == _SHT_VERNEED:
            versions += [_text(library, names + name) for name in _version_names(library, begin)]
    return Needs(tuple(libraries), tuple(sorted(set(versions))))


def _sections(library: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, first byte, size and linked section of each section."""
    header = struct.unpack_from(_HEADER, library)
    table, size, count = header[6], header[11], header[12]
    for number in range(count):
        _, kind, _, _, begin, length, link, *_ = struct.unpack_from(_SECTION, library, table + number * size)
        yield kind, begin, length, link


def _version_names(library: bytes, at: int) -> Iterator[int]:
    """Where the names of the needed versions stand among the strings; the table is a list of lists."""
    while True:
        _, count, _, first, following = struct.unpack_from(_NEED, library, at)
        entry = at + first
        for _ in range(count):
            _, _, _, name, further = struct.unpack_from(_NEED_VERSION, library, entry)
            yield name
            entry += further
        if not following:
            return
        at += following


def _text(library: bytes, at: int) -> str:
    return library[at : library.index(b"\0", at)].decode()


def platform_tag(library: bytes, local: str) -> str:
    """The platform part of the tag of a wheel with this library.

    Args:
        library: the file's bytes.
        local: the tag of what runs on the machine that builds, such as ``linux_x86_64``.

    Returns:
        ``manylinux_2_N_ARCH`` if the library runs wherever there is glibc 2.N, else ``local``, which no package index
        takes.
    """
    return local if problems(library) or not local.startswith("linux_") else _manylinux(library, local)


def problems(library: bytes) -> list[str]:
    """Why a library does not run on every Linux with a glibc that is new enough."""
    try:
        found = needs(library)
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        return [f"it cannot be read: {error}"]
    reasons = [f"it needs {name}" for name in found.libraries if not SYSTEM.fullmatch(name)]
    families = {version.rpartition("_")[0] for version in found.versions}
    reasons += [f"it needs symbols of {family}" for family in sorted(families - {"GLIBC", "GCC"})]
    if found.newest("GCC") > NEWEST_GCC:
        reasons.append(f"it needs libgcc_s of GCC {'.'.join(map(str, found.newest('GCC')))}")
    return reasons


def _manylinux(library: bytes, local: str) -> str:
    major, minor = max(OLDEST_GLIBC, needs(library).newest("GLIBC")[:2])
    return f"manylinux_{major}_{minor}_{local.removeprefix('linux_')}"
