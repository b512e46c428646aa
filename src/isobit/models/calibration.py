"""Measurements of this machine on disk: one file of the user's, written whole or not at all. Needs no torch.

A file that is damaged, or of another version, is a note and no error: plans then go by the tables.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isobit.checkpoint.files import is_there
from isobit.checkpoint.jsonfile import read_json
from isobit.errors import CapacityError, CheckpointError, UsageError
from isobit.legalize.calibration import Measurement, machine_key, software_key
from isobit.targets.spec import Board, Target

FORMAT, VERSION = "isobit calibration", 1
VARIABLE = "ISOBIT_DATA"
MOST_BYTES, MOST_KEPT = 8 << 20, 2000


@dataclass(frozen=True)
class Calibration:
    """What a file holds; and what to say of it, if it cannot be read."""

    path: Path | None
    found: tuple[Measurement, ...] = ()
    problem: str | None = None

    def about(self, target: Target, board: Board) -> str | None:
        """Why nothing of it holds for this machine, if it should: for people."""
        if self.problem is not None:
            return self.problem
        mine = [one for one in self.found if one.machine == machine_key(target, board)]
        if mine and not any(one.software == software_key(target.is_gpu) for one in mine):
            return (
                f"what was measured here on {mine[-1].date} ({self.path}) is of other kernels, threads or versions than"
                " these, and not used: run isobit bench again"
            )
        return None


def data_folder(environment: Mapping[str, str] = os.environ, system: str = sys.platform) -> Path | None:
    """Where isobit keeps what it cannot make again; None where nobody has a home.

    ISOBIT_DATA, else ``isobit`` in what the system has for it: XDG_DATA_HOME or ``~/.local/share``, on macOS
    ``~/Library/Application Support``, on Windows LOCALAPPDATA.
    """
    if own := environment.get(VARIABLE):
        return Path(own)
    named = environment.get("LOCALAPPDATA" if system == "win32" else "XDG_DATA_HOME", "")
    if system != "darwin" and named and Path(named).is_absolute():
        return Path(named) / "isobit"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    parts = {"darwin": "Library/Application Support", "win32": "AppData/Local"}
    return home / parts.get(system, ".local/share") / "isobit"


def usual_path() -> Path | None:
    """The file that commands use where none is named."""
    folder = data_folder()
    return None if folder is None else folder / "calibration.json"


def load(path: Path | None) -> Calibration:
    """What is in a file; nothing where there is none."""
    if path is None or not is_there(path):
        return Calibration(path)
    try:
        data = read_json(path, MOST_BYTES)
        if data.get("format") != FORMAT:
            raise CheckpointError("it is no calibration of isobit's", file=path)
        if data.get("version") != VERSION:
            raise CheckpointError(f"it is of version {data.get('version')!r:.40}, this is {VERSION}", file=path)
        return Calibration(path, tuple(Measurement.of(one) for one in _listed(data)))
    except (CheckpointError, ValueError) as error:
        named = error.file if isinstance(error, CheckpointError) else None
        where = "" if named is not None else f"{path}: "
        return Calibration(path, problem=f"{where}{error}; what it holds is not used: isobit bench writes it anew")


def _listed(data: Mapping[str, object]) -> list[object]:
    found = data.get("measurements")
    if not isinstance(found, list):
        raise ValueError("it has no list of measurements")
    return found


def require_own(path: Path) -> None:
    """That writing a file which somebody named loses nothing.

    Raises:
        UsageError: there is something else, or a calibration that cannot be read.
    """
    if (problem := load(path).problem) is not None:
        reason = problem.removesuffix("; what it holds is not used: isobit bench writes it anew")
        raise UsageError(
            f"measurements cannot be kept in {path}, which would be overwritten: {reason}; name another file"
        )


def store(path: Path, new: Sequence[Measurement]) -> int:
    """Adds measurements, in the place of older ones of the same; returns how many the file now holds.

    Raises:
        CapacityError: the file cannot be written. The one of before is as it was.
    """
    places = {one.place for one in new}
    kept = [one for one in load(path).found if one.place not in places]
    body = [one.as_json() for one in [*kept, *new][-MOST_KEPT:]]
    text = json.dumps({"format": FORMAT, "version": VERSION, "measurements": body}, indent=1)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise CapacityError(
            f"{path}: the measurements cannot be kept: {error.strerror or error}; name another file with --calibration,"
            f" another folder with {VARIABLE}, or keep none with --no-store"
        ) from error
    return len(body)
