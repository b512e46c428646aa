"""evaluate, compare, bench and info: what a model is worth, how fast it is, and what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.api.finding import DTYPES, MOST_SEQUENCES, default_name, device_and_target, find, model_named
from isobit.errors import UsageError
from isobit.formats.caches import AUTO, cache_format

if TYPE_CHECKING:
    from isobit.evaluation.benched import Bench
    from isobit.evaluation.comparison import Comparison
    from isobit.evaluation.info import CheckpointInfo
    from isobit.evaluation.measure import Evaluation


def evaluate(
    model: str | Path,
    against: str | Path | None = None,
    *,
    text: str | Path | None = None,
    ctx: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    target: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool | None = None,
    memory: int | str | None = None,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure how well a model predicts a text, and what it lost against the model it was made from.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``.
        against: the source to compare with; without it there is perplexity but no KL divergence.
        text: a UTF-8 file or a folder of them; held-out Python code if None.
        ctx: tokens per window, at least 2; 512 or what the model can read if None.
        stride: tokens from one window to the next, at most ``ctx``, which it is if None: windows do not overlap.
        tokens: about how many tokens to score, spread over the text; 32768 if None, all of them if 0.
        seed: of the bootstrap behind the confidence intervals, at least 0.
        device: what runs both models: ``"cpu"`` or ``"cuda"``. Figures hold for the path that was measured
            (``Evaluation.method.paths``).
        target: whose lowering runs on a GPU, e.g. ``"sm_86"`` on a newer one; the GPU's own if None.
        kv_cache: what ``model`` stores keys and values as; see :func:`LLM`. Where that is not ``"auto"`` and
            ``against`` is None, it is compared with itself with a cache in the dtype of activations.
        batch_invariant: whether the same bits are measured whatever is computed at once (docs/numerics.md, section 10);
            None for yes where that can be had, and a note where it cannot.
        memory: what of the device each model may take; see :func:`LLM`.
        command: the command line that measures the same, for reports.
        progress: called with (windows done, windows in all) as they are done.

    Returns:
        The likelihood and, given a source, the fidelity: mean and 99th-percentile KL divergence in nats, top-1
        agreement and perplexities, each with a 95 % confidence interval if there are enough windows.

    Raises:
        IsobitError: bad input, models that cannot be compared, or one that gives NaN; the message says what to do.
    """
    if cache_format(kv_cache) != AUTO and against is None:
        against = model
    names = model_named("model", model), "" if against is None else model_named("against", against)
    from isobit.evaluation.asking import TextSettings

    settings = TextSettings.checked(text, ctx, stride, tokens, seed, command, progress)
    most = arguments.optional_memory("memory", memory)
    alike = arguments.optional_flag("batch_invariant", batch_invariant)
    where = device_and_target(device, target)

    from isobit.evaluation import measure

    folder, source = find(model), None
    if against is not None:
        source = measure.Source(find(against), default_name(names[1]), **where, batch_invariant=alike)
    require_fit([folder, *([source.path] if source else [])], device, target, most, kv_cache)
    asked = settings.asked(**where, kv_cache=kv_cache, batch_invariant=alike)
    return measure.evaluate_asked(folder, default_name(names[0]), source, asked)


def require_fit(folders: Iterable[Path], device: str, target: str | None, memory: int | None, kv_cache: str) -> None:
    """That each of these models fits the device, before one of them is read.

    Raises:
        CapacityError: it does not.
    """
    from isobit.engine.generate import require_room

    for folder in dict.fromkeys(folders):
        require_room(folder, device, memory, kv_cache, target=target)


