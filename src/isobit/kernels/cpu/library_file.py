"""Whether a file is the shared library that was built. Asked before it is loaded: over some damaged files the system's
loader ends the process, others it runs, and of a library for another machine it says that there is no such file.

Standard library only: the build loads this file by its path, before the package can be imported.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

# The header of a 64-bit ELF file and an entry of its table of segments, as in elf(5).
_HEADER = "16s2HI3QI6H"
_SEGMENT = "2I6Q"
_LOADED = 1  # p_type PT_LOAD

# e_machine of machines as ``platform.machine()`` spells them; others are not checked.
_MACHINES = {"x86_64": 62, "AMD64": 62, "aarch64": 183, "arm64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}


def damage(data: bytes, machine: str, built: str | None) -> str | None:
    """Why a file cannot be loaded here, or None.

    Args:
        data: the whole file.
        machine: what it should be for, as ``platform.machine()`` says.
        built: :func:`digest` of it when it was built; None if nobody noted it.
    """
    if data[:4] != b"\x7fELF" or len(data) < _size(data, _HEADER) or data[4] != 2:
        return "it is no 64-bit ELF library"
    kind = _header(data)[2]
    if machine in _MACHINES and kind != _MACHINES[machine]:
        names = [name for name, number in _MACHINES.items() if number == kind]
        return f"it is for {names[0] if names else f'machine number {kind}'}, and this machine is {machine}"
    if _end(data) > len(data):
        return f"it ends at byte {len(data)} of {_end(data)}: copying or writing it was cut short"
    if built is not None and digest(data) != built:
        return "its contents are not those that were built"
    return None


def digest(data: bytes) -> str:
    """SHA-256 of what is loaded of a library; that of the whole file if it is none.

    The header and what lies behind the segments, symbols above all, do not count: ``strip`` changes them.
    """
    if data[:4] != b"\x7fELF" or len(data) < _size(data, _HEADER) or data[4] != 2 or _end(data) > len(data):
        return hashlib.sha256(data).hexdigest()
    total = hashlib.sha256()
    for begin, end in _segments(data):
        total.update(data[max(begin, _size(data, _HEADER)) : end])
    return total.hexdigest()


def _order(data: bytes) -> str:
    return ">" if data[5] == 2 else "<"


def _size(data: bytes, fields: str) -> int:
    return struct.calcsize("<" + fields)


def _header(data: bytes) -> tuple[int, ...]:
    found: tuple[int, ...] = struct.unpack_from(_order(data) + _HEADER, data)
    return found


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """First and last byte, that one not included, of each part of the file that is loaded."""
    header = _header(data)
    table, size, count = header[5], header[9], header[10]
    if size < _size(data, _SEGMENT):
        return
    for at in range(table, table + size * count, size):
        kind, _, begin, _, _, length, _, _ = struct.unpack_from(_order(data) + _SEGMENT, data, at)
        if kind == _LOADED:
            yield begin, begin + length


def _end(data: bytes) -> int:
    """Where the file ends, going by its own tables."""
    header = _header(data)
    segments, segment_size, segment_count = header[5], header[9], header[10]
    sections, section_size, section_count = header[6], header[11], header[12]
    end = max(segments + segment_size * segment_count, sections + section_size * section_count)
    return end if end > len(data) else max([end, *(last for _, last in _segments(data))])
