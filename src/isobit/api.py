"""The Python interface: plan, quantize, load, LLM, evaluate, info. The commands of the same names call these functions.

What is wrong with an argument is said here, by its name, before anything is read (:mod:`isobit.arguments`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.engine.grammar import Grammar as Grammar  # of the interface, too
from isobit.engine.loaded import Model
from isobit.engine.params import SamplingParams as SamplingParams  # of the interface, too
from isobit.errors import CheckpointWarning, UsageError
from isobit.formats.caches import AUTO, cache_format
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme as scheme_named

if TYPE_CHECKING:
    from isobit.engine import llm
    from isobit.engine.generate import Generator
    from isobit.evaluation.benched import Bench
    from isobit.evaluation.comparison import Comparison
    from isobit.evaluation.info import CheckpointInfo
    from isobit.evaluation.measure import Evaluation
    from isobit.legalize.plan import Plan
    from isobit.legalize.workload import Workload
    from isobit.quantizer.driver import Prediction
    from isobit.quantizer.report import QuantizeReport

DEFAULT_SHARD_BYTES = 5_000_000_000
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
SEARCHES = ("absmax", "mse")
LARGEST_SEED = 2**64 - 1
MOST_THREADS = 4096
MOST_SEQUENCES = 4096


def find(model: str | Path, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: what every function here that takes one begins with.

    Args:
        model: a local folder, a Hugging Face id, which is downloaded once, or ``"bundled"``.
        revision: branch, tag or commit of a Hugging Face id.
        weights: False is content with configuration and tokenizer.

    Raises:
        UsageError: ``model`` is no name that a model can have, or a revision is given of what has none.
        SourceError: there is no such model.
    """
    from isobit.checkpoint.source import resolve

    return resolve(_model("model", model, revision), revision=revision, weights=weights)


def _model(name: str, model: object, revision: object = None) -> str:
    """The name of a model, checked."""
    found = arguments.path(name, model)
    arguments.optional_text("revision", revision)
    try:
        here = found == "bundled" or Path(found).expanduser().exists()
    except RuntimeError:
        raise UsageError(f"{name} {found}: there is no user of this name, or no home folder is known") from None
    if here and revision is not None:
        what = "comes with isobit" if found == "bundled" else "is on this machine"
        reason = f"{found} {what}, and only models of the Hugging Face hub have revisions"
        raise UsageError(f"revision {revision!r}: {reason}; leave it out")
    return found


