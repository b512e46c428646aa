"""What is in a checkpoint: read from its headers, its configuration and its scales, without loading a weight.

What a module holds is decided from the names, dtypes and shapes of its tensors, as when it is loaded; the quantization
config is asked only for what the tensors can't say: how activations are rounded. Checkpoints of other tools and of
architectures that isobit cannot run are described all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobit.checkpoint import methods, sections
from isobit.checkpoint.jsonfile import bare
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.reader import Checkpoint
from isobit.checkpoint.safetensors import TensorInfo
from isobit.errors import CheckpointError, IsobitError, ModelError, printable
from isobit.evaluation import certificate, wording
from isobit.evaluation.modules import Module, find_modules
from isobit.evaluation.scales import not_numbers, odd_scales
from isobit.models.archs import is_unseen
from isobit.models.contents import require_all, resolve
from isobit.models.workload import workload


@dataclass(frozen=True)
class SchemeUse:
    """The modules of one kind that share a scheme.

    Attributes:
        kind: ``linear``, ``lm_head``, ``embedding``, ``tower`` (what stands beside a decoder) or ``other`` (norms,
            biases, vectors).
        scheme: the scheme's name, or the dtype's where nothing is quantized.
        modules: how many.
        weights: the numbers they hold; scales don't count.
        nbytes: bytes they take, scales and zero points included.
    """

    kind: str
    scheme: str
    modules: int
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / max(1, self.weights)


@dataclass(frozen=True)
class DtypeUse:
    """The tensors of one dtype, in safetensors' spelling."""

    dtype: str
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class TensorRow:
    """One tensor as it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str


@dataclass(frozen=True)
class CheckpointInfo:
    """What is in a checkpoint.

    Attributes:
        path: its folder.
        architecture: the name its configuration gives.
        quantization: the method its configuration names, or None.
        parameters: the numbers the model consists of; scales don't count, tied weights count once.
        active_parameters: of a mixture of experts that isobit runs, how many of them a token needs; else None.
        files: how many weight files.
        file_bytes: their size.
        linear_bits_per_weight: stored bits per weight of the linear layers (not lm_head), scales included, if any.
        file_bits_per_parameter: bits of all weight files per parameter.
        schemes: what the modules hold, largest first.
        dtypes: what the tensors are stored as, largest first.
        certificate: its rows, a sentence each.
        notes: what could not be understood, and what people should know who use it.
        tensors: every tensor, in the order of the files.
    """

    path: str
    architecture: str
    quantization: str | None
    parameters: int
    files: int
    file_bytes: int
    linear_bits_per_weight: float | None
    file_bits_per_parameter: float
    schemes: tuple[SchemeUse, ...]
    dtypes: tuple[DtypeUse, ...]
    notes: tuple[str, ...]
    tensors: tuple[TensorRow, ...] = field(repr=False)
    certificate: tuple[str, ...] = ()
    active_parameters: int | None = None


def describe(path: Path | str) -> CheckpointInfo:
    """Describe a checkpoint folder.

    Raises:
        CheckpointError: it isn't one, or its headers are damaged; names file and tensor.
    """
    return describe_checkpoint(Checkpoint.open(path))


def describe_checkpoint(checkpoint: Checkpoint) -> CheckpointInfo:
    """Describe an opened checkpoint."""
    named, unneeded, beside, notes = _as_a_model(checkpoint)
    try:
        quantization = named.quantization
    except IsobitError:  # a note says so
        quantization = _as_configured(checkpoint)
    modules = find_modules(named, quantization, beside)
    file_bytes = sum(file.stat().st_size for file in checkpoint.files)
    parameters = sum(module.weights for module in modules) - sum(named.tensors[name].numel for name in unneeded)
    linears = [module for module in modules if module.kind == "linear"]
    certified, doubts = certificate.said(checkpoint.path)
    return CheckpointInfo(
        path=str(checkpoint.path),
        architecture=_architecture(checkpoint.config),
        quantization=_method(checkpoint),
        parameters=parameters,
        files=len(checkpoint.files),
        file_bytes=file_bytes,
        linear_bits_per_weight=_bits_per_weight(linears),
        file_bits_per_parameter=8 * file_bytes / max(1, parameters),
        schemes=_schemes(modules),
        dtypes=_dtypes(checkpoint.tensors.values()),
        notes=(*notes, *odd_scales(checkpoint), *not_numbers(checkpoint, unneeded), *doubts),
        tensors=tuple(
            TensorRow(info.name, info.dtype, tuple(info.shape), info.nbytes, info.file.name)
            for info in checkpoint.tensors.values()
        ),
        certificate=certified,
        active_parameters=_active(checkpoint),
    )


def _active(checkpoint: Checkpoint) -> int | None:
    """How many numbers of a mixture a token needs; None where all of them are needed, or it cannot be told."""
    try:
        found = workload(checkpoint.config, checkpoint.path, {one: at.dtype for one, at in checkpoint.tensors.items()})
    except IsobitError:
        return None
    return found.active_parameters if found.active_parameters != found.parameters else None


def _as_a_model(checkpoint: Checkpoint) -> tuple[Checkpoint, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The checkpoint under a model's own names, tensors that no model needs, those beside a decoder, and what to say.

    What isobit cannot run is described all the same, under the names that it has.
    """
    try:
        found = resolve(checkpoint)
    except ModelError as error:  # nothing is wrong with it; without sizes config.json describes no model at all
        told = "hidden_size" in checkpoint.config or is_unseen(checkpoint.config)
        why = (f"isobit does not run this: {error}",) if told else ()
        return checkpoint, (), (), (*_notes(checkpoint), *why)
    except IsobitError as error:
        return checkpoint, (), (), (str(error),)
    unneeded = (*found.left_out, *found.kv_scales)
    try:
        require_all(found)
    except CheckpointError as error:
        return found.ck, unneeded, found.beside, (*found.notes, f"isobit does not load this: {error}")
    return found.ck, unneeded, found.beside, found.notes


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    try:
        return checkpoint.notes
    except IsobitError as error:
        return (str(error),)


