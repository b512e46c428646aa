"""Text that a person gives: an argument, a file, standard input. It is UTF-8 whatever the locale says, or refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from isobit.checkpoint.files import why
from isobit.errors import UsageError

MOST_BYTES = (
    64 << 20
)  # of a prompt, a message or a template: more than any context holds, and what never ends has an end
_PIECE = 1 << 20


def argument(text: str, what: str) -> str:
    """The text of an argument; in a locale that is not UTF-8 Python hands over its bytes as lone surrogates.

    Raises:
        UsageError: its bytes are not UTF-8.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise UsageError(f"{what} is not UTF-8 text: {text[:40]!r}") from None


def file(path: Path, what: str) -> str:
    """The text of a file, a pipe or a device; line ends are ``\\n``.

    Raises:
        UsageError: it cannot be read as text.
    """
    try:
        with open(path, "rb") as stream:
            data = bytearray()
            while piece := stream.read(_PIECE):
                data += piece
                _bounded(len(data), f"{what} in {path}")
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} in {path} is not UTF-8 text ({_where(error)})") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} file {path} cannot be read: {why(error)}") from None


def standard_input(what: str) -> TextIO:
    """Standard input, for :func:`lines` and :func:`whole`.

    Raises:
        UsageError: it is closed.
    """
    stream: TextIO | None = sys.stdin
    if stream is None or stream.closed:
        raise UsageError(f"standard input is closed: {what} cannot be read from it")
    return stream


def whole(stream: TextIO, what: str) -> str:
    """All text of standard input.

    Raises:
        UsageError: it is not UTF-8 text, or cannot be read.
    """
    found = ""
    for line in lines(stream, what):
        found += line
        _bounded(len(found), f"{what} in standard input")
    return found


def lines(stream: TextIO, what: str) -> Iterator[str]:
    """The lines of standard input as they come, each with its end.

    Raises:
        UsageError: one is not UTF-8 text, or cannot be read.
    """
    bytes_of = getattr(stream, "buffer", None)  # line by line: what is wrong further down does not spoil this line
    try:
        while line := (stream if bytes_of is None else bytes_of).readline(MOST_BYTES + 1):
            _bounded(len(line), f"{what} in standard input")
            line = line if isinstance(line, str) else line.decode("utf-8")
            yield line.replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} in standard input is not UTF-8 text ({_where(error)})") from None
    except OSError as error:
        raise UsageError(f"standard input cannot be read: {why(error)}") from None


def _bounded(size: int, what: str) -> None:
    if size > MOST_BYTES:
        raise UsageError(f"{what} is longer than {MOST_BYTES:,} bytes")


def _where(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x}"