def quantize(
    model: str | Path,
    out: str | Path | None = None,
    scheme: str = "fp8",
    *,
    rules: Iterable[tuple[str, str]] = (),
    allow_mixed_fused: bool = False,
    search: str | None = None,
    calibration: str | Path | None = None,
    device: str = "cpu",
    target: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    threads: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> QuantizeReport:
    """Quantize a checkpoint into a folder in the compressed-tensors layout (docs/interop.md: which engines load what).

    Memory stays bounded whatever the model's size. Interrupted at any moment, the same call goes on where it stopped
    and gives the same bytes.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``.
        out: the folder to write; by default the model's name and the scheme's, in the current folder.
        scheme: what the linear layers become: any name or alias in :mod:`isobit.formats.schemes`.
        rules: ``(regex, scheme or "keep")`` pairs over module names; the first match wins.
        allow_mixed_fused: let rules give different schemes to layers that engines fuse (q, k and v; gate and up):
            isobit and transformers compute what is stored, vLLM does not.
        search: ``"absmax"`` or ``"mse"``; by default absmax for 8-bit formats and mse below.
        calibration: a text file that static activation scales are calibrated on; the bundled held-out text if None.
        device: what runs the model to calibrate: ``"cpu"`` or ``"cuda"``; all else is computed on the CPU.
        target: whose lowering calibrates on a GPU, e.g. ``"sm_86"``; the GPU's own if None.
        max_shard_bytes: the largest weight file, in bytes.
        threads: how many threads to use; every core this process may use if None.
        revision: branch, tag or commit of a Hugging Face id.
        overwrite: replace ``out`` if it is a finished checkpoint of isobit's.
        resume: go on after an interruption instead of starting over.
        progress: show progress on stderr.

    Returns:
        What was done, per module and in total.

    Raises:
        IsobitError: bad input, an unusable scheme, or too little memory or disk; the message says what to do.
    """
    from isobit.quantizer.driver import quantize as run

    name, policy = _model("model", model, revision), make_policy(scheme, rules)
    folder = output_folder(name, out, policy)
    settings = _settings(policy, search, calibration, device, target, max_shard_bytes)
    workers = arguments.optional_whole("threads", threads, 1, MOST_THREADS)
    flags = {"overwrite": overwrite, "resume": resume, "progress": progress, "allow_mixed_fused": allow_mixed_fused}
    for flag, value in flags.items():
        arguments.flag(flag, value)
    return run(
        find(name, revision=revision),
        folder,
        policy,
        **settings,
        allow_mixed_fused=allow_mixed_fused,
        threads=workers,
        overwrite=overwrite,
        resume=resume,
        progress=progress,
    )


def predict(
    model: str | Path,
    out: str | Path | None = None,
    scheme: str = "fp8",
    *,
    rules: Iterable[tuple[str, str]] = (),
    allow_mixed_fused: bool = False,
    search: str | None = None,
    calibration: str | Path | None = None,
    device: str = "cpu",
    target: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    revision: str | None = None,
) -> Prediction:
    """What :func:`quantize` would write: tensors, bytes, bits per weight. Reads headers and writes nothing.

    Takes and raises what :func:`quantize` does before it writes.
    """
    from isobit.quantizer.driver import predict as run

    name, policy = _model("model", model, revision), make_policy(scheme, rules)
    folder = output_folder(name, out, policy)
    settings = _settings(policy, search, calibration, device, target, max_shard_bytes)
    arguments.flag("allow_mixed_fused", allow_mixed_fused)
    return run(find(name, revision=revision), folder, policy, **settings, allow_mixed_fused=allow_mixed_fused)


def _settings(
    policy: Policy, search: str | None, text: str | Path | None, device: str, target: str | None, shard: int
) -> dict[str, Any]:
    """What :func:`quantize` and :func:`predict` hand over alike, checked before anything is fetched."""
    from isobit.quantizer import calibrate

    named = arguments.optional_path("calibration", text)
    found: dict[str, Any] = {
        "search": arguments.optional_choice("search", search, SEARCHES),
        "calibration": None if named is None else Path(named),
        "max_shard_bytes": arguments.whole("max_shard_bytes", shard, 1),
        "device": arguments.choice("device", device, DEVICES),
        "lowering": arguments.optional_text("target", target),
    }
    calibrate.prepare(found["calibration"], policy, device=device, lowering=target)
    return found


def make_policy(scheme: str, rules: Iterable[tuple[str, str]]) -> Policy:
    """The policy of a default scheme and ``(regex, scheme or "keep")`` pairs."""
    checked = arguments.pairs("rules", rules)
    return Policy(scheme_named(arguments.text("scheme", scheme)), tuple(Rule(*pair) for pair in checked))


def output_folder(model: str | Path, out: str | Path | None, policy: Policy) -> Path:
    """The folder to write: what the user named, or the model's name and the scheme's."""
    named = arguments.optional_path("out", out)
    return Path(named if named is not None else f"{default_name(model)}-{policy.default.name}")


def default_name(model: str | Path) -> str:
    """The last part of a folder's path or of a Hugging Face id, for naming an output folder."""
    name = str(model).rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") else Path(model).resolve().name


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | str | None = None,
) -> Model:
    """Load a checkpoint, quantized or not, ready to generate.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``.
        dtype: what activations are computed in: ``"float32"`` (the default on a CPU), ``"bfloat16"`` or ``"float16"``.
        revision: branch, tag or commit of a Hugging Face id.
        device: ``"cpu"`` or ``"cuda"``.
        kv_cache: what keys and values are stored as: ``"auto"`` (as activations), ``"bf16"``, ``"f16"``, ``"fp8"``,
            ``"fp8-e5m2"`` or ``"int8"`` (docs/numerics.md, section 9).
        batch_invariant: tokens and logprobs are the same bits whatever comes beside them (docs/numerics.md,
            section 10); refused with reasons where that cannot be had.
        memory: what of the device all of it may take: bytes, or text like ``"20GiB"``; None for what is free. A model
            that does not fit is refused with the figures before a tensor is read.

    Raises:
        CapacityError: it does not fit.

    Warns:
        CheckpointWarning: what people should know about this checkpoint; :attr:`Model.notes` has it, too.
    """
    loaded = Model(
        generator(
            model, dtype=dtype, revision=revision, device=device, kv_cache=kv_cache, memory=memory,
            batch_invariant=batch_invariant,
        )
    )  # fmt: skip
    for note in loaded.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=2)
    return loaded


