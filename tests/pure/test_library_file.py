"""Files that are not the library that was built are known before the system's loader gets them."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from isobit.kernels.cpu import library as cpu_library
from isobit.kernels.cpu import library_file
from isobit.kernels.cpu.cpp.build import SOURCES

HERE = "x86_64"


def elf(content: bytes = b"code" * 64, machine: int = 62, symbols: bytes = b"symbols") -> bytes:
    """A library of one segment, the whole front of the file, and one section behind it."""
    end = 64 + 56 + len(content)
    header = struct.pack(
        "<16s2HI3QI6H", b"\x7fELF\x02\x01\x01", 3, machine, 1, 0, 64, end + len(symbols), 0, 64, 56, 1, 64, 1, 0
    )
    segment = struct.pack("<2I6Q", 1, 5, 0, 0, 0, end, end, 4096)
    return header + segment + content + symbols + bytes(64)


GOOD = elf()


def test_the_library_that_was_built_is_fine() -> None:
    assert library_file.damage(GOOD, HERE, None) is None
    assert library_file.damage(GOOD, HERE, library_file.digest(GOOD)) is None
    assert library_file.damage(GOOD, "a machine of the future", library_file.digest(GOOD)) is None


def test_stripped_symbols_are_no_damage() -> None:
    assert library_file.damage(elf(symbols=b""), HERE, library_file.digest(GOOD)) is None


def test_every_changed_byte_of_what_is_loaded_is_seen() -> None:
    built = library_file.digest(GOOD)
    for at in range(64, 64 + 56 + 256):
        changed = bytearray(GOOD)
        changed[at] ^= 0x10
        assert library_file.damage(bytes(changed), HERE, built) is not None, at


def test_every_length_that_is_too_short_is_seen() -> None:
    for length in range(len(GOOD)):
        why = library_file.damage(GOOD[:length], HERE, None)
        assert why and ("no 64-bit ELF" if length < 64 else f"ends at byte {length} of {len(GOOD)}") in why


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no 64-bit ELF"),
        (b"#!/bin/sh\n" * 100, "no 64-bit ELF"),
        (elf(machine=183), "is for aarch64, and this machine is x86_64"),
        (elf(machine=8), "machine number 8"),
        (GOOD[:4] + b"\x01" + GOOD[5:], "no 64-bit ELF"),
        (elf(b"other" * 64), "not those that were built"),
        (GOOD[:64] + bytes(len(GOOD) - 64), "not those that were built"),
    ],
)
def test_other_files_are_refused(data: bytes, why: str) -> None:
    found = library_file.damage(data, HERE, library_file.digest(GOOD))
    assert found and why in found


def test_no_header_breaks_it() -> None:
    source = random.Random(0)
    for _ in range(3000):
        data = bytearray(GOOD)
        for _ in range(source.randrange(1, 20)):
            data[source.randrange(4, 128)] = source.choice((0, 1, 0x7F, 0xFF, source.randrange(256)))
        library_file.damage(bytes(data), HERE, "")
        library_file.digest(bytes(data))


@pytest.mark.skipif(shutil.which("strip") is None, reason="there is no strip here")
def test_a_packagers_strip_is_no_damage_to_the_real_one(tmp_path: Path) -> None:
    if problem := cpu_library.problem():
        pytest.skip(problem)
    stripped = tmp_path / "stripped.so"
    removed = ["--strip-unneeded", "--remove-section=.comment", "--remove-section=.note"]
    subprocess.run(["strip", *removed, "-o", str(stripped), str(cpu_library.LIBRARY)], check=True)
    before, after = cpu_library.LIBRARY.read_bytes(), stripped.read_bytes()
    assert len(after) < len(before) and library_file.digest(after) == library_file.digest(before)


# ---------------------------------------------------------------------- the interface of the library

# After a change of isobit_cpu.h beyond comments: raise ISOBIT_CPU_ABI there and ABI in kernels/cpu/library.py, unless
# functions were only added, and write here what the failing test says.
INTERFACE = (9, "3b5b3a45ab04")


def test_the_interface_has_a_version() -> None:
    header = (SOURCES / "isobit_cpu.h").read_text(encoding="utf-8")
    version = re.search(r"#define ISOBIT_CPU_ABI (\d+)\n", header)
    assert version and int(version[1]) == cpu_library.ABI
    declared = re.sub(r"\s+", " ", re.sub(r"//[^\n]*", "", header.replace(version[0], "")))
    assert (cpu_library.ABI, hashlib.sha256(declared.encode()).hexdigest()[:12]) == INTERFACE
