"""Sounds that were cut off, where their container tells how long they are: refused, and not read as shorter ones."""

from __future__ import annotations

import io

import numpy as np
import pytest

from isobit.errors import UsageError
from isobit.media.lengths import cut_off
from isobit.media.sounds import sound

soundfile = pytest.importorskip("soundfile")

FORMS = [("OGG", "VORBIS", 48000), ("OGG", "OPUS", 48000), ("MP3", "MPEG_LAYER_III", 44100),
         ("MP3", "MPEG_LAYER_III", 22050)]  # fmt: skip


def made(form: str, kind: str, rate: int, channels: int) -> bytes:
    tone = (0.3 * np.sin(np.arange(2 * rate) / 20)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone] * channels, 1), rate, format=form, subtype=kind)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("form", "kind", "rate"), FORMS)
def test_a_part_of_a_file(form: str, kind: str, rate: int, channels: int) -> None:
    data = made(form, kind, rate, channels)
    assert cut_off(data) is None and len(sound(data).samples) > rate
    for end in (len(data) // 2, len(data) - 1000):
        with pytest.raises(UsageError, match=r"the sound is cut off: it(s last page)? (has [\d,]+|is not whole)"):
            sound(data[:end])


def test_behind_tags_and_within_headers() -> None:
    data = made("MP3", "MPEG_LAYER_III", 44100, 1)
    tagged = b"ID3\x04\x00\x00" + bytes((0, 0, 2, 88)) + bytes(2 * 128 + 88) + data
    assert cut_off(tagged) is None and cut_off(tagged + b"TAG" + bytes(125)) is None
    assert "bytes" in str(cut_off(tagged[: len(tagged) // 2]))
    ogg = made("OGG", "VORBIS", 48000, 1)
    second = ogg.index(b"OggS", 1)
    for end in (second + 5, second + 27):  # within a header, and within the sizes behind it
        assert cut_off(ogg[:end]) == "its last page is not whole"


@pytest.mark.parametrize("data", [b"", b"O", b"OggS", b"\xff", b"ID3", b"\xff\xfb\x90\x00", b"ID3\x04" + b"\xff" * 9])
def test_what_says_nothing_is_left_to_the_decoder(data: bytes) -> None:
    assert cut_off(data) is None or data == b"OggS"