def LLM(
    model: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    sequences: int = 64,
    cache_tokens: int | None = None,
    prefix_cache: bool = True,
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | str | None = None,
) -> llm.LLM:
    """Load a checkpoint, quantized or not, to answer many prompts at once.

    Args:
        model, dtype, revision, device: as :func:`load` takes them.
        sequences: prompts that are worked on at once at most; the others wait.
        cache_tokens: tokens that the key-value cache holds; None for as many as the prompts at hand need. Where they
            do not suffice, prompts wait, and the last ones may have to be computed again.
        prefix_cache: whether prompts that begin alike are computed once.
        kv_cache: what keys and values are stored as: ``"auto"`` (as activations), ``"bf16"``, ``"f16"``, ``"fp8"``,
            ``"fp8-e5m2"`` or ``"int8"`` (docs/numerics.md, section 9).
        batch_invariant: tokens and logprobs are the same bits whatever comes beside them (docs/numerics.md,
            section 10); refused with reasons where that cannot be had.
        memory: what of the device all of it may take: bytes, or text like ``"20GiB"``; None for what is free. A model
            that does not fit is refused with the figures before a tensor is read.
            Given, the cache gets at once what weights and the rest leave of it.

    Returns:
        An :class:`isobit.engine.llm.LLM`: ``generate(prompts, SamplingParams(...))``, ``stream``, ``stream_async``, and
        ``add``, ``step``, ``abort``.

    Raises:
        CapacityError: it does not fit, or there is no memory for so large a cache.

    Warns:
        CheckpointWarning: what people should know about this checkpoint; its ``notes`` have it, too.
    """
    arguments.optional_choice("dtype", dtype, DTYPES)
    cache_format(kv_cache)
    arguments.whole("sequences", sequences, 1, MOST_SEQUENCES)
    arguments.optional_whole("cache_tokens", cache_tokens, 1)
    arguments.flag("prefix_cache", prefix_cache)
    arguments.flag("batch_invariant", batch_invariant)
    most = arguments.optional_size("memory", memory)
    _where(device, None)
    folder = find(model, revision=revision)
    from isobit.engine.generate import load_llm

    loaded = load_llm(
        folder, dtype, device, kv_cache=kv_cache, sequences=sequences, cache_tokens=cache_tokens,
        prefix_cache=prefix_cache, memory=most, batch_invariant=batch_invariant,
    )  # fmt: skip
    for note in loaded.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=2)
    return loaded


def generator(
    model: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    prefix_cache: bool = False,
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | str | None = None,
) -> Generator:
    """What :func:`load` wraps, for the commands: they show notes in their own way. Takes and raises the same.

    With ``prefix_cache`` a prompt that begins like an earlier one, as the next turn of a conversation, is not computed
    from its beginning again.
    """
    arguments.optional_choice("dtype", dtype, DTYPES)
    cache_format(kv_cache)
    arguments.flag("batch_invariant", batch_invariant)
    most = arguments.optional_size("memory", memory)
    _where(device, None)
    folder = find(model, revision=revision)
    from isobit.engine.generate import load_generator

    options: dict[str, Any] = {"prefix_cache": prefix_cache, "kv_cache": kv_cache, "batch_invariant": batch_invariant}
    return load_generator(folder, dtype=dtype, device=device, memory=most, **options)


def _where(device: str, target: str | None) -> dict[str, Any]:
    """A device and whose lowering runs on it, as what loads models takes them; refused before anything is fetched.

    Raises:
        UsageError: there is no such device or target, or a target without a GPU.
        Unsupported: there is no GPU that can be used.
    """
    arguments.choice("device", device, DEVICES)
    if arguments.optional_text("target", target) is not None or device != "cpu":
        from isobit.models.place import place

        place(device, target)
    return {"device": device, "lowering": target}


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
    names = _model("model", model), "" if against is None else _model("against", against)
    from isobit.evaluation.asking import TextSettings

    settings = TextSettings.checked(text, ctx, stride, tokens, seed, command, progress)
    most = arguments.optional_size("memory", memory)
    alike = arguments.optional_flag("batch_invariant", batch_invariant)
    where = _where(device, target)

    from isobit.evaluation import measure

    folder, source = find(model), None
    if against is not None:
        source = measure.Source(find(against), default_name(names[1]), **where, batch_invariant=alike)
    _fit([folder, *([source.path] if source else [])], device, most, kv_cache)
    asked = settings.asked(**where, kv_cache=kv_cache, batch_invariant=alike)
    return measure.evaluate_asked(folder, default_name(names[0]), source, asked)


