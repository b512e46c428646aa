"""What tasks found, as frozen rows with everything that a comparison needs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TaskSetup:
    """Which tasks, and how they are asked.

    Attributes:
        tasks: names of tasks or of groups of them.
        shots: examples in front of each question; None for what the task says.
        limit: only so many items of each task (a share of them below 1); None for all.
        include: folders with task files of one's own.
        chat: whether questions become conversations, with the model's template; or the template's name.
        system: the system message of these; None for none.
        add_bos: whether contexts begin with begin-of-text; None for what the tokenizer does by itself.
        max_length: tokens that the model reads at most; None for its context.
        batch: items that are worked on at once.
        seed: of the order of examples and of sampled answers; None for the harness's own.
    """

    tasks: tuple[str, ...]
    shots: int | None = None
    limit: float | None = None
    include: tuple[str, ...] = ()
    chat: bool | str = False
    system: str | None = None
    add_bos: bool | None = None
    max_length: int | None = None
    batch: int = 64
    seed: int | None = None


@dataclass(frozen=True)
class Metric:
    """One figure of a task.

    Attributes:
        name: as the harness calls it; with its filter's name if it went through one.
        value: the figure.
        error: its standard error, as the harness gives it; None if it gives none.
        higher: whether more is better; None if nobody says.
        kind: how it is made of its items: ``mean``, ``perplexity`` (``exp(-mean)``), ``weighted_perplexity``,
            ``bits``; or ``other``: then it cannot be compared item by item.
        items: what each item gave; empty for ``other``.
        weights: of the items, for ``weighted_perplexity`` and ``bits``; empty for the others.
    """

    name: str
    value: float
    error: float | None
    higher: bool | None
    kind: str
    items: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """What one model did in one task.

    Attributes:
        task: its name.
        version: of the task.
        shots: examples in front of each question.
        count: items.
        ids: a hash of each item's content, by which two models' items are known to be the same.
        answers: what the model answered to each: the number of its choice, its text, whether it would have said so;
            empty where there is no answer (likelihood of whole texts), and for groups.
        metrics: its figures.
        group: whether it is made of other tasks.
    """

    task: str
    version: str
    shots: int | None
    count: int
    ids: tuple[str, ...]
    answers: tuple[str, ...]
    metrics: tuple[Metric, ...]
    group: bool = False


@dataclass(frozen=True)
class TaskRun:
    """All tasks of one model.

    Attributes:
        results: a row for each task, groups behind their parts.
        bos: where begin-of-text stands, in words.
        reads: tokens that are scored with at most.
        template: the chat template that was used, by name; None without.
        seen: what happened that figures depend on, as sentences.
        harness: version of lm-evaluation-harness.
        path: what ran the model, in words.
        date: ISO 8601, UTC.
        notes: what people should know about the checkpoint, as sentences.
    """

    results: tuple[TaskResult, ...]
    bos: str
    reads: int
    template: str | None
    seen: tuple[str, ...]
    harness: str
    path: str
    date: str
    notes: tuple[str, ...] = ()

    def joined(self, other: TaskRun) -> TaskRun:
        """The same model's runs of other tasks together with these."""
        seen = tuple(dict.fromkeys([*self.seen, *other.seen]))
        return replace(self, results=(*self.results, *other.results), seen=seen)
