"""Evidence on disk, one file per key, so that what has not changed is not compiled again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from isobit.errors import CapacityError
from isobit.proof.evidence import Evidence


def cache_folder() -> Path:
    """Where isobit keeps what it can make again: ISOBIT_CACHE, else ``isobit`` in XDG_CACHE_HOME or ``~/.cache``."""
    own, shared = os.environ.get("ISOBIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    return (Path(shared) if shared else Path.home() / ".cache") / "isobit"


# Files whose change can change what is read off the same machine code.
_READERS = ("build.py", "evidence.py", "listing.py", "loops.py", "worker.py", "../kernels/gpu/compile/build.py")


class Store:
    """Evidence by key, in a folder, for several processes. What other versions of the readers read is not found."""

    def __init__(self, folder: Path) -> None:
        sources = (Path(__file__).parent.joinpath(name).read_bytes() for name in _READERS)
        self.folder = folder / hashlib.sha256(b"".join(sources)).hexdigest()[:16]

    def get(self, key: str) -> Evidence | None:
        """What is stored under a key, if anything that can be read is."""
        try:
            return Evidence(**json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None  # absent, or written by another version: compiled again

    def put(self, key: str, evidence: Evidence) -> None:
        """Stores evidence, whole or not at all.

        Raises:
            CapacityError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(evidence.as_json(), file)
            os.replace(name, self.folder / f"{key}.json")
        except OSError as error:
            raise CapacityError(
                f"cannot write to the cache {self.folder}: {error}; set ISOBIT_CACHE to a folder that can be written"
            ) from error
