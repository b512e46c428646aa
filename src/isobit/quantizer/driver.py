"""Quantizing a checkpoint: validate everything, then stream pieces of tensors through all cores into the output folder.

The caller's thread reads, a pool computes, one more thread writes, all in the order of the source's bytes; what is on
its way is bounded in bytes, whatever the model's size. Nothing in the output depends on the number of threads, on
time, or on how often the work was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from isobit.checkpoint import ctrender, engines
from isobit.checkpoint.files import size_of
from isobit.checkpoint.gguf.wording import in_its_words
from isobit.checkpoint.occupant import CONFIG, REPORT, require_name
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.shards import INDEX, PlannedShard, index_json, plan_shards
from isobit.checkpoint.text.check import check_companions
from isobit.checkpoint.widened import stored_bytes, widened
from isobit.checkpoint.writer import COMMIT_BYTES, OutputFolder
from isobit.errors import DamagedWeights, IsobitError, UsageError
from isobit.formats.rules import Policy
from isobit.kernels import backends
from isobit.models.archs import is_within
from isobit.models.blueprint import HEAD, classifier
from isobit.models.config import ModelConfig
from isobit.models.contents import Contents, contents
from isobit.models.opening import runnable
from isobit.quantizer import beside, calibrate, experts, grid, validate
from isobit.quantizer.jobs import InputScales, Job, is_weight, module_of, plan_jobs
from isobit.quantizer.progress import Progress, make_progress
from isobit.quantizer.report import QuantizeReport, from_json, summarize, to_json
from isobit.quantizer.stream import source_sums, stream
from isobit.shortage import shortages
from isobit.version import __version__

DEFAULT_SHARD_BYTES = 5_000_000_000
_INPUT_SCALES = "input_scales"  # key of the journal entry
_BOTH = ("tie_word_embeddings", "dtype", "torch_dtype")  # of a model with a decoder inside: said of it, too


@shortages()
def quantize(
    source: Path,
    out: Path,
    policy: Policy,
    *,
    search: str | None = None,
    calibration: Path | None = None,
    device: str = "cpu",
    lowering: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    allow_mixed_fused: bool = False,
    from_quantized: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    progress: bool | Progress = True,
    commit_bytes: int = COMMIT_BYTES,
) -> QuantizeReport:
    """Quantizes the checkpoint in ``source`` into ``out``.

    Args:
        source: a model folder with plain weights.
        out: the folder to write; new, empty, or holding an unfinished run of the same job.
        policy: which module gets which scheme.
        search: ``absmax`` or ``mse``; None for each format's default.
        calibration: a text file that static activation scales are calibrated on; None for the held-out text
            that comes with isobit.
        device: what runs the source model to calibrate: ``cpu`` or ``cuda``; all else is computed on the CPU.
        lowering: target whose lowering calibrates on the GPU; None for the GPU's own.
        max_shard_bytes: tensor bytes per weight file.
        allow_mixed_fused: layers that engines fuse (q, k and v; gate and up) may get different schemes.
        from_quantized: take a source that is quantized already as the numbers it stands for.
        threads: computing threads; None for every core this process may use.
        overwrite: replace a finished checkpoint of isobit's in ``out``.
        resume: take up an unfinished run of the same job in ``out``; otherwise start over.
        progress: show progress on stderr, or where to show it.
        commit_bytes: make the output durable after so many bytes; a kill costs no more work than that.

    Returns:
        what was done.

    Raises:
        UsageError: arguments or folders that cannot be used as given.
        Unsupported: there is no such GPU.
        CheckpointError: the source is damaged, quantized already, or not what its configuration says.
        SchemeError: a scheme does not fit a weight.
        ModelError: an architecture that isobit does not know.
        CapacityError: the disk lacks space; run again after freeing some.
    """
    begin = time.monotonic()
    shown = make_progress(progress) if isinstance(progress, bool) else progress
    workers = _threads(threads)
    calibrated = calibrate.prepare(calibration, policy, device=device, lowering=lowering)
    settings = _Settings(policy, _search(search), max_shard_bytes, calibrated, allow_mixed_fused, from_quantized)
    plan = _plan(Path(source), Path(out), settings)
    for said in plan.notes:
        shown.note(f"note: {said}")
    with OutputFolder(
        Path(out),
        _description(plan, settings),
        plan.shards,
        resume=resume,
        overwrite=overwrite,
        commit_bytes=commit_bytes,
        small_files=_small_files(plan),
    ) as output:
        if output.finished:
            shown.note(f"{out} was finished by the last run, all but the tidying up")
            return from_json((Path(out) / REPORT).read_bytes(), str(out), time.monotonic() - begin)
        resumed_from = len(output.done)
        _compare(plan, output, workers, shown)
        with in_its_words(plan.ck.path):
            jobs = _with_input_scales(plan, settings, output, workers, shown)
            read, written = _stream(plan.ck, jobs, output, workers, shown)
        return _finish(
            plan,
            settings,
            jobs,
            output,
            seconds=time.monotonic() - begin,
            bytes_read=read,
            bytes_written=written,
            resumed_from=resumed_from,
        )


@dataclass(frozen=True)
class Prediction:
    """What a run would write, known from headers alone.

    Attributes:
        scheme: name of the default scheme.
        tensors: source tensors that are used.
        quantized: how many of them become few-bit codes.
        source_bytes: bytes of the tensors that are used.
        output_bytes: bytes of the tensors that would be written.
        bits_per_weight: stored bits per quantized weight, scales included; None if nothing is quantized.
        kernels: the kernels that will run the linear layers on this machine.
        notes: what a person should know.
    """

    scheme: str
    tensors: int
    quantized: int
    source_bytes: int
    output_bytes: int
    bits_per_weight: float | None
    kernels: tuple[str, ...]
    notes: tuple[str, ...]


@shortages()
def predict(
    source: Path,
    out: Path,
    policy: Policy,
    *,
    search: str | None = None,
    calibration: Path | None = None,
    device: str = "cpu",
    lowering: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    allow_mixed_fused: bool = False,
    from_quantized: bool = False,
) -> Prediction:
    """What :func:`quantize` would do; reads headers, writes nothing, and raises what it would raise before writing."""
    calibrated = calibrate.prepare(calibration, policy, device=device, lowering=lowering)
    settings = _Settings(policy, _search(search), max_shard_bytes, calibrated, allow_mixed_fused, from_quantized)
    plan = _plan(Path(source), Path(out), settings)
    written = {job.name: sum(tensor.nbytes for tensor in job.outputs) for job in plan.jobs}
    few_bit = [job for job in plan.jobs if job.spec is not None]
    weights = sum(job.source.numel for job in few_bit)
    linears = {job.scheme for job in plan.jobs if job.kind == "linear"}
    formats = {(None, None) if scheme is None else (scheme.weights, scheme.activations) for scheme in linears}
    kernels = {backends.choose(weights, activations, "cpu").name for weights, activations in formats}
    return Prediction(
        scheme=policy.default.name,
        tensors=len(plan.jobs),
        quantized=len(few_bit),
        source_bytes=sum(job.source_bytes for job in plan.jobs),
        output_bytes=sum(written.values()),
        bits_per_weight=8 * sum(written[job.name] for job in few_bit) / weights if weights else None,
        kernels=tuple(sorted(kernels)),
        notes=plan.notes,
    )


@dataclass(frozen=True)
class _Settings:
    """What the user asked for, checked."""

    policy: Policy
    search: grid.Search | None
    max_shard_bytes: int
    calibration: calibrate.Calibration | None  # None unless a scheme needs it
    allow_mixed_fused: bool = False
    from_quantized: bool = False


@dataclass(frozen=True)
class _Plan:
    """What will be done, all of it known before a byte is written."""

    ck: Checkpoint
    model: ModelConfig
    jobs: list[Job]
    shards: tuple[PlannedShard, ...]
    config: bytes  # config.json of the output
    companions: tuple[Path, ...]  # copied as they are
    notes: tuple[str, ...]


def _plan(source: Path, out: Path, settings: _Settings) -> _Plan:
    policy = settings.policy
    require_name(out, INDEX)
    validate.check_paths(source, out)
    ck = runnable(source)
    if not settings.from_quantized:
        with in_its_words(ck.path):
            validate.check_not_quantized(ck)
    found, companions = contents(ck), tuple(ck.companions)
    twice = validate.twice_quantized(found.ck)
    if twice:
        found = beside.as_numbers(found)
        found = replace(found, ck=widened(found.ck, found.expected), notes=(*twice, *found.config.notes))
    ck, model, dropped = found.ck, found.config, (*found.left_out, *found.kv_scales)
    tensors = [info for name, info in ck.tensors.items() if name in found.expected]
    classify = classifier(model)
    validate.check_schemes(tensors, classify, policy)
    jobs = [*plan_jobs(experts.as_stored(found, tensors, policy), classify, policy, settings.search)]
    sizes = stored_bytes(ck)
    jobs = [replace(job, called=found.in_files(job.name), stored=sizes.get(job.name)) for job in jobs]
    jobs += beside.jobs(found, policy)
    shards = plan_shards([job.outputs for job in jobs], settings.max_shard_bytes)
    assigned = validate.assignments(tensors, classify, policy, HEAD if model.tie_word_embeddings else None)
    notes = [f"left out, as no model needs it: {dropped[0]}" for _ in dropped[:1]]
    if len(dropped) > 1:
        notes = [f"left out, as no model needs them: {dropped[0]} and {len(dropped) - 1} more tensors"]
    about_text = check_companions(ck.path, companions)
    notes += [f"left out, as it leads out of the folder: {path.name}" for path in ck.strays]
    mixed = validate.mixed_fused(assigned, settings.allow_mixed_fused)
    calibrated = () if settings.calibration is None else settings.calibration.notes
    quantization = beside.rendered(found, ctrender.render(assigned))
    shapes = {module_of(info.name): info.shape for info in tensors if is_weight(info)}
    told = engines.answers(assigned, _family(ck.config, model), quantization=quantization, shapes=shapes)
    notes += [
        *found.notes,
        *beside.about(found),
        *validate.refitted_widths(tensors, classify, policy),
        *calibrated,
        *mixed,
        *experts.about(model, assigned),
        *about_text,
        *map(str, told),
    ]
    return _Plan(ck, model, jobs, shards, _config(found, policy, quantization), companions, tuple(notes))


def _family(config: Mapping[str, Any], model: ModelConfig) -> str:
    """What other engines know a model as: that of a decoder, or the whole with what it sees."""
    return str(config.get("model_type", model.family)) if is_within(config) else model.family


def _config(found: Contents, policy: Policy, quantization: Mapping[str, Any]) -> bytes:
    """``config.json`` of the output: that of the source, with what changed, and tied only if the tensors are."""
    config = dict(found.ck.config)
    if config.get("tie_word_embeddings") and not found.config.tie_word_embeddings:
        config["tie_word_embeddings"] = False
    if policy.default.dtype is not None:
        config["dtype" if "dtype" in config else "torch_dtype"] = policy.default.dtype
    inner = config.get("text_config")
    if isinstance(inner, dict) and (changed := {key: config[key] for key in _BOTH if key in inner and key in config}):
        config["text_config"] = inner | changed
    if quantization:
        config["quantization_config"] = quantization
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _description(plan: _Plan, settings: _Settings) -> dict[str, Any]:
    """Everything the output's bytes depend on: an unfinished run is taken up only by the very same job."""
    layout = hashlib.sha256(b"".join(shard.header for shard in plan.shards) + plan.config)
    calibrated = settings.calibration
    on_gpu = {} if calibrated is None or calibrated.target is None else {"calibrated_by": calibrated.target}
    return {
        "isobit": __version__,
        "torch": torch.__version__,
        "source": plan.ck.fingerprint(),
        "scheme": settings.policy.default.name,
        "rules": [[rule.pattern, rule.action] for rule in settings.policy.rules],
        "search": settings.search,
        "max_shard_bytes": settings.max_shard_bytes,
        **({"from_quantized": True} if settings.from_quantized else {}),
        "calibration": None if calibrated is None else hashlib.sha256(calibrated.text.encode()).hexdigest(),
        "layout": layout.hexdigest(),
        **on_gpu,
    }