def compare(
    models: Iterable[str | Path],
    against: str | Path | None = None,
    *,
    tasks: Iterable[str] = (),
    on_text: bool | None = None,
    text: str | Path | None = None,
    ctx: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    target: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool | None = None,
    memory: int | str | None = None,
    work: str | Path | None = None,
    logits_gb: float = 8.0,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
    quiet: bool = True,
    **asked: Any,
) -> Comparison:
    """Measure several models on a text, on tasks of lm-evaluation-harness, or on both (docs/evaluation.md).

    Args:
        models: local folders, Hugging Face ids, ``"bundled"``.
        against: the source to compare each of them with.
        tasks: names of tasks; needs the extra ``harness``.
        on_text: whether a text is measured; None for yes where no task is named or a text is.
        text, ctx, stride, tokens, device, target, kv_cache, batch_invariant, memory, command, progress: as
            :func:`evaluate` takes them.
        seed: of the bootstrap (0 if None), and of tasks (the harness's own if None).
        work: a folder where results are kept as they come: the same call goes on where it was interrupted, and a call
            for more models or tasks measures only these. With its source's logits, up to ``logits_gb`` of them.
        logits_gb: see ``work``.
        quiet: tasks show no progress.
        asked: how tasks are asked: ``shots``, ``limit``, ``include``, ``chat``, ``system``, ``add_bos``, ``max_length``
            and ``batch`` of :class:`isobit.evaluation.tasks.results.TaskSetup`.

    Raises:
        IsobitError: bad input, models that cannot be compared, a task that cannot be run.
    """
    from isobit.evaluation import asking

    listed = [model_named(f"models[{place}]", one) for place, one in enumerate(models)]
    if not listed:
        raise UsageError("models: no model is named")
    if cache_format(kv_cache) != AUTO and against is None:
        if len(listed) > 1:
            raise UsageError("kv_cache: name the model that these are compared with (against)")
        against = listed[0]
    source = None if against is None else model_named("against", against)
    wanted = arguments.texts("tasks", tasks)
    own = arguments.optional_whole("seed", seed, 0, asking.LARGEST_SEED)
    setup = asking.task_setup(wanted, seed=own, **asked) if wanted else None
    settings = asking.TextSettings.checked(text, ctx, stride, tokens, own or 0, command, progress)
    measured = on_text if on_text is not None else setup is None or text is not None
    folder = arguments.optional_path("work", work)
    most = arguments.optional_memory("memory", memory)
    where = device_and_target(device, target)
    if setup is not None:
        from isobit.evaluation.tasks.run import require_harness

        require_harness()

    from isobit.evaluation.comparison import compare as run

    folders = {name: find(one) for name, one in zip(asking.names(listed, default_name), listed, strict=True)}
    origin = None if source is None else (default_name(source), find(source))
    require_fit([*folders.values(), *([origin[1]] if origin else [])], device, target, most, kv_cache)
    return run(
        folders,
        settings if measured else None,
        setup,
        source=origin,
        **where,
        kv_cache=kv_cache,
        batch_invariant=arguments.optional_flag("batch_invariant", batch_invariant),
        work=None if folder is None else Path(folder),
        logit_bytes=asking.gigabytes("logits_gb", logits_gb),
        command=command,
        quiet=arguments.flag("quiet", quiet),
    )


def bench(
    model: str | Path,
    *,
    device: str = "cpu",
    target: str | None = None,
    dtype: str | None = None,
    batches: Sequence[int] | None = None,
    prompt: int = 64,
    new: int | None = None,
    context: int | None = None,
    rounds: int = 3,
    kv_cache: str = "auto",
    memory: int | str | None = None,
    revision: str | None = None,
    progress: Callable[[str], object] | None = None,
) -> Bench:
    """Measure how fast a model decodes and reads prompts here, beside what the plan says of the same.

    Args:
        model, dtype, kv_cache, memory, revision: as :func:`load` takes them.
        device: what runs it: ``"cpu"`` or ``"cuda"``.
        target: whose lowering runs on a GPU; the GPU's own if None.
        batches: how many sequences decode at once, a case each; 1 and 8 if None, on a GPU 64, too.
        prompt, new: tokens of each prompt and answer; ``new`` is 32 if None, on a GPU 128.
        context: also decode one sequence behind so many tokens.
        rounds: repetitions of each case.
        progress: called with a few words when a case begins.

    Returns:
        A figure for each case, and what :func:`isobit.models.calibration.store` can keep for later plans.

    Raises:
        IsobitError: bad input, a model that cannot be loaded, or too little memory.
    """
    gpu = device == "cuda"
    asked = [1, 8, 64] if gpu else [1, 8]
    if batches is not None:
        asked = [arguments.whole("batches", one, 1, MOST_SEQUENCES) for one in arguments.sequence("batches", batches)]
    arguments.optional_choice("dtype", dtype, DTYPES)
    arguments.whole("prompt", prompt, 1)
    new = (128 if gpu else 32) if new is None else new
    arguments.whole("new", new, 4)
    arguments.optional_whole("context", context, 1)
    arguments.whole("rounds", rounds, 1, 1000)
    cache_format(kv_cache)
    most = arguments.optional_memory("memory", memory)
    where = device_and_target(device, target)
    folder = find(model, revision=revision)
    from isobit.evaluation import benched

    return benched.run(
        folder,
        default_name(model),
        **where,
        dtype=dtype,
        batches=asked,
        prompt=prompt,
        new=new,
        context=context,
        rounds=rounds,
        kv_cache=kv_cache,
        memory=most,
        progress=progress or (lambda what: None),
    )


def info(model: str | Path, *, revision: str | None = None) -> CheckpointInfo:
    """What is in a checkpoint, by any tool: schemes, bytes, bits per weight.

    Reads headers, scales that are tensors of their own, and of all else the first 256 MiB, where NaN and infinity are
    looked for (a note says what was left); loads no weights.
    """
    folder = find(model, revision=revision)
    from isobit.evaluation.info import describe

    return describe(folder)
