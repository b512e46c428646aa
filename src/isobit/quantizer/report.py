"""What a quantization run did: returned to the caller, and written beside the weights as ``isobit_report.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from isobit.quantizer.jobs import Job


@dataclass(frozen=True)
class ModuleRecord:
    """What became of one source tensor.

    Attributes:
        name: module name for weights, tensor name for everything else.
        kind: ``linear``, ``absorbed``, ``lm_head``, ``embedding``, ``router``, ``norm`` or ``other``.
        scheme: name of the scheme, or ``keep``.
        shape: shape of the source tensor; [N, K] for weights.
        source_bytes: its size in the source.
        bytes: its size in the output, scales and zero points included.
        relative_squared_error: sum of squared differences over sum of squared weights, 0 where all weights are 0; None
            if not quantized.
    """

    name: str
    kind: str
    scheme: str
    shape: tuple[int, ...]
    source_bytes: int
    bytes: int
    relative_squared_error: float | None = None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise ratio in decibels; None where nothing was quantized, or exactly."""
        error = self.relative_squared_error
        return None if not error else -10 * math.log10(error)

    @property
    def quantized(self) -> bool:
        """Whether it holds few-bit codes now."""
        return self.relative_squared_error is not None


@dataclass(frozen=True)
class QuantizeReport:
    """What a run did.

    Attributes:
        out: the output folder.
        scheme: name of the default scheme.
        modules: a record for each source tensor, in the order of the source.
        files: file name -> bytes, for every file of the output but the report itself.
        source_bytes: bytes of all source tensors that were used.
        output_bytes: bytes of all output tensors.
        bits_per_weight: stored bits per quantized weight, scales included; None if nothing is quantized.
        relative_squared_error: over all quantized weights; None if nothing is quantized.
        notes: what a person should know: dropped tensors, what other engines will refuse.
        seconds: time this run took.
        bytes_read: bytes of tensors that this run read.
        bytes_written: bytes of tensors that this run wrote.
        resumed_from: how many of ``modules`` an interrupted run had already done; 0 for a fresh run.
    """

    out: str
    scheme: str
    modules: tuple[ModuleRecord, ...] = field(repr=False)
    files: dict[str, int] = field(repr=False)
    source_bytes: int
    output_bytes: int
    bits_per_weight: float | None
    relative_squared_error: float | None
    notes: tuple[str, ...]
    seconds: float
    bytes_read: int
    bytes_written: int
    resumed_from: int


# Fields about one run rather than about the result: they stay out of the file, which is the same however often
# the work was interrupted.
_OF_THE_RUN = ("out", "seconds", "bytes_read", "bytes_written", "resumed_from")


def record(job: Job, signal: float, noise: float) -> dict[str, Any]:
    """The journal's record of a finished job."""
    scheme = "keep" if job.scheme is None else job.scheme.name
    entry: dict[str, Any] = {
        "name": job.module if job.name.endswith(".weight") else job.name,
        "kind": job.kind,
        "scheme": scheme,
        "shape": list(job.source.shape),
        "source_bytes": job.source_bytes,
        "bytes": sum(tensor.nbytes for tensor in job.outputs),
        "signal": signal,
        "noise": noise,
    }
    return entry


def summarize(
    out: str,
    scheme: str,
    jobs: list[Job],
    records: dict[str, dict[str, Any]],
    files: dict[str, int],
    notes: tuple[str, ...],
    **run: Any,
) -> QuantizeReport:
    """The report over all jobs.

    Args:
        out: the output folder.
        scheme: name of the default scheme.
        jobs: the plan.
        records: job name -> journal record.
        files: file name -> bytes.
        notes: what a person should know.
        run: ``seconds``, ``bytes_read``, ``bytes_written`` and ``resumed_from``.
    """
    quantized = [job for job in jobs if job.spec is not None]
    done = [records[job.name] for job in quantized]
    weights = sum(job.source.numel for job in quantized)
    stored = sum(entry["bytes"] for entry in done)
    signal, noise = (math.fsum(entry[key] for entry in done) for key in ("signal", "noise"))
    return QuantizeReport(
        out=out,
        scheme=scheme,
        modules=tuple(_module(job, records[job.name]) for job in jobs),
        files=files,
        source_bytes=sum(job.source_bytes for job in jobs),
        output_bytes=sum(tensor.nbytes for job in jobs for tensor in job.outputs),
        bits_per_weight=_rounded(8 * stored / weights) if weights else None,
        relative_squared_error=_ratio(noise, signal) if quantized else None,
        notes=notes,
        **run,
    )


def _module(job: Job, entry: dict[str, Any]) -> ModuleRecord:
    fields = {key: value for key, value in entry.items() if key not in ("signal", "noise", "shape")}
    error = _ratio(entry["noise"], entry["signal"]) if job.spec is not None else None
    return ModuleRecord(**fields, shape=tuple(entry["shape"]), relative_squared_error=error)


def _ratio(noise: float, signal: float) -> float:
    return _rounded(noise / signal) if signal > 0 else 0.0


def _rounded(value: float) -> float:
    """Six digits: the order in which another machine adds does not show."""
    return float(f"{value:.6g}")


def to_json(report: QuantizeReport, version: str) -> bytes:
    """The content of ``isobit_report.json``: the same bytes for the same job, whenever and in however many runs."""
    fields = {key: value for key, value in asdict(report).items() if key not in _OF_THE_RUN}
    return (json.dumps({"isobit": version, **fields}, indent=1) + "\n").encode()


def from_json(content: bytes, out: str, seconds: float) -> QuantizeReport:
    """The report in an ``isobit_report.json``, for a run that found everything done."""
    fields = json.loads(content)
    modules = tuple(ModuleRecord(**{**entry, "shape": tuple(entry["shape"])}) for entry in fields.pop("modules"))
    notes = tuple(fields.pop("notes"))
    del fields["isobit"]
    fields |= {"out": out, "seconds": seconds, "bytes_read": 0, "bytes_written": 0, "resumed_from": len(modules)}
    return QuantizeReport(modules=modules, notes=notes, **fields)
