"""Whether the disk takes an output, and what to say when it does not: full, a quota, a limit, or anything else."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from isobit.checkpoint.durable import free_bytes
from isobit.checkpoint.files import is_file, why
from isobit.checkpoint.shards import PlannedShard
from isobit.errors import CapacityError, IsobitError, UsageError

# Errors that mean that no more can be written -> (what they mean, what helps).
_NO_MORE = {
    errno.ENOSPC: ("the disk is full", "Free some space"),
    errno.EDQUOT: ("the quota of this user on the disk is used up", "Remove some files of yours, or have it raised,"),
    errno.EFBIG: (
        "a file would become larger than this process (ulimit -f) or the file system allows",
        "Raise the limit",
    ),
}
_BLOCK = 4096  # bytes: a small file occupies at least this


def cannot_write(path: Path, error: OSError) -> IsobitError:
    """What to raise when a file or folder of ours could not be written.

    Args:
        path: it.
        error: what the system said.
    """
    known = _NO_MORE.get(error.errno or 0)
    if known is None:
        return UsageError(f"cannot write {path}: {why(error)}")
    meaning, cure = known
    return CapacityError(
        f"writing {path} stopped: {meaning} ({os.strerror(error.errno or 0)}). {cure} and run the same command again"
    )


@dataclass(frozen=True)
class Room:
    """The room that an output needs.

    Attributes:
        path: the folder to write, for messages.
        folders: where its weight files may be.
        shards: the weight files.
        small_files: bytes of each other file.
    """

    path: Path
    folders: tuple[Path, ...]
    shards: Sequence[PlannedShard]
    small_files: Sequence[int]

    def require(self) -> None:
        """Checks limits and free space.

        Raises:
            CapacityError: they do not suffice.
        """
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        largest = max([*(shard.nbytes for shard in self.shards), *self.small_files])
        if limit != resource.RLIM_INFINITY and largest > limit:
            raise CapacityError(
                f"this process may write files of at most {limit:,} bytes (ulimit -f), and the output {self.path} has"
                f" one of {largest:,}: raise the limit, or write smaller weight files (--max-shard-size)"
            )
        need, free = self.missing(), free_bytes(self.path)
        if need > free:
            raise CapacityError(
                f"the disk of {self.path} lacks space: the output needs {need:,} bytes more, {free:,} are free;"
                " free some, or write to another disk"
            )

    def missing(self) -> int:
        """Bytes still to be written, by what the weight files occupy now (they are sparse until written)."""
        missing = sum(-(-size // _BLOCK) * _BLOCK for size in self.small_files)
        for shard in self.shards:
            found = [folder / shard.name for folder in self.folders if is_file(folder / shard.name)]
            present = found[0].stat().st_blocks * 512 if found else 0
            missing += max(shard.nbytes - present, 0)
        return missing

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Says what an error of the disk means.

        Raises:
            CapacityError: it takes no more.
            UsageError: it cannot be written to for another reason.
        """
        try:
            yield
        except OSError as error:
            known = _NO_MORE.get(error.errno or 0)
            if known is None:
                raise UsageError(f"cannot write to the output {self.path}: {why(error)}") from error
            meaning, cure = known
            free = f", {free_bytes(self.path):,} are free" if error.errno == errno.ENOSPC else ""
            raise CapacityError(
                f"writing to {self.path} stopped: {meaning} ({os.strerror(error.errno or 0)})."
                f" The output needs {self.missing():,} bytes more{free}."
                f" {cure} and run the same command again: it goes on where it stopped"
            ) from error
