"""Measure a checkpoint for its certificate, and measure again what a certificate says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isobit.checkpoint.occupant import CERTIFICATE
from isobit.errors import CheckpointError, UsageError
from isobit.evaluation import certificate
from isobit.evaluation.certificate import Certificate, Row
from isobit.evaluation.corpus import Corpus
from isobit.evaluation.measure import Asked, Source, evaluate_asked
from isobit.evaluation.statistics import Estimate
from isobit.evaluation.work import text_digest
from isobit.formats.caches import AUTO, cache_format
from isobit.models.opening import require_family

Verdict = Literal["same", "within", "differs", "not measured"]

# Of what is measured again by the same path: batch-invariant paths give the same bits, others sums in another order.
_SAME = 1e-3


@dataclass(frozen=True)
class Checked:
    """A row of a certificate, measured again.

    Attributes:
        row: what it says.
        again: what was measured now; None if it was not.
        verdict: ``same``: the figures are those of the certificate; ``within``: another path measured them, and they
            lie within its intervals; ``differs``; ``not measured``.
        why: why it was not measured, or what is different.
    """

    row: Row
    again: Row | None
    verdict: Verdict
    why: str = ""


def certify(folder: Path, name: str, source: Source, asked: Asked) -> tuple[Certificate, Row, tuple[str, ...]]:
    """Measure a checkpoint and put what was found into its certificate.

    Args:
        folder: the checkpoint.
        name: what to call it.
        source: what it was made from.
        asked: what is measured.

    Returns:
        The certificate as it lies beside the weights now, the row that is new, and what people should know.

    Raises:
        IsobitError: bad input, models that cannot be compared, or a folder that cannot be written.
    """
    for path in (folder, source.path):
        require_family(path)
    files, origin = certificate.marks(folder), certificate.marks(source.path)
    if _content(files) == _content(origin):
        raise UsageError(f"{name} and {source.name} are the same checkpoint: there is nothing that it lost")
    known = certificate.read(folder)
    if known is not None and known.files == files and known.source_files != origin:
        raise UsageError(
            f"{CERTIFICATE} holds what these weights lost against another source ({known.source}): give that one, or"
            " remove the certificate to begin anew"
        )
    row, notes = _measured(folder, name, source, asked)
    if known is None or known.files != files:
        if known is not None:
            notes = (*notes, f"{CERTIFICATE} was of other weights: it begins anew")
        known = Certificate(source.name, origin, files, ())
    made = known.with_row(row)
    certificate.write(folder, made)
    return made, row, notes


def _content(files: tuple[certificate.FileMark, ...]) -> set[str]:
    return {mark.sha256 for mark in files}


def _measured(folder: Path, name: str, source: Source, asked: Asked) -> tuple[Row, tuple[str, ...]]:
    found = evaluate_asked(folder, name, source, asked)
    assert found.fidelity is not None
    stored = cache_format(asked.kv_cache)
    kept = "auto" if stored == AUTO else stored.name
    return Row(found.fidelity, found.method, text_digest(*asked.corpus.documents), asked.tokens, kept), found.notes


def check(
    folder: Path,
    name: str,
    source: Callable[[Row], Source],
    corpus: Callable[[str], Corpus | None],
    usable: Callable[[Row], str | None],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Certificate, list[Checked]]:
    """Hold a certificate against the files it names, and measure its rows again.

    Args:
        folder: the checkpoint.
        name: what to call it.
        source: of a row: what it is measured against.
        corpus: the text of a digest; None if it is not there.
        usable: why a row cannot be measured here; None if it can.
        progress: called as windows are done.

    Raises:
        CheckpointError: there is no certificate, or it is of other files.
    """
    found = certificate.read(folder)
    if found is None:
        raise CheckpointError(f"has no {CERTIFICATE}: make one with isobit certify --against SOURCE", file=folder)
    if (reason := certificate.stale(folder, found, weights=True)) is not None:
        raise CheckpointError(f"is not of what lies here: {reason}", file=folder / CERTIFICATE)
    checked = []
    for row in found.rows:
        text, why = corpus(row.text_sha256), usable(row)
        if why is None and text is None:
            why = f"its text ({row.method.text}) is not at hand: name it with --text"
        if why is not None or text is None:
            checked.append(Checked(row, None, "not measured", why or ""))
            continue
        one = source(row)
        if certificate.marks(one.path) != found.source_files:
            raise UsageError(f"{one.name} is not the source that was measured ({found.source}): its files differ")
        asked = Asked(
            text, row.method.ctx, row.method.stride, row.tokens, row.method.seed, row.path.device, one.lowering,
            progress=progress, kv_cache=row.kv_cache, batch_invariant=row.path.batch_invariant,
        )  # fmt: skip
        checked.append(_verdict(row, _measured(folder, name, one, asked)[0]))
    return found, checked


def _verdict(row: Row, again: Row) -> Checked:
    pairs = [
        (label, getattr(row.fidelity, label), getattr(again.fidelity, label))
        for label in ("kl_mean", "kl_p99", "top1", "perplexity", "source_perplexity")
    ]
    off = [(label, old, new) for label, old, new in pairs if not math.isclose(old.value, new.value, rel_tol=_SAME)]
    if not off:
        return Checked(row, again, "same")
    shown = ", ".join(f"{label} {old.value:.6g} then, {new.value:.6g} now" for label, old, new in off)
    same_path = row.key == again.key
    inside = all(_inside(old, new.value) for _, old, new in off)
    return Checked(row, again, "within" if inside and not same_path else "differs", shown)


def _inside(estimate: Estimate, value: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low <= value <= estimate.high
