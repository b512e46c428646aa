"""Runs tasks of lm-evaluation-harness on a model and reads off what it found."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.util
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

from isobit.errors import IsobitError, UsageError
from isobit.evaluation.tasks.paired import kind_of
from isobit.evaluation.tasks.results import Metric, TaskResult, TaskRun, TaskSetup

INSTALL = "pip install 'isobit[harness]'"
_BOOTSTRAPS = 1000  # of the harness, for the standard errors of what is no mean
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
_NO_METRICS = ("alias", "name", "sample_len", "sample_count")


def require_harness() -> None:
    """Check that lm-evaluation-harness is there.

    Raises:
        UsageError: it is not; says how to install it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(f"tasks are those of lm-evaluation-harness, which is not installed: {INSTALL}")


@contextlib.contextmanager
def aside(quiet: bool) -> Iterator[None]:
    """The harness prints to standard error, or not at all: standard output is for results."""
    from datasets import disable_progress_bars

    if quiet:
        disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    silence = contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext()
    # It asks git about the folder that this runs in, and git complains where there is no repository.
    unasked = mock.patch("lm_eval.evaluator.get_git_commit_hash", return_value=None)
    with contextlib.redirect_stdout(sys.stderr), silence, unasked:
        yield


class Harness:
    """Tasks by name, found and loaded once.

    Args:
        setup: which, and how they are asked.
        quiet: no progress.

    Raises:
        UsageError: the harness is not installed, there is no such task, or its data cannot be had.
    """

    def __init__(self, setup: TaskSetup, quiet: bool = False) -> None:
        require_harness()
        self.setup, self.quiet = setup, quiet
        for folder in setup.include:
            if not Path(folder).is_dir():
                raise UsageError(f"{folder}: there is no such folder of tasks")
        with aside(quiet):
            self.manager = self._manager()
            # Whatever is wrong with a task is said before a model is loaded.
            self._loaded = {task: self._guarded(task, self.manager.load, [task])["tasks"] for task in setup.tasks}

    def _manager(self) -> Any:
        """All tasks there are; those of the harness itself (10,000, half a minute) only where one is asked for."""
        from lm_eval.tasks import TaskManager

        include = list(self.setup.include)
        if include:
            own = TaskManager(include_path=include, include_defaults=False)
            if all(own.match_tasks([task]) for task in self.setup.tasks):
                return own
        manager = TaskManager(include_path=include or None)
        unknown = [task for task in self.setup.tasks if not manager.match_tasks([task])]
        if unknown:
            raise UsageError(
                f"no such task: {', '.join(unknown)}; `lm-eval ls tasks` lists those of the harness, and "
                "--include-path names a folder with task files of your own"
            )
        return manager

    def digest(self, task: str) -> str:
        """A name for what a task asks: its settings and every item of its data."""
        found = hashlib.sha256()
        for name, part in sorted(self._loaded[task].items()):
            settings = json.dumps(part.dump_config(), sort_keys=True, default=lambda value: type(value).__name__)
            found.update(f"{name}\0{settings}\0".encode())
            for doc in part.eval_docs:
                found.update(json.dumps(doc, sort_keys=True, default=repr).encode())
        return found.hexdigest()

    def run(self, lm: Any, task: str, path: str) -> TaskRun:
        """One task, or group of tasks, on one model.

        Args:
            lm: an :class:`isobit.evaluation.tasks.adapter.IsobitLM`.
            task: its name.
            path: what runs the model, in words.

        Raises:
            UsageError: the harness cannot run the task.
            IsobitError: the model cannot.
        """
        from lm_eval import simple_evaluate

        setup = self.setup
        limit = setup.limit
        lm.seen.clear()
        lm.chat_template(setup.chat)  # refused where the model has none of that name
        with aside(self.quiet):
            found = self._guarded(
                task,
                simple_evaluate,
                model=lm,
                tasks=[task],
                num_fewshot=setup.shots,
                limit=int(limit) if limit is not None and limit >= 1 else limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=True,
                system_instruction=setup.system,
                apply_chat_template=setup.chat,
                task_manager=self.manager,
                **({} if setup.seed is None else dict.fromkeys(_SEEDS, setup.seed)),
            )
        return TaskRun(
            results=read(found),
            bos=str(lm.rule),
            reads=lm.reads,
            template=None if setup.chat is False else "default" if setup.chat is True else setup.chat,
            seen=tuple(f"{task}: {what} ({count} time{'s' if count > 1 else ''})" for what, count in lm.seen.items()),
            harness=metadata.version("lm_eval"),
            path=path,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            notes=tuple(lm.llm.notes),
        )

    @staticmethod
    def _guarded(task: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Whatever the harness, its task files and its data libraries raise, as what is wrong with the task."""
        try:
            return call(*args, **kwargs)
        except IsobitError:
            raise
        except Exception as error:
            raise UsageError(
                f"task {task!r} cannot be run ({type(error).__name__}): {error}. Its files come with "
                "lm-evaluation-harness or from --include-path, its data from the Hugging Face hub or a file they name"
            ) from error


def read(found: Mapping[str, Any]) -> tuple[TaskResult, ...]:
    """The results of the harness as rows, groups behind their parts."""
    rows = [_task(name, found) for name in found["samples"]]
    parts = {row.task for row in rows}
    groups = {**found["results"], **found.get("groups", {})}
    return (*rows, *(_group(name, figures, found) for name, figures in groups.items() if name not in parts))


def _task(name: str, found: Mapping[str, Any]) -> TaskResult:
    samples = found["samples"][name]
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    by_filter = {key: [sample for sample in samples if sample["filter"] == key] for key in filters}
    first = by_filter[filters[0]] if filters else []
    kind = found["configs"][name].get("output_type", "")
    metrics = []
    for label, value, error, higher in _figures(name, found["results"][name], found):
        metric, _, key = label.partition(",")
        items = [sample.get(metric) for sample in by_filter.get(key, first)]
        metrics.append(Metric(_label(label), value, error, higher, *kind_of(value, items)))
    return TaskResult(
        task=name,
        version=_version(name, found),
        shots=found["n-shot"].get(name),
        count=len(first),
        ids=tuple(sample["doc_hash"] for sample in first),
        answers=_answers(kind, first),
        metrics=tuple(metrics),
    )


def _group(name: str, figures: Mapping[str, Any], found: Mapping[str, Any]) -> TaskResult:
    metrics = tuple(
        Metric(_label(label), value, error, higher, "other")
        for label, value, error, higher in _figures(name, figures, found)
    )
    return TaskResult(name, _version(name, found), found["n-shot"].get(name), 0, (), (), metrics, group=True)


def _version(name: str, found: Mapping[str, Any]) -> str:
    """The version of a task; empty where its file says none, which the harness calls "Yaml"."""
    version = str(found["versions"].get(name) or "")
    return "" if version == "Yaml" else version


def _figures(
    name: str, figures: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[tuple[str, float, float | None, bool | None]]:
    """(name, value, standard error, whether more is better) of each figure of a task."""
    for label, value in figures.items():
        metric, _, key = label.partition(",")
        if metric.endswith("_stderr") or metric in _NO_METRICS or isinstance(value, bool | str) or value is None:
            continue
        error = figures.get(f"{metric}_stderr,{key}")
        yield (
            label,
            float(value),
            float(error) if isinstance(error, int | float) else None,
            found.get("higher_is_better", {}).get(name, {}).get(metric),
        )


def _label(label: str) -> str:
    """``acc,none`` as ``acc``; ``exact_match,strict-match`` as ``exact_match (strict-match)``."""
    metric, _, key = label.partition(",")
    return metric if key in ("", "none") else f"{metric} ({key})"


def _answers(kind: str, samples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the model answered to each item; nothing where a task asks for no answer."""
    if kind == "multiple_choice":
        return tuple(_choice([likelihood for likelihood, _ in sample["filtered_resps"]]) for sample in samples)
    if kind == "loglikelihood":
        return tuple(json.dumps(bool(sample["filtered_resps"][0][1])) for sample in samples)
    if kind == "generate_until":
        return tuple(json.dumps(sample["filtered_resps"], default=str) for sample in samples)
    return ()


def _choice(likelihoods: Sequence[float]) -> str:
    return str(max(range(len(likelihoods)), key=likelihoods.__getitem__))
