"""Models measured on a text, on tasks, or on both; what `isobit eval` makes of several of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from isobit.evaluation import several, tables, wording
from isobit.evaluation.asking import TextSettings
from isobit.evaluation.measure import Evaluation, Source
from isobit.evaluation.results import Results
from isobit.evaluation.tasks import text as task_text
from isobit.evaluation.tasks.evaluate import TaskComparison, evaluate_tasks
from isobit.evaluation.tasks.results import TaskSetup
from isobit.evaluation.work import Work


@dataclass(frozen=True)
class Comparison:
    """What was measured of some models.

    Attributes:
        models: their names.
        source: name of the model that they are compared with; None without one.
        texts: how well each predicts the text, in their order; empty if no text was measured.
        tasks: what each did in tasks; None if none was asked for.
        command: the command that does it again.
    """

    models: tuple[str, ...]
    source: str | None
    texts: tuple[Evaluation, ...]
    tasks: TaskComparison | None
    command: str = ""

    @property
    def results(self) -> Results | None:
        """The models beside their source, for a report; None where there is no source or no text."""
        return several.together(self.texts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know about the checkpoints that were measured."""
        several_models = len(self.models) > 1
        notes = [f"{one.model}: {note}" if several_models else note for one in self.texts for note in one.notes]
        for name, run in () if self.tasks is None else self.tasks.everyone:
            named = several_models or name not in self.models
            notes += [f"{name}: {note}" if named else note for note in run.notes]
        return tuple(dict.fromkeys(notes))

    def __str__(self) -> str:
        parts = [str(self.texts[0]) if len(self.texts) == 1 else tables.describe_all(self.texts, self.results)]
        if self.tasks is not None:
            parts.append(task_text.describe(self.tasks))
        return "\n\n".join(part for part in parts if part)

    def markdown(self) -> str:
        """The same as a page in Markdown."""
        against = "" if self.source is None else f" against {self.source}"
        lines = [f"# isobit eval: {', '.join(self.models)}{against}", ""]
        if self.texts:
            lines += [f"## {self.texts[0].method.text}", "", *tables.markdown(self.texts, self.results), ""]
        if self.tasks is not None:
            lines += ["## Tasks", "", wording.markdown(task_text.columns(self.tasks), task_text.rows(self.tasks)), ""]
            lines += [] if self.tasks.source is None else [task_text.LEGEND, ""]
            lines += [*(f"- {sentence}" for sentence in task_text.said(self.tasks)), ""]
        return "\n".join([*lines, f"`{self.command}`" if self.command else "", ""])


def compare(
    models: Mapping[str, Path],
    settings: TextSettings | None,
    setup: TaskSetup | None,
    *,
    source: tuple[str, Path] | None = None,
    device: str = "cpu",
    lowering: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool | None = None,
    work: Path | None = None,
    logit_bytes: int = 0,
    command: str = "",
    quiet: bool = False,
) -> Comparison:
    """Measure models on a text, on tasks, or on both.

    Args:
        models: what to call each -> its folder.
        settings: how the text is measured; None to measure none.
        setup: the tasks; None for none.
        source: name and folder of the model that they are compared with.
        device: what runs them: ``cpu`` or ``cuda``.
        lowering: target whose lowering runs on the GPU; None for the GPU's own.
        kv_cache: what the models store keys and values as; their source has them as activations.
        batch_invariant: of all models; see :func:`isobit.evaluation.loading.load_measured`.
        work: a folder where results are found again, and kept.
        logit_bytes: of the source's logits that are kept there.
        command: the command that does it again.
        quiet: tasks show no progress.

    Raises:
        IsobitError: bad input, models that cannot be compared, a task that cannot be run.
    """
    asked = None if settings is None else settings.asked(device, lowering, kv_cache, batch_invariant)
    kept = None if work is None else Work(work)
    try:
        texts: list[Evaluation] = []
        if asked is not None:
            first = None if source is None else Source(source[1], source[0], device, lowering, batch_invariant)
            texts = several.evaluate_all(models, asked, source=first, work=kept, logit_bytes=logit_bytes)
        tasks = None
        if setup is not None:
            tasks = evaluate_tasks(
                models,
                setup,
                source=source,
                device=device,
                lowering=lowering,
                kv_cache=kv_cache,
                batch_invariant=batch_invariant,
                work=kept,
                quiet=quiet,
            )
    finally:
        if kept is not None:
            kept.close()
    return Comparison(tuple(models), None if source is None else source[0], tuple(texts), tasks, command)
