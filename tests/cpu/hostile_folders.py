"""Model folders made wrong in every way that a seeded chance finds: bytes, JSON values, kinds of files, names."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**60, 0.0, -0.0, 1e-300, 1e300, float("nan"), float("inf")),
    *("", "x", "true", "0", "\u202e\x1b[31m", "ä" * 500, "..", "/etc/passwd", "n" * 300, "a\0b", "re:(a+)+$"),
    *([], {}, [[]], [None], [{}], {"": None}, ["x"] * 40, [-1, 0], {"a": {"b": {"c": []}}}),
)
_TEXTS = (b"9" * 5000, b"[" * 3000, b"{", b'"', b"\\ud800", b"\xff\xfe", b"\0" * 9, b"\x1b[31m", b"-", b",")


def spoil(folder: Path, chance: random.Random) -> str:
    """Makes one thing wrong in a folder; says what."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    whole = [path for path in files if path.stat().st_size]
    if not whole:
        return "nothing left"
    path = chance.choice(whole)  # never a link: nothing is written through it
    if path.suffix == ".json" and chance.random() < 0.5:
        return _spoil_json(path, chance)
    how = chance.choice(_WAYS)
    how(path, chance)
    return f"{path.name}: {how.__name__}"


def _spoil_json(path: Path, chance: random.Random) -> str:
    """Replaces, removes or adds a value somewhere."""
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return f"{path.name}: was no JSON"
    place, trail = value, []
    while isinstance(place, (dict, list)) and place:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        trail.append(key)
        deeper = isinstance(place[key], (dict, list)) and place[key] and chance.random() < 0.8
        if not deeper:
            break
        place = place[key]
    nasty = chance.choice(NASTY)
    if not trail:
        value = nasty
    elif chance.random() < 0.15:
        del place[trail[-1]]
    elif isinstance(place, dict) and chance.random() < 0.2:
        place[chance.choice(("x", "", "../y", "n" * 300, "\x1b[2J"))] = nasty
    else:
        place[trail[-1]] = nasty
    path.write_text(json.dumps(value))
    return f"{path.name}: {trail} = {nasty!r:.60}"


def cut_off(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size + 1))


def flip_bits(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    span = chance.choice((len(data), min(len(data), 4000)))  # headers are at the beginning
    for _ in range(chance.choice((1, 1, 2, 10))):
        data[chance.randrange(span)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def put_text(path: Path, chance: random.Random) -> None:
    """Among the first bytes, where headers and keys are: digits, brackets, escapes."""
    data = path.read_bytes()
    place = chance.randrange(min(len(data), 4000))
    text = chance.choice(_TEXTS)
    path.write_bytes(data[:place] + text + data[place + chance.choice((0, len(text))) :])


def append(path: Path, chance: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(chance.randbytes(chance.choice((1, 8, 5000))))


def nothing_in_it(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def noise(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(chance.randrange(2000)))


def nested(path: Path, chance: random.Random) -> None:
    depth = chance.choice((70, 2000, 100_000))
    path.write_bytes(b'{"a":' * depth + b"1" + b"}" * depth)


def digits(path: Path, chance: random.Random) -> None:
    path.write_bytes(b'{"hidden_size": ' + b"9" * chance.choice((20, 300, 5000, 50_000)) + b"}")


def pipe(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_there(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path, chance: random.Random) -> None:
    target = chance.choice(("gone", path.name, "/dev/zero", "/dev/null", ".", "/proc/self/mem", "/etc/hostname"))
    path.unlink()
    path.symlink_to(target)


def gone(path: Path, chance: random.Random) -> None:
    path.unlink()


def another(path: Path, chance: random.Random) -> None:
    """The content of another file of the folder."""
    others = sorted(other for other in path.parent.iterdir() if other.is_file())
    shutil.copyfile(chance.choice(others), path.with_name("copy"))
    path.with_name("copy").rename(path)


_WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    *(cut_off, cut_off, flip_bits, flip_bits, flip_bits, put_text, put_text, append, nothing_in_it, noise, nested),
    *(digits, pipe, folder_there, link, link, gone, another),
)
