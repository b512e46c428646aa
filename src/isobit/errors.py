"""Every error isobit raises on purpose.

The command line prints these as one clear message and exits with status 2; a traceback means a bug in isobit.

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

from collections.abc import Iterable
from os import PathLike


class IsobitError(Exception):
    """Base class. The message names the thing, the reason and what to do instead."""


class UsageError(IsobitError):
    """An option or argument cannot be used as given."""


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


class ModelError(IsobitError):
    """A model configuration that isobit cannot run."""


class TemplateError(IsobitError):
    """A chat template is invalid, does something forbidden, or costs too much."""


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