def _small_files(plan: _Plan) -> list[int]:
    """Sizes of the files beside the weights; the report has some 400 bytes for a tensor, the journal 600."""
    sizes = [size_of(path) for path in plan.companions]
    return [*sizes, len(plan.config), len(index_json(plan.shards) or b""), 400 * len(plan.jobs), 600 * len(plan.jobs)]


def _compare(plan: _Plan, output: OutputFolder, workers: int, shown: Progress) -> None:
    """Holds what an earlier run did against the output's bytes and the source's, before going on.

    Raises:
        UsageError: the source has other weights than then.
    """
    if output.damaged:
        names = ", ".join(output.damaged[:5]) + (", ..." if len(output.damaged) > 5 else "")
        shown.note(f"damaged since the last run, and done again: {len(output.damaged)} tensors ({names})")
    known: dict[str, list[int]] = (output.noted(_INPUT_SCALES) or {}).get("source", {}) | output.sources
    jobs = [job for job in plan.jobs if job.name in known]
    now = source_sums(plan.ck, jobs, workers)
    changed = next((job for job in jobs if now[job.name] != known[job.name]), None)
    if changed is not None:
        raise UsageError(
            f"{output.path} holds an unfinished run of another source: {changed.name} in {changed.source.file} has"
            " other weights than then, though the file has the same size and time. Start over (--no-resume), or name"
            " another output folder"
        )