def _fit(folders: Iterable[Path], device: str, memory: int | None, kv_cache: str) -> None:
    """That each of these models fits the device, before one of them is read.

    Raises:
        CapacityError: it does not.
    """
    from isobit.engine.generate import require_room

    for folder in dict.fromkeys(folders):
        require_room(folder, device, memory, kv_cache)


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

    listed = [_model(f"models[{place}]", one) for place, one in enumerate(models)]
    if not listed:
        raise UsageError("models: no model is named")
    if cache_format(kv_cache) != AUTO and against is None:
        if len(listed) > 1:
            raise UsageError("kv_cache: name the model that these are compared with (against)")
        against = listed[0]
    source = None if against is None else _model("against", against)
    wanted = arguments.texts("tasks", tasks)
    own = arguments.optional_whole("seed", seed, 0, asking.LARGEST_SEED)
    setup = asking.task_setup(wanted, seed=own, **asked) if wanted else None
    settings = asking.TextSettings.checked(text, ctx, stride, tokens, own or 0, command, progress)
    measured = on_text if on_text is not None else setup is None or text is not None
    folder = arguments.optional_path("work", work)
    most = arguments.optional_size("memory", memory)
    where = _where(device, target)
    if setup is not None:
        from isobit.evaluation.tasks.run import require_harness

        require_harness()

    from isobit.evaluation.comparison import compare as run

    folders = {name: find(one) for name, one in zip(asking.names(listed, default_name), listed, strict=True)}
    origin = None if source is None else (default_name(source), find(source))
    _fit([*folders.values(), *([origin[1]] if origin else [])], device, most, kv_cache)
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
    most = arguments.optional_size("memory", memory)
    where = _where(device, target)
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
    """What is in a checkpoint, by any tool: schemes, bytes, bits per weight. Reads headers and loads no weights."""
    folder = find(model, revision=revision)
    from isobit.evaluation.info import describe

    return describe(folder)


def plan(
    model: str | Path | Mapping[str, Any],
    *,
    targets: Iterable[str] = ("here",),
    schemes: Iterable[str] = (),
    context: int | None = None,
    batch: int = 1,
    kv: str | None = None,
    allow_relaxed: bool = False,
    memory: int | str | None = None,
    revision: str | None = None,
    calibration: bool | str | Path = True,
) -> tuple[Workload, list[list[Plan]]]:
    """What happens to a model under every scheme on every target, without weights, GPU or torch.

    Args:
        model: a ``config.json``, its contents, a folder with one, a Hugging Face id, or ``"bundled"``.
        targets: names of targets and boards, ``"all"``, ``"here"``.
        schemes: names of schemes, or ``"all"``; none for what the checkpoint holds if it is quantized, else all.
        context: tokens of a sequence; by default 4096, or the model's longest context if that is shorter.
        batch: sequences at once.
        kv: format of the cache; by default that of the activations.
        allow_relaxed: whether a rounding point may be dropped where nothing else works.
        memory: what of each machine may be taken: bytes, or text like ``"20GiB"``; all of it if None.
        revision: branch, tag or commit of a Hugging Face id.
        calibration: whether speeds on this machine go by what :func:`bench` measured there; or the file that holds it.

    Returns:
        The model, and the plans of each machine, a scheme each.

    Raises:
        IsobitError: something named does not exist, or the model is not one that isobit runs.
    """
    from isobit.models.planning import plans

    return plans(
        model if isinstance(model, Mapping) else _model("model", model, revision),
        targets=arguments.texts("targets", targets),
        scheme_names=arguments.texts("schemes", schemes),
        context=arguments.optional_whole("context", context, 1),
        batch=arguments.whole("batch", batch, 1),
        kv=arguments.optional_text("kv", kv),
        allow_relaxed=arguments.flag("allow_relaxed", allow_relaxed),
        memory=arguments.optional_size("memory", memory),
        revision=revision,
        calibration=_calibration(calibration),
    )


def _calibration(given: object) -> bool | Path:
    """Whether measurements are used, or the file that holds them."""
    return given if isinstance(given, bool) else Path(arguments.path("calibration", given))
