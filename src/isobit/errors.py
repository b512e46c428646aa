"""Every error isobit raises on purpose.

The command line prints these as one clear message and exits with status 2; anything else is a bug in isobit, which it
calls an internal error (status 70, ISOBIT_TRACEBACK=1 shows where).

    IsobitError
    ├── UsageError        an option or argument cannot be used as given
    ├── FormatError       a number format, code or packing rule is violated
    ├── SchemeError       an unknown or unusable quantization scheme
    ├── SourceError       a model could not be found or downloaded
    ├── CheckpointError   a file or tensor of a checkpoint is wrong (names both)
    ├── ModelError        a model configuration isobit cannot run
    ├── TemplateError     a chat template is invalid, forbidden or too expensive
    ├── CapacityError     memory or disk does not suffice
    └── Unsupported       nothing can run what was asked; lists every reason
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from os import PathLike

LONGEST_MESSAGE = 6000
_LONGEST_WORD = 1000  # a path may have so many characters; whatever is longer was never meant to be read
_NOT_OF_A_LIST = re.compile(r"\n(?!  )")


def printable(text: object, limit: int = LONGEST_MESSAGE) -> str:
    """Text that can be shown in a terminal, whatever file, tensor or argument parts of it come from.

    Characters that do something instead of being seen (escape sequences, line ends, changes of direction) and halves of
    surrogate pairs become escapes like ``\\x1b``. A line end stays where two spaces follow: those are the lists in our
    own messages. What is too long loses its middle, and says how much; its end often says what to do.

    Args:
        text: anything; its ``str``.
        limit: the most characters of the result, escapes included.
    """
    shown = str(text)
    if len(shown) > _LONGEST_WORD:
        shown = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda word: _shortened(word[0], _LONGEST_WORD), shown)
        shown = _shortened(shown, limit)
    shown = _NOT_OF_A_LIST.sub(r"\\n", shown)
    if not shown.isprintable():
        shown = "".join(letter if letter.isprintable() or letter == "\n" else _escape(letter) for letter in shown)
    return _shortened(shown, limit)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    gap = f" ... ({len(text) - limit:,} characters left out) ... "
    kept = max(0, limit - len(gap))
    return text[: kept - kept // 4] + gap + text[len(text) - kept // 4 :]


class IsobitError(Exception):
    """Base class. The message names the thing, the reason and what to do instead; it is bounded and printable."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))

    def reword(self, change: Callable[[str], str]) -> None:
        """Says the same in other words; ``change`` makes them of the message, and of what parts of it are kept."""
        self.args = (printable(change(str(self))),)


class UsageError(IsobitError):
    """An option or argument cannot be used as given.

    Args:
        message: names it, the reason and what to do instead.
        field: its name, where it is a field of what was asked for.
    """

    def __init__(self, message: object = "", field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class FormatError(IsobitError):
    """A number format, code or packing rule is violated."""


class SchemeError(IsobitError):
    """An unknown scheme, or one that does not fit the weights it is asked to hold."""


class SourceError(IsobitError):
    """A model could not be found, reached or downloaded."""


class CheckpointError(IsobitError):
    """A checkpoint is wrong; ``file`` and ``tensor`` say where.

    Args:
        message: the reason, and what to do about it.
        file: the file the problem is in, if one is known.
        tensor: the tensor the problem is in, if one is known.
    """

    def __init__(self, message: str, *, file: str | PathLike[str] | None = None, tensor: str | None = None) -> None:
        self.file = None if file is None else str(file)
        self.tensor = tensor
        where = ": ".join(part for part in (self.file, None if tensor is None else f"tensor {tensor!r}") if part)
        super().__init__(f"{where}: {message}" if where else message)

    def reword(self, change: Callable[[str], str]) -> None:
        """See :meth:`IsobitError.reword`."""
        super().reword(change)
        self.tensor = None if self.tensor is None else change(self.tensor)


class DamagedWeights(CheckpointError):
    """Weights are there and hold what cannot be used: no second attempt will do better."""


class CheckpointWarning(UserWarning):
    """What people should know who use a checkpoint: what of it isobit, or another engine, does otherwise."""


class ModelError(IsobitError):
    """A model configuration that isobit cannot run."""


class TemplateError(IsobitError):
    """A chat template is invalid, does something forbidden, or costs too much; or refuses messages.

    Attributes:
        of_model: whether it is the template's fault, whatever the messages are.
    """

    def __init__(self, message: str, *, of_model: bool = False) -> None:
        super().__init__(message)
        self.of_model = of_model


class CapacityError(IsobitError):
    """Memory or disk does not suffice."""


class Unsupported(IsobitError):
    """Nothing can run what was asked.

    Args:
        what: the thing asked for.
        reasons: every reason, one for each alternative that was considered.
        instead: what would work, if anything would.
    """

    def __init__(self, what: str, reasons: Iterable[str], instead: str | None = None) -> None:
        self.what = what
        self.reasons = tuple(reasons)
        self.instead = instead
        lines = [f"{what} is not supported here:", *(f"  - {reason}" for reason in self.reasons)]
        if instead:
            lines.append(f"  instead: {instead}")
        super().__init__("\n".join(lines))

    def reword(self, change: Callable[[str], str]) -> None:
        """See :meth:`IsobitError.reword`."""
        super().reword(change)
        self.what, self.reasons = change(self.what), tuple(map(change, self.reasons))
        self.instead = None if self.instead is None else change(self.instead)
