"""Samples as files: WAV and raw PCM of 16 bits by ourselves, FLAC, MP3 and Opus by libsndfile."""

from __future__ import annotations

import io
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isobit.checkpoint.files import is_folder, why
from isobit.errors import UsageError
from isobit.speech.talker import RATE

UNKNOWN = 0xFFFFFFFF  # the size in a header of WAV that is written before what follows
_FULL = 32767


@dataclass(frozen=True)
class Form:
    """A kind of file.

    Attributes:
        name: as people ask for it.
        kind: its MIME type.
        endings: of names of files.
        library: what libsndfile calls it: format and subtype; None for what is written here.
    """

    name: str
    kind: str
    endings: tuple[str, ...]
    library: tuple[str, str] | None = None


FORMS = (
    Form("wav", "audio/wav", (".wav",)),
    Form("pcm", "audio/pcm", (".pcm", ".raw")),
    Form("flac", "audio/flac", (".flac",), ("FLAC", "PCM_16")),
    Form("mp3", "audio/mpeg", (".mp3",), ("MP3", "MPEG_LAYER_III")),
    Form("opus", "audio/ogg", (".opus", ".ogg"), ("OGG", "OPUS")),
)
NAMES = ", ".join(form.name for form in FORMS)


def form_named(name: str) -> Form:
    """The form of a name.

    Raises:
        UsageError: there is none, or libsndfile that is installed here does not write it.
    """
    form = next((form for form in FORMS if form.name == name), None)
    if form is None:
        raise UsageError(f"speech cannot be written as {name!r}: {NAMES} can be")
    if form.library is not None:
        try:
            import soundfile

            able = form.library[1] in soundfile.available_subtypes(form.library[0])
        except (ImportError, OSError, ValueError):
            able = False
        if not able:
            raise UsageError(f"{name} needs soundfile with a libsndfile that writes it: pip install 'isobit[speech]'")
    return form


def form_of(path: Path) -> Form:
    """The form that a file's name asks for.

    Raises:
        UsageError: its ending is that of none.
    """
    ending = path.suffix.lower()
    named = next((form.name for form in FORMS if ending in form.endings), None)
    if named is None:
        endings = ", ".join(ending for form in FORMS for ending in form.endings)
        raise UsageError(f"the name {path.name!r} does not say what to write: let it end with one of {endings}")
    return form_named(named)


def pcm(samples: NDArray[np.float32]) -> bytes:
    """Samples of 16 bits, the low byte first."""
    return np.rint(np.clip(samples, -1, 1) * _FULL).astype("<i2").tobytes()


def wav_header(size: int) -> bytes:
    """What stands in front of ``size`` bytes of samples; :data:`UNKNOWN` where nobody knows yet."""
    whole = UNKNOWN if size == UNKNOWN else size + 36
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", whole, b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16, b"data", size
    )


def encoded(samples: NDArray[np.float32], form: Form) -> bytes:
    """A whole file."""
    if form.library is None:
        data = pcm(samples)
        return data if form.name == "pcm" else wav_header(len(data)) + data
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(pcm(samples), "<i2"), RATE, format=form.library[0], subtype=form.library[1])
    return file.getvalue()


def require_place(path: Path) -> None:
    """Raises a UsageError if no file can be written there, before anything is made for it."""
    if is_folder(path):
        raise UsageError(f"{path} is a folder: name a file in it")
    if not is_folder(path.parent):
        raise UsageError(f"there is no folder {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written to")


def write(path: Path, data: bytes) -> None:
    """The file, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {why(error)}") from None