def _with_input_scales(
    plan: _Plan, settings: _Settings, output: OutputFolder, workers: int, shown: Progress
) -> list[Job]:
    """The jobs with their static activation scales: those an earlier run measured, or measured now."""
    static = [job for job in plan.jobs if job.input_scale is not None]
    if not static:
        return plan.jobs
    noted = output.noted(_INPUT_SCALES)
    if noted is None:
        on = settings.calibration
        assert on is not None
        shown.note("calibrating activation scales")
        modules = {job.module for job in static}
        try:
            measured = calibrate.input_scales(plan.ck, modules, on.text, device=on.device, lowering=on.target)
        except IsobitError:
            output.abandon()  # nothing is written yet, and the text or the source must change first
            raise
        noted = {"scales": measured, "source": source_sums(plan.ck, plan.jobs, workers)}
        output.note({_INPUT_SCALES: noted})
    scales: InputScales = noted["scales"]
    return [job if job.input_scale is None else replace(job, input_scale=scales[job.module]) for job in plan.jobs]


def _stream(ck: Checkpoint, jobs: list[Job], output: OutputFolder, workers: int, shown: Progress) -> tuple[int, int]:
    total = sum(job.source.nbytes for job in jobs)
    shown.start(total, sum(job.source.nbytes for job in jobs if job.name in output.done))
    try:
        return stream(ck, [job for job in jobs if job.name not in output.done], output, workers, shown)
    except DamagedWeights:
        output.abandon()  # the source must change first: nothing of this could be used then
        raise
    except KeyboardInterrupt:
        output.commit()
        shown.note(f"interrupted after {len(output.done)} of {len(jobs)} tensors; run the same command again to go on")
        raise
    finally:
        shown.close()


def _finish(plan: _Plan, settings: _Settings, jobs: list[Job], output: OutputFolder, **run: Any) -> QuantizeReport:
    files = {CONFIG: plan.config}
    index = index_json(plan.shards)
    if index is not None:
        files[INDEX] = index
    copies = {path.relative_to(plan.ck.path).as_posix(): path for path in plan.companions}
    sizes = {shard.name: shard.nbytes for shard in plan.shards}
    sizes |= {name: size_of(path) for name, path in copies.items()}
    sizes |= {name: len(content) for name, content in files.items()}
    report = summarize(str(output.path), settings.policy.default.name, jobs, output.done, sizes, plan.notes, **run)
    output.finish(files | {REPORT: to_json(report, __version__)}, copies)
    return report


def _threads(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise UsageError(f"threads: {threads} given; at least 1 is needed")
    return threads or len(os.sched_getaffinity(0))


def _search(search: str | None) -> grid.Search | None:
    if search not in (None, "absmax", "mse"):
        raise UsageError(f"search: {search!r} given; it is 'absmax' or 'mse'")
    return search  # type: ignore[return-value]
