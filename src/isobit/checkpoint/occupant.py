"""What an output folder holds already: nothing, a finished checkpoint, an unfinished run, or something else's files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from isobit.checkpoint.durable import existing_folder, sync_folder
from isobit.checkpoint.files import is_there, open_regular
from isobit.checkpoint.journal import entry_of
from isobit.checkpoint.jsonfile import read_json, short
from isobit.errors import CheckpointError, UsageError

PARTIAL = ".isobit-partial"
REPORT, CONFIG = "isobit_report.json", "config.json"
CERTIFICATE = "isobit_certificate.json"  # of the checkpoint that is there, and of no other
_LONGEST_JOB = 1 << 20  # bytes of a journal's first line
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, where the file system does not say; it has no longer paths


def require_name(path: Path, longest: str) -> None:
    """A folder can have this name, and files in it as long a name as ``longest``.

    Raises:
        UsageError: it cannot.
    """
    shown = short(str(path), 120)
    try:
        parts = [os.fsencode(part) for part in path.absolute().parts]
    except UnicodeEncodeError:
        raise UsageError(f"the output folder {shown} has a name that is not text: name another one") from None
    if any(b"\0" in part for part in parts):
        raise UsageError(f"the output folder {shown} has a NUL character in its name: name another one")
    limit = _name_limit(path)
    if too_long := next((part for part in parts if len(part) > limit), None):
        raise UsageError(
            f"the output folder {shown} has a name of {len(too_long)} bytes; names have at most {limit} here:"
            " name another one (--out)"
        )
    size = sum(len(part) + 1 for part in parts) + len(PARTIAL) + 1 + len(longest)
    if size > _LONGEST_PATH:
        raise UsageError(
            f"the output folder {shown} gives its files paths of {size} bytes; {_LONGEST_PATH} are the most:"
            " name a shorter one (--out)"
        )


def _name_limit(path: Path) -> int:
    try:
        return os.pathconf(existing_folder(path), "PC_NAME_MAX")
    except (OSError, ValueError):
        return _LONGEST_NAME


def require_free(path: Path, overwrite: bool) -> None:
    """The folder may become our output: it is new, empty, or a finished checkpoint that is to be replaced.

    Raises:
        UsageError: it is none of these.
    """
    entries = sorted(entry.name for entry in path.iterdir() if entry.name != PARTIAL)
    if not entries:
        return
    finished = REPORT in entries and CONFIG in entries
    if finished and overwrite:
        _files_of(path / REPORT)  # what is to be removed at the end is known now, or never
        return
    if finished:
        raise UsageError(
            f"{path} holds a finished checkpoint: name another output folder, or overwrite it (--overwrite)"
        )
    shown = ", ".join(entries[:3]) + (", ..." if len(entries) > 3 else "")
    raise UsageError(f"the output folder {path} is not empty ({shown}): name another one, or empty it")


def require_finished(path: Path) -> None:
    """A folder that is to be read must not be an output under construction: nothing in it is whole yet.

    Raises:
        CheckpointError: it is one; says how to finish it.
    """
    inside = path.name == PARTIAL
    if not inside and (not is_there(path / PARTIAL) or is_there(path / CONFIG)):
        return
    partial = path if inside else path / PARTIAL
    scheme = _scheme_of(partial / "journal")
    raise CheckpointError(
        f"this is an unfinished output of isobit quantize{f' ({scheme})' if scheme else ''}, or one still being "
        "written. Run the same isobit quantize command again: it goes on where it stopped",
        file=partial.parent,
    )


def _scheme_of(journal: Path) -> str | None:
    """The scheme that an unfinished run writes, if its journal says so; it may be in any state."""
    try:
        with open(open_regular(journal), "rb") as file:
            job = entry_of(file.readline(_LONGEST_JOB).rstrip(b"\n"))
    except (CheckpointError, OSError, ValueError, RecursionError):
        return None
    scheme = None if job is None else job.get("scheme")
    return short(scheme) if isinstance(scheme, str) else None


def another_job(path: Path, old: dict[str, Any], new: dict[str, Any]) -> str:
    """What to say of an unfinished run of the job ``old`` in the folder where ``new`` is to go."""
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    shown = "; ".join(f"{key}: {_value(old.get(key))} then, {_value(new.get(key))} now" for key in differing)
    return (
        f"{path} holds an unfinished run of another job ({shown}). Run the same command as then to finish it,"
        " start over (--no-resume), or name another output folder"
    )


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 48 else text[:45] + "..."


def remove_old(path: Path) -> None:
    """Removes the finished checkpoint of isobit's that is in ``path``, if any: first what makes it look complete.

    Raises:
        CheckpointError: its report does not say which files it consists of.
    """
    report = path / REPORT
    if not report.exists():
        return
    for name in (CONFIG, CERTIFICATE):
        (path / name).unlink(missing_ok=True)
    sync_folder(path)
    for name in _files_of(report):
        target = path / name
        if name != REPORT and target.resolve().is_relative_to(path.resolve()):
            target.unlink(missing_ok=True)
    report.unlink()
    sync_folder(path)


def _files_of(report: Path) -> list[str]:
    files = read_json(report).get("files")
    if not isinstance(files, dict) or any("\0" in name for name in files):
        raise CheckpointError("does not list the files of the checkpoint to replace: remove that yourself", file=report)
    return list(files)
