"""Several checkpoints measured on the same text, into one table; interrupted, it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isobit.evaluation.corpus import Sample
from isobit.evaluation.kept import KeptLogits
from isobit.evaluation.measure import Asked, Evaluation, Source, measured
from isobit.evaluation.results import Results
from isobit.evaluation.work import Work, checkpoint_digest, digest, own_digest, text_digest
from isobit.models.place import place
from isobit.shortage import shortages
from isobit.targets.detect import detect


@shortages()
def evaluate_all(
    models: Mapping[str, Path],
    asked: Asked,
    *,
    source: Source | None = None,
    work: Work | None = None,
    logit_bytes: int = 0,
) -> list[Evaluation]:
    """Measure checkpoints one after the other; the source is loaded once for all of them.

    Args:
        models: what to call each -> its folder.
        asked: what is measured.
        source: what they are compared with; None for likelihood alone.
        work: where results are found again, and kept.
        logit_bytes: of the source's logits that are kept there; what is larger is computed for each model.

    Raises:
        IsobitError: as :func:`isobit.evaluation.measure.evaluate` does.
    """
    place(asked.device, asked.lowering)  # refused before anything is read
    settings = {} if work is None else _settings(asked, source)
    found = []
    for name, path in models.items():
        depends = {} if work is None else {**settings, "model": [name, checkpoint_digest(path), asked.kv_cache]}
        done = None if work is None else work.find("text", depends, Evaluation)
        if done is None:
            keep = None if work is None else _Keeping(work.folder / "logits", settings, logit_bytes).of
            done = measured(path, name, source, asked, keep)
            if work is not None:
                work.keep("text", depends, done)
        elif asked.progress is not None:
            asked.progress(done.likelihood.windows, done.likelihood.windows)
        found.append(_asked_by(done, asked.command))
    return found


def _asked_by(found: Evaluation, command: str) -> Evaluation:
    """The same with the command that is run now: what was kept may come from one for other models, too."""
    method = replace(found.method, command=command)
    results = (
        None if found.results is None else replace(found.results, method=replace(found.results.method, command=command))
    )
    return replace(found, method=method, results=results)


def together(found: Sequence[Evaluation]) -> Results | None:
    """Models that were compared with the same source as one set of results, for a table and a report; None without."""
    each = [one.results for one in found if one.results is not None]
    if not each:
        return None
    first = each[0]
    paths = {path.model: path for results in each for path in results.method.paths}
    method = replace(first.method, paths=tuple(paths.values()), date=max(results.method.date for results in each))
    return Results(first.source, tuple(row for results in each for row in results.schemes), (), method)


def _settings(asked: Asked, source: Source | None) -> dict[str, Any]:
    """Everything that figures depend on beside the model."""
    machine = detect()
    return {
        "text": [asked.corpus.name, text_digest(*asked.corpus.documents)],
        "windows": [asked.ctx, asked.stride, asked.tokens],
        "seed": asked.seed,
        "batch invariant": asked.batch_invariant,
        "ran on": [asked.device, asked.lowering, machine.cpu, machine.cpu_features, machine.cores, machine.gpus],
        "isobit": own_digest(),
        "source": None if source is None else [source.name, checkpoint_digest(source.path)],
    }


@dataclass(frozen=True)
class _Keeping:
    """Where a source's logits are kept."""

    folder: Path
    settings: Mapping[str, Any]
    most: int

    def of(self, chosen: Sample, vocab: int) -> KeptLogits:
        scored = sum(window.num_scored for window in chosen.windows)
        same = {key: value for key, value in self.settings.items() if key != "seed"}
        return KeptLogits(self.folder, digest(same), self.most, 4 * scored * vocab)
