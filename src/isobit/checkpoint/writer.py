"""The output folder: tensors become durable one after another, and the folder becomes a checkpoint at the very end.

Everything is built in ``<out>/.isobit-partial``: the shards at their final size, with headers that were known before
the first byte of data; a journal that names the modules whose data is on the disk; a lock. The last step moves the
files up, ``config.json`` last, so that no loader takes an unfinished folder for a checkpoint. A run that was killed at
any moment, even in the middle of that step, is taken up where it stopped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from isobit.checkpoint.checksums import Claim, WrittenSums, claims, damaged_modules
from isobit.checkpoint.durable import lock_folder, pwrite, sync_folder, write_file
from isobit.checkpoint.files import is_file, is_folder, is_there, read_file
from isobit.checkpoint.journal import Journal
from isobit.checkpoint.occupant import CONFIG, PARTIAL, another_job, remove_old, require_free, require_name
from isobit.checkpoint.room import Room
from isobit.checkpoint.shards import PlannedShard
from isobit.errors import CheckpointError, UsageError

COMMIT_BYTES = 64 << 20  # written between two syncs: what a kill costs, and what the disk must swallow at once

LARGEST_COMPANION = 4 << 30  # bytes of a file that is copied as it is

_VANISHED = "has vanished from the unfinished output: start over without resuming it (--no-resume)"
_JOURNAL, _DONE, _LOCK = "journal", "done", "lock"


class OutputFolder:
    """One output under construction. Use as a context manager; leaving it releases the lock and keeps what is done.

    One thread at a time may call its methods.

    Args:
        path: the folder to write.
        job: everything the bytes of the output depend on, as JSON; a run of another job is never taken up.
        shards: the planned weight files.
        resume: take up an unfinished run of the same job; else throw it away and start over.
        overwrite: replace a finished checkpoint of isobit's that is in ``path``.
        commit_bytes: sync after so many bytes.
        small_files: sizes of the other files that :meth:`finish` will write: they must find room, too.

    Attributes:
        done: module -> record, for every module whose data is durable, and still what was written.
        sources: module -> what the caller said about its source, for the same modules.
        damaged: modules that an unfinished run had done, and whose bytes are no longer what it wrote: to do again.
        resumed: whether an unfinished run was taken up.
        finished: the last run did everything and was killed while tidying up: nothing is left to do.

    Raises:
        UsageError: ``path`` is something else's, in use, finished, or holds an unfinished run of another job.
        CapacityError: the disk lacks the space, or no file may be as large as planned; nothing was written.
        CheckpointError: the unfinished run in ``path`` is damaged.
    """

    def __init__(
        self,
        path: Path,
        job: dict[str, Any],
        shards: Sequence[PlannedShard],
        *,
        resume: bool = True,
        overwrite: bool = False,
        commit_bytes: int = COMMIT_BYTES,
        small_files: Sequence[int] = (),
    ) -> None:
        require_name(path, max((shard.name for shard in shards), key=len))
        self.path = path
        self.partial = path / PARTIAL
        self._plan = tuple(shards)
        self._shards = {name: shard for shard in shards for name in shard.tensors}
        self._commit_bytes = commit_bytes
        self._room = Room(path, (self.partial, path), self._plan, tuple(small_files))
        self._sums = WrittenSums()
        self.damaged: tuple[str, ...] = ()
        self._current: tuple[PlannedShard, int] | None = None  # (shard, descriptor)
        self._waiting: list[dict[str, Any]] = []  # written, not yet durable
        self._unsynced = 0
        if is_there(path) and not is_folder(path):
            raise UsageError(f"the output {path} exists and is not a folder: name another one")
        self._made = not is_there(path)
        self._abandoned = False
        with self._room.disk_errors():
            self._lock = lock_folder(self.partial, _LOCK, str(path))
        try:
            with self._room.disk_errors():
                self._journal = self._take_up(job, resume, overwrite)
        except BaseException:
            self._release(remove_path=self._made)
            raise
        entries = self._journal.entries if self._journal else []
        self.finished = self._journal is None
        self.resumed = bool(entries) or self.finished
        said = {entry["done"]: entry for entry in entries if "done" in entry and entry["done"] not in self.damaged}
        self.done: dict[str, dict[str, Any]] = {module: entry["record"] for module, entry in said.items()}
        self.sources: dict[str, Any] = {module: entry["source"] for module, entry in said.items()}

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._current is not None:
            os.close(self._current[1])
            self._current = None
        if self._journal is not None:
            self._journal.close()
        self._release(remove_path=self._made and self._abandoned)

    # ------------------------------------------------------------------ the beginning

    def _take_up(self, job: dict[str, Any], resume: bool, overwrite: bool) -> Journal | None:
        """The journal to go on with: that of an unfinished run of this job, or a new one; None if all is done."""
        if self._was_finished(job, overwrite):
            return None
        if not resume:
            self._discard()
        journal = Journal.open(self.partial / _JOURNAL)
        if journal is None:
            require_free(self.path, overwrite)
            self._room.require()
            return self._new_journal(job)
        try:
            if journal.job != job:
                raise UsageError(another_job(self.path, journal.job, job))
            if not journal.has("finishing"):
                require_free(self.path, overwrite)
                self._require_shards(journal)
                self._room.require()
            self._compare(journal)
        except BaseException:
            journal.close()
            raise
        return journal

    def _was_finished(self, job: dict[str, Any], overwrite: bool) -> bool:
        """Whether the last run did this very job and was killed while tidying up; the tidying is done in any case."""
        done = Journal.open(self.partial / _DONE)
        if done is None:
            return False
        done.close()
        self._clear_partial()
        return done.job == job and not overwrite

    def _new_journal(self, job: dict[str, Any]) -> Journal:
        self._clear_partial()
        journal = Journal.create(self.partial / _JOURNAL, job)
        for folder in (self.partial, self.path, self.path.absolute().parent):
            sync_folder(folder)
        return journal

    def _discard(self) -> None:
        """Throws away an unfinished run, also one that had begun to move its files up."""
        try:
            journal = Journal.open(self.partial / _JOURNAL)
        except CheckpointError:
            journal = None  # damaged: nothing it could say is needed to throw the rest away
        if journal is not None:
            journal.close()
            if journal.has("cleared"):
                for name in next(entry["finishing"] for entry in journal.entries if "finishing" in entry):
                    (self.path / name).unlink(missing_ok=True)
        self._clear_partial()

    def _clear_partial(self) -> None:
        """Removes everything but the lock."""
        for entry in self.partial.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()

    def _release(self, remove_path: bool) -> None:
        """Gives the lock back; a partial folder with nothing else in it goes, and so does ``path`` if we made it."""
        try:
            if {entry.name for entry in self.partial.iterdir()} == {_LOCK}:
                (self.partial / _LOCK).unlink()
                self.partial.rmdir()
                if remove_path:
                    self.path.rmdir()
        finally:
            os.close(self._lock)

    # ------------------------------------------------------------------ writing

    def write(self, name: str, tensor: Tensor, offset: int = 0) -> int:
        """Writes all or some of a planned tensor's bytes.

        Args:
            name: the planned tensor.
            tensor: its data, or a part that is contiguous in it; the dtype is the planned one.
            offset: bytes of the planned tensor in front of this part.

        Returns:
            bytes written.
        """
        shard = self._shards[name]
        planned = shard.tensors[name]
        tensor = tensor.contiguous()
        data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        if tensor.element_size() != planned.itemsize or offset + len(data) > planned.nbytes:
            raise ValueError(
                f"{name}: {len(data)} bytes at {offset} of {tensor.dtype} are not what was planned: {planned}"
            )
        with self._room.disk_errors():
            pwrite(self._descriptor(shard), data, shard.offsets[name] + offset)
        self._sums.add(name, offset, tensor)
        self._unsynced += len(data)
        return len(data)

    def complete(self, module: str, record: dict[str, Any], source: Any = None) -> None:
        """All tensors of ``module`` are written: note it in the journal at the next sync.

        Args:
            module: its name in the plan.
            record: what to say about it in the report.
            source: what a later run needs to tell whether its source is still the same, as JSON.
        """
        assert self._current is not None
        entry = {"done": module, "shard": self._current[0].name, "record": record, "source": source}
        self._waiting.append(entry | {"sums": self._sums.take()})
        self.done[module] = record
        if self._unsynced >= self._commit_bytes:
            self.commit()

    def commit(self) -> None:
        """Makes everything written so far durable, then says so in the journal."""
        if not self._waiting and not self._unsynced:
            return
        assert self._journal is not None
        with self._room.disk_errors():
            if self._current is not None:
                os.fsync(self._current[1])
            self._journal.append(self._waiting)
        self._waiting, self._unsynced = [], 0

    def abandon(self) -> None:
        """Throws away everything written: no later run could use it."""
        assert self._journal is not None
        if self._current is not None:
            os.close(self._current[1])
            self._current = None
        self._waiting, self._unsynced = [], 0
        self._clear_partial()
        self._abandoned = True

    def note(self, entry: dict[str, Any]) -> None:
        """Keeps something for a later run, durably; see :meth:`noted`."""
        assert self._journal is not None
        with self._room.disk_errors():
            self._journal.append([entry])

    def noted(self, key: str) -> Any:
        """The value of ``key`` in an entry that was kept, or None."""
        assert self._journal is not None
        return next((entry[key] for entry in self._journal.entries if key in entry), None)

    # ------------------------------------------------------------------ the end

    def finish(self, files: dict[str, bytes], copies: dict[str, Path]) -> None:
        """Makes the folder a checkpoint: adds the small files and moves everything up, ``config.json`` last.

        Args:
            files: name -> content; holds ``config.json`` and ``isobit_report.json``.
            copies: name (may be in a subfolder) -> file to copy.
        """
        self.commit()
        assert self._journal is not None
        names = [*(shard.name for shard in self._plan), *copies, *(name for name in files if name != CONFIG), CONFIG]
        with self._room.disk_errors():
            for name, content in files.items():
                write_file(self.partial / name, content)
            for name, source in copies.items():
                write_file(self.partial / name, read_file(source, LARGEST_COMPANION))
            sync_folder(self.partial)
            if not self._journal.has("finishing"):
                self._journal.append([{"finishing": names}])
            if not self._journal.has("cleared"):
                remove_old(self.path)
                self._journal.append([{"cleared": True}])
            for name in names:
                self._move_up(name)
            os.rename(self.partial / _JOURNAL, self.partial / _DONE)
            sync_folder(self.partial)
            self._clear_partial()

    def _move_up(self, name: str) -> None:
        source, target = self.partial / name, self.path / name
        if name == CONFIG:
            sync_folder(self.path)  # everything else is in place, also after a power failure
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        elif not target.exists():
            raise CheckpointError(_VANISHED, file=source)
        sync_folder(target.parent)

    # ------------------------------------------------------------------ checks

    def _require_shards(self, journal: Journal) -> None:
        """Data that the journal calls durable must be there, in files of the planned size."""
        touched = {entry["shard"] for entry in journal.entries if "done" in entry}
        for shard in self._plan:
            path = self.partial / shard.name
            if shard.name in touched and (not path.exists() or path.stat().st_size != shard.nbytes):
                raise CheckpointError(
                    "is not what the journal beside it says: start over without resuming it", file=path
                )

    def _compare(self, journal: Journal) -> None:
        """Finds what is damaged: headers are written anew, modules are left out of what is done.

        Raises:
            CheckpointError: something is damaged after the files began to move up.
        """
        said: dict[str, list[Claim]] = {}
        shards = {shard.name: shard for shard in self._plan}
        # A module that was done twice is listed twice, with the same bytes.
        for entry in (entry for entry in journal.entries if "done" in entry):
            about = claims(shards[entry["shard"]], entry["done"], entry["sums"])
            said.setdefault(entry["shard"], []).extend(about)
        damaged: set[str] = set()
        for name, about in said.items():
            path = next((folder / name for folder in (self.partial, self.path) if is_file(folder / name)), None)
            if path is None:
                raise CheckpointError(_VANISHED, file=self.partial / name)
            damaged |= damaged_modules(path, about)
            header = shards[name].header
            with open(path, "rb") as file:
                if file.read(len(header)) != header:
                    self._restore_header(path, header)
        if damaged and journal.has("finishing"):
            raise CheckpointError(
                f"the data of {sorted(damaged)[0]} in this unfinished output is damaged: start over without resuming"
                " (--no-resume)",
                file=self.path,
            )
        self.damaged = tuple(sorted(damaged))

    def _restore_header(self, path: Path, header: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            pwrite(descriptor, header, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _descriptor(self, shard: PlannedShard) -> int:
        """The open file of ``shard``; made with its header and final size if it is new."""
        if self._current is not None and self._current[0] is shard:
            return self._current[1]
        self.commit()
        if self._current is not None:
            os.close(self._current[1])
            self._current = None
        descriptor = os.open(self.partial / shard.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._current = (shard, descriptor)
        pwrite(descriptor, shard.header, 0)
        os.ftruncate(descriptor, shard.nbytes)
        os.fsync(descriptor)
        sync_folder(self.partial)
        return descriptor
