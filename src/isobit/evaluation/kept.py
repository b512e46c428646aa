"""The source's logits, kept on disk for the next model that is compared with it.

They are kept as they come, in float32: top tokens alone would not do, for KL divergence is a sum over the whole
vocabulary, and half precision would put its own error, about as large as what an 8-bit format loses, into every figure.
So they are large (tokens x vocabulary x 4 bytes: 0.5 GB for 32,768 tokens of 4,096), and bounded: what does not fit is
computed again for each model, which gives the same figures.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isobit.checkpoint.checksums import checksum
from isobit.checkpoint.durable import free_bytes
from isobit.checkpoint.files import is_file
from isobit.evaluation.windows import Window
from isobit.evaluation.work import write_whole

DEFAULT_BYTES = 8 << 30
_SPARE = 1 << 30  # bytes of the disk that stay free


class KeptLogits:
    """Logits of one source on one text.

    Args:
        folder: of all that are kept; the oldest of other sources and texts go when there is no room.
        key: names the source, the text and the settings.
        most: bytes that ``folder`` may hold.
        needed: bytes that these will have.

    Attributes:
        why_not: why they are not kept, as a sentence; None if they are.
    """

    def __init__(self, folder: Path, key: str, most: int, needed: int) -> None:
        self._place = folder / key
        self.why_not: str | None = None
        missing = needed - _size(self._place)
        if needed > most:
            self.why_not = f"they have {needed / 1e9:.1f} GB, and {most / 1e9:.1f} GB may be kept"
            return
        self._make_room(folder, most - needed)
        if missing > 0 and missing + _SPARE > (free := free_bytes(folder)):
            self.why_not = f"they need {missing / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free"

    def _make_room(self, folder: Path, left: int) -> None:
        others = sorted(
            (path for path in folder.glob("*") if path != self._place), key=lambda path: path.stat().st_mtime
        )
        while others and sum(map(_size, others)) > left:
            shutil.rmtree(others.pop(0))

    def has(self, window: Window) -> bool:
        """Whether there are logits of a window, whole or damaged."""
        return self.why_not is None and is_file(self._path(window))

    def get(self, window: Window) -> Tensor | None:
        """Logits of its scored tokens, float32 ``[tokens, V]`` on the CPU; None if there are none, or damaged."""
        path = self._path(window)
        if self.why_not is not None or not is_file(path):
            return None
        try:
            with open(path, "rb") as file:
                head = json.loads(file.readline(200))
                values = torch.from_numpy(np.fromfile(file, dtype=np.float32)).reshape(head["shape"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None
        return values if checksum(values) == head.get("sum") else None

    def put(self, window: Window, logits: Tensor) -> None:
        """Keep the logits of a window.

        Raises:
            CapacityError, UsageError: they cannot be written.
        """
        if self.why_not is None:
            values = logits.detach().float().cpu().contiguous()
            head = json.dumps({"shape": list(values.shape), "sum": checksum(values)}).encode() + b"\n"
            write_whole(self._path(window), head + values.numpy().tobytes())

    def _path(self, window: Window) -> Path:
        named = json.dumps([window.ids, window.first_scored])
        return self._place / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.f32"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if is_file(path))