def _as_configured(checkpoint: Checkpoint) -> Quantization | None:
    """What the configuration says of a checkpoint whose tensors contradict it: the rest can be described."""
    try:
        return methods.parse(checkpoint.config)
    except IsobitError:
        return None


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return str(names[0])
    return str(config.get("model_type", "unknown"))


def _method(checkpoint: Checkpoint) -> str | None:
    """The method and, where there is one, the storage format: ``compressed-tensors (pack-quantized)``; or None."""
    try:
        finding = methods.unread(checkpoint.config, checkpoint.path, checkpoint.tensors)
        found = sections.section(checkpoint.config)
    except CheckpointError:
        return "malformed"
    if finding is not None:
        return finding.title
    if found is None:
        return None
    layout = found[1].get("format")
    return f"{sections.method_name(*found)}{f' ({bare(layout)})' if isinstance(layout, str) else ''}"


def _bits_per_weight(modules: list[Module]) -> float | None:
    weights = sum(module.weights for module in modules)
    return 8 * sum(module.nbytes for module in modules) / weights if weights else None


def _schemes(modules: list[Module]) -> tuple[SchemeUse, ...]:
    groups: dict[tuple[str, str], list[Module]] = defaultdict(list)
    for module in modules:
        groups[module.kind, module.scheme].append(module)
    uses = [
        SchemeUse(kind, scheme, len(members), sum(m.weights for m in members), sum(m.nbytes for m in members))
        for (kind, scheme), members in groups.items()
    ]
    return tuple(sorted(uses, key=lambda use: -use.nbytes))


def _dtypes(tensors: Iterable[TensorInfo]) -> tuple[DtypeUse, ...]:
    groups: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in tensors:
        groups[info.dtype].append(info)
    uses = [DtypeUse(dtype, len(members), sum(m.nbytes for m in members)) for dtype, members in groups.items()]
    return tuple(sorted(uses, key=lambda use: -use.nbytes))


# ---------------------------------------------------------------------- as text


def text(info: CheckpointInfo, tensors: bool = False) -> str:
    """The description for a terminal.

    Args:
        info: the description.
        tensors: whether to list every tensor.
    """
    bits = (
        "no linear layers"
        if info.linear_bits_per_weight is None
        else f"{info.linear_bits_per_weight:.2f} in linear layers"
    )
    needed = info.active_parameters
    active = "" if needed is None else f", {wording.count(needed)} of them for a token"
    facts = [
        ("checkpoint", info.path),
        ("architecture", info.architecture),
        ("quantization", info.quantization or "none"),
        ("parameters", f"{wording.count(info.parameters)} ({info.parameters:,}){active}"),
        ("size", f"{wording.size(info.file_bytes)} in {info.files} file{'s' if info.files != 1 else ''}"),
        ("bits per weight", f"{bits}, {info.file_bits_per_parameter:.2f} over the whole files"),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {printable(value)}" for name, value in facts]
    lines += [f"{'certificate':<{width}}  {printable(row)}" for row in info.certificate]
    lines += [f"{'note':<{width}}  {printable(note)}" for note in info.notes]
    cells = [
        [
            use.kind,
            use.scheme,
            str(use.modules),
            wording.count(use.weights),
            wording.size(use.nbytes),
            f"{use.bits_per_weight:.2f}",
        ]
        for use in info.schemes
    ]
    lines += ["", wording.table(_SCHEME_COLUMNS, cells)]
    lines += [
        "",
        wording.table(_DTYPE_COLUMNS, [[use.dtype, str(use.tensors), wording.size(use.nbytes)] for use in info.dtypes]),
    ]
    if tensors:
        rows = [
            [row.name, row.dtype, "x".join(map(str, row.shape)) or "scalar", wording.size(row.nbytes), row.file]
            for row in info.tensors
        ]
        lines += ["", wording.table(_TENSOR_COLUMNS, rows)]
    return "\n".join(lines)


_SCHEME_COLUMNS = (
    wording.Column("kind", number=False),
    wording.Column("scheme", number=False),
    wording.Column("modules"),
    wording.Column("weights"),
    wording.Column("size"),
    wording.Column("bits/weight"),
)
_DTYPE_COLUMNS = (wording.Column("stored as", number=False), wording.Column("tensors"), wording.Column("size"))
_TENSOR_COLUMNS = (
    wording.Column("tensor", number=False),
    wording.Column("stored as", number=False),
    wording.Column("shape"),
    wording.Column("size"),
    wording.Column("file", number=False),
)
