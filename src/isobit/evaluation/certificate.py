"""The certificate of a checkpoint: what its format lost against its source, by execution path, kept beside its weights.

``isobit_certificate.json`` names the files that were measured by their SHA-256, so that figures stay with the weights
they are of: files that have changed since make it stale, and it says nothing then.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isobit.checkpoint.files import is_there, why
from isobit.checkpoint.jsonfile import read_json
from isobit.checkpoint.occupant import CERTIFICATE
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.evaluation.fidelity import Fidelity
from isobit.evaluation.results import ExecutionPath, Method
from isobit.evaluation.work import file_digest, revive, write_whole

VERSION = 1
_LARGEST = 16 << 20  # bytes
_MOST_ROWS, _SHOWN = 1000, 8
# Beside weights and config.json, what decides which tokens a text has. A template or a licence changes no figure.
_TEXT = (
    "tokenizer.json", "tokenizer.model", "tiktoken.model", "tokenizer_config.json", "added_tokens.json",
    "special_tokens_map.json",
)  # fmt: skip


@dataclass(frozen=True)
class FileMark:
    """A file that was measured.

    Attributes:
        name: within the checkpoint.
        size: bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Row:
    """What was measured by one path.

    Attributes:
        fidelity: the model against its source.
        method: how, by what and when; ``paths`` has the source's path, and then the model's.
        text_sha256: of the text.
        tokens: about how many tokens were asked for; None for all of the text.
        kv_cache: what keys and values were stored as.
    """

    fidelity: Fidelity
    method: Method
    text_sha256: str
    tokens: int | None
    kv_cache: str

    @property
    def path(self) -> ExecutionPath:
        """What ran the model."""
        return self.method.paths[-1]

    @property
    def key(self) -> tuple[object, ...]:
        """What a later row must have alike to take this one's place."""
        method = self.method
        return replace(self.path, model=""), self.text_sha256, self.tokens, self.kv_cache, method.ctx, method.stride


@dataclass(frozen=True)
class Certificate:
    """What is known of a checkpoint's fidelity.

    Attributes:
        source: what its source is called.
        source_files: what was measured of the source.
        files: what was measured of the checkpoint.
        rows: one for each path and text.
    """

    source: str
    source_files: tuple[FileMark, ...]
    files: tuple[FileMark, ...]
    rows: tuple[Row, ...]

    def with_row(self, row: Row) -> Certificate:
        """The same with what was measured now, in place of what was measured alike before."""
        return replace(self, rows=(*(one for one in self.rows if one.key != row.key), row))


def marks(folder: Path) -> tuple[FileMark, ...]:
    """The files of a checkpoint that decide what it computes. Reads all of them."""
    small, weights = _measured_files(folder)
    return tuple(FileMark(path.name, path.stat().st_size, file_digest(path)) for path in (*small, *weights))


def _measured_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Configuration and tokenizer; weights."""
    weights = sorted(Checkpoint.open(folder).files)
    return [path for name in ("config.json", *_TEXT) if (path := folder / name).is_file()], weights


def read(folder: Path) -> Certificate | None:
    """The certificate that lies in a folder; None if there is none.

    Raises:
        CheckpointError: it is damaged, or of a later version.
    """
    path = folder / CERTIFICATE
    if not is_there(path):
        return None
    data = read_json(path, _LARGEST)
    if data.get("version") != VERSION:
        raise CheckpointError("is of another version of isobit: certify the checkpoint again", file=path)
    try:
        found = revive(Certificate, {key: value for key, value in data.items() if key != "version"})
        assert isinstance(found, Certificate)
    except (TypeError, KeyError, ValueError):
        raise CheckpointError("is damaged: remove it, and certify the checkpoint again", file=path) from None
    if not 0 < len(found.rows) <= _MOST_ROWS or not all(_sound(row) for row in found.rows):
        raise CheckpointError("is damaged: remove it, and certify the checkpoint again", file=path)
    return found


def _sound(row: Row) -> bool:
    """Whether figures are such as a measurement gives."""
    found = row.fidelity
    for name in ("kl_mean", "kl_p99", "top1", "perplexity", "source_perplexity", "perplexity_ratio", "bits_per_byte"):
        one = getattr(found, name)
        numbers = [number for number in (one.low, one.value, one.high) if number is not None]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return False
        if numbers != sorted(numbers) or (name == "top1" and numbers[-1] > 1):
            return False
    return len(row.method.paths) == 2 and found.tokens > 0


def write(folder: Path, certificate: Certificate) -> Path:
    """Put a certificate beside a checkpoint's weights, whole or not at all.

    Raises:
        UsageError, CapacityError: the folder cannot be written.
    """
    path = folder / CERTIFICATE
    text = json.dumps({"version": VERSION, **asdict(certificate)}, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())
    return path


def stale(folder: Path, certificate: Certificate, *, weights: bool) -> str | None:
    """Why a certificate is not of what lies in the folder; None if it is.

    Args:
        folder: the checkpoint.
        certificate: its certificate.
        weights: whether weight files are read, too; else it is their sizes that are compared.
    """
    try:
        small, large = _measured_files(folder)
        here = {path.name: path for path in (*small, *large)}
        for mark in certificate.files:
            path = here.pop(mark.name, None)
            if path is None:
                return f"{mark.name} is missing since"
            hashed = weights or path in small
            if path.stat().st_size != mark.size or (hashed and file_digest(path) != mark.sha256):
                return f"{mark.name} has changed since"
    except OSError as error:
        return f"its files cannot be read: {why(error)}"
    return f"{next(iter(here))} has been added since" if here else None


def shown(certificate: Certificate) -> list[dict[str, Any]]:
    """What clients may read of it: a few figures for each path."""
    return [
        {
            "path": str(row.path),
            "kl_mean": row.fidelity.kl_mean.value,
            "kl_p99": row.fidelity.kl_p99.value,
            "top1": row.fidelity.top1.value,
            "perplexity_ratio": row.fidelity.perplexity_ratio.value,
            "tokens": row.fidelity.tokens,
            "text": row.method.text,
            "source": certificate.source,
            "date": row.method.date,
        }
        for row in certificate.rows
    ]


def line(row: Row, source: str) -> str:
    """A row in one sentence."""
    return (
        f"KL {row.fidelity.kl_mean.value:.4g} nats, top-1 {100 * row.fidelity.top1.value:.1f} %, perplexity"
        f" x {row.fidelity.perplexity_ratio.value:.4f} against {source} on {row.fidelity.tokens} tokens of"
        f" {row.method.text}: {row.path}"
    )


def valid(folder: Path) -> tuple[Certificate | None, str | None]:
    """The certificate of a folder as far as names, sizes and small files show; and what is wrong with it, if anything.

    Weights are not read.
    """
    try:
        found = read(folder)
    except CheckpointError as error:
        return None, str(error)
    reason = None if found is None else stale(folder, found, weights=False)
    if reason is None:
        return found, None
    return None, f"{CERTIFICATE} is not of what lies here ({reason}): certify the checkpoint again"


def said(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(a sentence for each row, notes) about the certificate of a folder."""
    found, wrong = valid(folder)
    rows = () if found is None else tuple(line(row, found.source) for row in found.rows[-_SHOWN:])
    if found is not None and len(found.rows) > _SHOWN:
        rows = (*rows, f"and {len(found.rows) - _SHOWN} rows that were measured before")
    return rows, () if wrong is None else (wrong,)
