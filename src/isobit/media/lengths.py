"""Whether the container of a sound says that there is more of it than there is. Pure: nothing is decoded.

A decoder reads what is there of an OGG or MP3 file that was cut off, and gives a shorter sound without a word.
"""

from __future__ import annotations

import struct

_PAGE = 27  # bytes of the header of a page of OGG, in front of the sizes of what is in it
_SPARE = 512  # bytes that may be missing of an MP3 file: about a frame, as recordings of streams end within one
# Where the first frame of an MP3 file has its table, by version (MPEG 1, or 2 and 2.5) and whether it has one channel.
_TABLE = {(True, False): 36, (True, True): 21, (False, False): 21, (False, True): 13}
_FRAMES, _BYTES = 1, 2  # flags of that table: what it has


def cut_off(data: bytes) -> str | None:
    """What is missing of a file, in words; None where nothing is, or nothing says it."""
    if data[:4] == b"OggS":
        return _ogg(data)
    return _mp3(data) if data[:3] == b"ID3" or data[:1] == b"\xff" else None


def _ogg(data: bytes) -> str | None:
    """A page has the sizes of its parts in front. Streams that were recorded end without a page that says so."""
    at = 0
    while data[at : at + 4] == b"OggS":
        sizes = data[at + _PAGE : at + _PAGE + data[at + _PAGE - 1]] if at + _PAGE <= len(data) else b""
        if at + _PAGE > len(data) or len(sizes) < data[at + _PAGE - 1]:
            return "its last page is not whole"
        at += _PAGE + len(sizes) + sum(sizes)
        if at > len(data):
            return f"its last page has {at - len(data):,} bytes more than the file"
    return None


def _mp3(data: bytes) -> str | None:
    """By the table that encoders put into the first frame, which has the size of what follows."""
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        size = 0
        for seven in data[6:10]:
            size = size << 7 | seven & 0x7F
        at = 10 + size + (10 if data[5] & 0x10 else 0)
    if len(data) < at + 4 or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    table = at + _TABLE[data[at + 1] & 0x18 == 0x18, data[at + 3] >> 6 == 3]
    if data[table : table + 4] not in (b"Xing", b"Info") or len(data) < table + 8:
        return None
    (flags,) = struct.unpack_from(">I", data, table + 4)
    place = table + 8 + (4 if flags & _FRAMES else 0)
    if not flags & _BYTES or len(data) < place + 4:
        return None
    (said,) = struct.unpack_from(">I", data, place)
    there = len(data) - at
    return f"it has {there:,} of {said:,} bytes" if said > there + _SPARE else None
