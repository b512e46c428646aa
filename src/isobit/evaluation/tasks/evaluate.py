"""Tasks on several models, the source among them; what is done already is found in a folder of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from isobit.engine.llm import LLM
from isobit.engine.tokenizer import Tokenizer
from isobit.evaluation.loading import load_measured
from isobit.evaluation.paths import execution_path
from isobit.evaluation.tasks.results import TaskRun, TaskSetup
from isobit.evaluation.tasks.run import Harness
from isobit.evaluation.work import Work, checkpoint_digest, own_digest
from isobit.formats.caches import AUTO
from isobit.models.opening import require_family
from isobit.models.place import place
from isobit.shortage import shortages
from isobit.targets.detect import detect


@dataclass(frozen=True)
class TaskComparison:
    """Tasks of some models.

    Attributes:
        setup: which, and how they were asked.
        source: name and run of the model that the others were made from; None without one.
        models: names and runs of the others.
    """

    setup: TaskSetup
    source: tuple[str, TaskRun] | None
    models: tuple[tuple[str, TaskRun], ...]

    @property
    def everyone(self) -> tuple[tuple[str, TaskRun], ...]:
        """All models, the source first."""
        return self.models if self.source is None else (self.source, *self.models)


@shortages()
def evaluate_tasks(
    models: Mapping[str, Path],
    setup: TaskSetup,
    *,
    source: tuple[str, Path] | None = None,
    device: str = "cpu",
    lowering: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool | None = None,
    work: Work | None = None,
    quiet: bool = False,
) -> TaskComparison:
    """Run tasks on models, one after the other.

    Args:
        models: what to call each -> its folder.
        setup: which tasks, and how they are asked.
        source: name and folder of the model that they are compared with.
        device: what runs them: ``cpu`` or ``cuda``.
        lowering: target whose lowering runs on the GPU; None for the GPU's own.
        kv_cache: what the models store keys and values as; the source has them as activations.
        batch_invariant: of all models; see :func:`isobit.evaluation.loading.load_measured`.
        work: where results are found again, and kept, task by task.
        quiet: no progress.

    Raises:
        UsageError: the harness is not installed, or a task cannot be run.
        IsobitError: a model cannot be loaded, or gives NaN.
    """
    place(device, lowering)
    harness = Harness(setup, quiet)
    runs: dict[tuple[Path, str], TaskRun] = {}

    def run(name: str, path: Path, stored: str) -> tuple[str, TaskRun]:
        if (path, stored) not in runs:
            loaded = _Loaded(name, path, device, lowering, stored, batch_invariant, setup, quiet)
            runs[path, stored] = _all_tasks(loaded, harness, work)
        return name, runs[path, stored]

    first = None if source is None else run(*source, AUTO.name)
    return TaskComparison(setup, first, tuple(run(name, path, kv_cache) for name, path in models.items()))


@dataclass
class _Loaded:
    """A model that is loaded when a task of its has not been done."""

    name: str
    path: Path
    device: str
    lowering: str | None
    kv_cache: str
    batch_invariant: bool | None
    setup: TaskSetup
    quiet: bool

    @cached_property
    def lm(self) -> Any:
        from isobit.evaluation.tasks.adapter import IsobitLM

        setup = self.setup
        require_family(self.path)
        tokenizer = Tokenizer.from_folder(self.path)
        model = load_measured(
            self.path, device=self.device, lowering=self.lowering, kv_cache=self.kv_cache,
            batch_invariant=self.batch_invariant,
        )  # fmt: skip
        llm = LLM(model, tokenizer, sequences=setup.batch)
        return IsobitLM(
            llm, self.name, add_bos=setup.add_bos, max_length=setup.max_length, seed=setup.seed or 0, quiet=self.quiet
        )

    @property
    def ran_on(self) -> str:
        return str(execution_path(self.name, self.lm.llm.model, detect()))


def _all_tasks(loaded: _Loaded, harness: Harness, work: Work | None) -> TaskRun:
    """Every task of one model."""
    settings = {} if work is None else _settings(loaded)
    found: TaskRun | None = None
    for task in loaded.setup.tasks:
        depends = {} if work is None else {**settings, "task": task, "data": harness.digest(task)}
        run = None if work is None else work.find("tasks", depends, TaskRun)
        if run is None:
            run = harness.run(loaded.lm, task, loaded.ran_on)
            if work is not None:
                work.keep("tasks", depends, run)
        found = run if found is None else found.joined(run)
    assert found is not None
    return found


def _settings(loaded: _Loaded) -> dict[str, Any]:
    """Everything that a task's figures depend on beside its files and data."""
    machine, setup = detect(), loaded.setup
    asked = replace(setup, tasks=(), include=(), batch=0)
    return {
        "model": [loaded.name, checkpoint_digest(loaded.path), loaded.kv_cache],
        "asked": repr(asked),
        "batch invariant": loaded.batch_invariant,
        "ran on": [loaded.device, loaded.lowering, machine.cpu, machine.cpu_features, machine.cores, machine.gpus],
        "isobit": own_digest(),
        "harness": metadata.version("lm_eval"),
    }
