"""Plans from what a user names: a model, targets, schemes. Reads a `config.json`, and headers of weights beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from isobit.checkpoint import methods
from isobit.checkpoint.files import is_folder, is_there
from isobit.checkpoint.finite import LOOKED_AT, Look, look, of_blocks, of_numbers
from isobit.checkpoint.folder import weight_files
from isobit.checkpoint.gguf.header import is_gguf
from isobit.checkpoint.gguf.model import opened
from isobit.checkpoint.gguf.wording import in_its_words, notes_in_its_words
from isobit.checkpoint.ggufinfo import gguf_tensors
from isobit.checkpoint.hqqfile import read_qmodel
from isobit.checkpoint.jsonfile import read_json
from isobit.checkpoint.layouts.table import SCALES
from isobit.checkpoint.mlcinfo import tensors as mlc_tensors
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo, read_header
from isobit.checkpoint.sidefiles import adopted
from isobit.checkpoint.source import expanded, resolve
from isobit.errors import CheckpointError, FormatError, ModelError, SourceError, UsageError
from isobit.formats.caches import CACHE_FORMATS
from isobit.formats.caches import cache_format as cache_named
from isobit.formats.schemes import SCHEMES, Scheme
from isobit.formats.schemes import scheme as scheme_named
from isobit.formats.table import element
from isobit.kernels.cpu import library as cpu_library
from isobit.legalize.calibration import alike, calibrated, machine_key, software_key, with_bandwidth
from isobit.legalize.plan import AS_STORED, Plan, Request, plan
from isobit.legalize.workload import Workload
from isobit.models import uneven
from isobit.models.archs import is_within, model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.calibration import Calibration, load, usual_path
from isobit.models.fitting import problems
from isobit.models.names import is_beside
from isobit.models.stacks import by_expert
from isobit.models.towers import tower_of
from isobit.models.workload import counted, workload
from isobit.targets.here import here
from isobit.targets.spec import Board, Target
from isobit.targets.table import TARGETS, lookup, reference_board

LARGEST_CONFIG = 16 << 20  # bytes
DEFAULT_CONTEXT = 4096
LARGEST_BATCH = 1 << 30  # sequences
_SCALES = ("_scale", "_scale_inv", "_zero_point")  # of tensors of a tower, which is computed with as plain numbers
_UNKNOWN = (
    "what encodes media for this model takes memory, too, which is not counted: nothing here says how large it is"
)

Machine = tuple[Target, Board]


def read_config(model: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The configuration of a model: the first half of what :func:`locate` gives, which see."""
    return locate(model, revision)[0]


def locate(model: str | Path, revision: str | None = None) -> tuple[dict[str, Any], Path | None]:
    """The configuration of a model, and the folder with the files that belong to it, if there is one.

    Args:
        model: a ``config.json``, a folder that has one, ``bundled``, or a Hugging Face id, of which only configuration
            and tokenizer are downloaded.
        revision: branch, tag or commit of a Hugging Face id.

    Raises:
        SourceError: there is no such model.
        CheckpointError: the file holds no JSON object.
    """
    path = expanded(model)
    if path.suffix == ".json" and not is_there(path):
        raise SourceError(f"there is no file {path}; name a config.json, a model folder, or a Hugging Face id")
    if is_there(path) and not is_folder(path) and not is_gguf(path):
        folder = path.parent if path.name == "config.json" else None
        return adopted(read_json(path, LARGEST_CONFIG), folder), folder
    folder = resolve(model, revision=revision, weights=False)
    if not is_there(folder / "config.json"):
        raise SourceError(f"{folder} has no config.json: it is not a transformers model")
    with in_its_words(folder):
        return adopted(read_json(folder / "config.json", LARGEST_CONFIG), folder), folder


def headers(folder: Path | None) -> tuple[dict[str, TensorInfo], dict[str, str], str]:
    """A folder's tensors as their headers have them, their dtypes (nothing where only an index names them), and damage.

    The first two are empty where there are no weights, or damaged ones, of which the last then says what is wrong: a
    plan does not need them; it only must not contradict those that are there. Old ``.bin`` files are not looked into.
    """
    if folder is None:
        return {}, {}, ""
    try:
        weights = weight_files(folder)
    except (CheckpointError, OSError):
        return {}, {}, ""
    try:
        if weights.kind == "gguf":
            infos = gguf_tensors(folder)[1]
            return infos, {name: info.dtype for name, info in infos.items()}, ""
        if weights.kind == "mlc" and weights.index is not None:
            infos = mlc_tensors(weights.index)
            return infos, {name: info.dtype for name, info in infos.items()}, ""
        if weights.kind == "hqq":
            infos = read_qmodel(weights.files[0])
            return infos, {name: info.dtype for name, info in infos.items()}, ""
        if weights.kind == "safetensors":
            infos = {name: info for file in weights.files for name, info in read_header(file)[0].items()}
            return infos, {name: info.dtype for name, info in infos.items()}, ""
    except (CheckpointError, OSError) as error:
        damage = f"this is a plan of the configuration alone: the weights beside it cannot be loaded: {error}"
        return {}, dict.fromkeys(weights.weight_map or {}, ""), damage
    return {}, dict.fromkeys(weights.weight_map or {}, ""), ""


_CACHE_SCALE = re.compile(r"\.([kvq]|kv|output)_(scale|zero_point)$")


def described(config: Mapping[str, Any], folder: Path | None) -> Workload:
    """The workload of a configuration, as the weights beside it have it, where there are any.

    Args:
        config: the contents of a ``config.json``.
        folder: where the model lies; None when there is nothing but the configuration.

    Raises:
        CheckpointError: whole weights are there, and tensors of them do not fit, as on loading.
    """
    with in_its_words(folder):
        infos, dtypes, damage = headers(folder)
        work = _described(config, folder, infos, dtypes)
        found, what = _strange(folder, infos)
        own = "" if work.stored is None else uneven.in_files(infos)
    said = (*work.notes, *found.said(what), *([damage] if damage else []))
    return replace(work, notes=notes_in_its_words(folder, said), unloaded=bool(found.names or damage),
                   uneven=f"{own}: {uneven.INSTEAD}" if own else "")  # fmt: skip


def _described(
    config: Mapping[str, Any], folder: Path | None, infos: dict[str, TensorInfo], dtypes: dict[str, str]
) -> Workload:
    config = methods.with_implied({**config}, dtypes)
    within = is_within(config)
    beside = [info for name, info in infos.items() if within and is_beside(name)]
    if infos:
        infos = {name: info for name, info in infos.items() if not (within and is_beside(name))}
        infos = _by_expert(infos, config)
        dtypes = {name: info.dtype for name, info in infos.items()}
    work, names = _with_tower(_workload(config, folder, dtypes), beside, config, bool(infos)), list(dtypes)
    odd = bool(infos) and not (_plain(config, infos) if work.stored is None else _complete(config, infos))
    if folder is None or not (odd or (within and names) or _is_bin(folder) or _telling(names, work.tied)):
        return work
    from isobit.checkpoint.reader import Checkpoint
    from isobit.models.contents import require_all
    from isobit.models.contents import resolve as resolved

    try:
        found = resolved(Checkpoint.open(folder))
    except CheckpointError as error:
        if error.file == str(folder / "config.json"):
            raise
        return work  # whoever needs the weights will say what is wrong with them
    require_all(found)
    dtypes = {name: info.dtype for name, info in found.ck.tensors.items()}
    work = _workload(config, folder, dtypes, untied=not found.config.tie_word_embeddings, renamed=found.ck.stored)
    return _with_tower(
        replace(work, notes=found.notes), [found.ck.tensors[name] for name in found.beside], config, True
    )


def _strange(folder: Path | None, infos: Mapping[str, TensorInfo]) -> tuple[Look, str]:
    """NaN and infinity among the scales of weights that lie in a folder, and what was looked at."""
    if folder is not None and is_gguf(folder):
        blocks = [entry for entry in opened(folder).tensors.values() if entry.type.halves]
        return look(map(of_blocks, blocks), LOOKED_AT), "scales and the codes between them"
    scales = (info for name, info in infos.items() if name.endswith(SCALES) and info.strides is None)
    return look(map(of_numbers, scales), LOOKED_AT), "scales"


def _with_tower(work: Workload, tensors: Iterable[TensorInfo], config: Mapping[str, Any], known: bool) -> Workload:
    """The same with the tower of a model that sees or hears, where isobit opens it and its tensors are ``known``."""
    row = tower_of(config)
    if row is None or not row.file:
        return work
    size = sum(info.numel for info in tensors if not info.name.endswith(_SCALES))
    if not size:
        return work if known else replace(work, notes=(*work.notes, _UNKNOWN))
    return replace(work, tower=size, title=f"{work.title}, and a tower of {counted(size)}")


def _by_expert(infos: dict[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The same with tensors of all experts together as those of each, as loading reads them."""
    try:
        return by_expert(infos, model_config(config, infos))
    except ModelError:  # which is said when the workload is made, unless there is more to say
        return infos


def _plain(config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> bool:
    """Whether weights are just what a configuration asks for: to say what else they are needs torch."""
    expected = expected_tensors(model_config(config, infos))
    return infos.keys() == expected.keys() and all(
        infos[name].shape == shape and infos[name].dtype in PLAIN_DTYPES for name, shape in expected.items()
    )


def _complete(config: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> bool:
    """Whether headers of a quantized model are what its configuration asks for: to say what is not needs torch."""
    model = model_config(config, infos)
    return not problems(infos, model, expected_tensors(model), methods.parse(config))


def _workload(config: Mapping[str, Any], folder: Path | None, dtypes: Mapping[str, str], **beside: Any) -> Workload:
    try:
        return workload(config, folder, dtypes, **beside)
    except CheckpointError as error:
        where = None if folder is None or error.file is not None else folder / "config.json"
        raise CheckpointError(str(error), file=where) from None


def _telling(names: list[str], tied: bool) -> bool:
    """Whether tensors of these names may say more than a configuration: to look at them needs torch."""
    head = tied and any(name.partition("lm_head.")[1] for name in names)
    others = bool(names) and not any(name.startswith("model.") for name in names)
    return head or others or any(_CACHE_SCALE.search(name) for name in names)


def _is_bin(folder: Path) -> bool:
    try:
        return weight_files(folder).kind == "bin"
    except (CheckpointError, OSError):
        return False


def machines(names: Iterable[str]) -> list[Machine]:
    """The machines that names mean: targets, boards, ``all`` targets with their first board, ``here``.

    Raises:
        Unsupported: isobit knows a target and does not compile for it; says why.
        UsageError: there is no such target or board, or no name at all.
    """
    found: list[Machine] = []
    for name in names:
        if name == "all":
            found += [(row, board) for row in TARGETS.values() if (board := reference_board(row)) is not None]
        elif name == "here":
            found += here(cpu_library.wanted_threads())
        else:
            target, board = lookup(name)
            if board is None:
                raise UsageError(f"target {name} has no board with memory and bandwidth: name a board")
            found.append((target, board))
    if not found:
        raise UsageError("name at least one target: sm_86, RTX A6000, all, here")
    return list(dict.fromkeys(found))


def _on(work: Workload, row: Scheme | None, target: Target, request: Request, board: Board) -> Plan:
    return plan(work, row, target, board, request)


def schemes(names: Iterable[str]) -> list[Scheme]:
    """The schemes that names mean; ``all`` for every one.

    Raises:
        SchemeError: there is no such scheme.
    """
    found: list[Scheme] = []
    for name in names:
        found += SCHEMES.values() if name == "all" else [scheme_named(name)]
    return list({row.name: row for row in found}.values())


def cache_format(name: str | None) -> str | None:
    """The format of a key-value cache, or an element format that none has: what it would take is planned, and refused.

    Raises:
        UsageError: there is no such format, or several have these elements and differ in their scales.
    """
    if name is None:
        return None
    try:
        found = cache_named(name)
    except UsageError as error:
        try:
            alone = element(name.lower()).name
        except FormatError:
            raise error from None
        rows = [row for row in CACHE_FORMATS.values() if row.element == alone]
        if rows and all(row.group for row in rows):
            raise
        return alone
    return found.kv or None


def plans(
    model: str | Path | Mapping[str, Any],
    *,
    targets: Sequence[str] = ("here",),
    scheme_names: Sequence[str] = (),
    context: int | None = None,
    batch: int = 1,
    kv: str | None = None,
    allow_relaxed: bool = False,
    memory: int | None = None,
    revision: str | None = None,
    calibration: bool | Path = True,
) -> tuple[Workload, list[list[Plan]]]:
    """What happens to a model under every scheme on every target, without weights, GPU or torch.

    Args:
        model: see :func:`read_config`; or the contents of a ``config.json``.
        targets: names of targets and boards, ``all``, ``here``.
        scheme_names: names of schemes, ``as stored``, or ``all``; none for what the checkpoint holds if it is
            quantized, else all.
        context: tokens of a sequence; by default 4096, or the model's longest context if that is shorter.
        batch: sequences at once.
        kv: format of the cache; by default that of the activations.
        allow_relaxed: whether a rounding point may be dropped where nothing else works.
        memory: bytes of each machine that may be taken; all if None.
        revision: branch, tag or commit of a Hugging Face id.
        calibration: whether speeds on this machine go by what `isobit bench` measured there; or the file that holds it.

    Returns:
        The model, and the plans of each machine.

    Raises:
        IsobitError: something named does not exist, or the model is not one that isobit runs.
    """
    config, folder = (model, None) if isinstance(model, Mapping) else locate(model, revision)
    work = described(config, folder)
    if not 1 <= batch <= LARGEST_BATCH or (context is not None and context < 1):
        raise UsageError(f"context and batch are whole numbers above 0, batch up to {LARGEST_BATCH}")
    if context is not None and context > work.max_context:
        raise UsageError(f"a context of {context} tokens: this model's longest is {work.max_context}")
    longest = context or min(DEFAULT_CONTEXT, work.max_context)
    request = Request(longest, batch, cache_format(kv), allow_relaxed, memory)
    asked: list[Scheme | None] = [None] if AS_STORED in scheme_names else []
    asked += schemes(name for name in scheme_names if name != AS_STORED)
    if not asked:
        asked = [None] if work.stored is not None else [*SCHEMES.values()]
    path = calibration if isinstance(calibration, Path) else usual_path() if calibration else None
    held = load(path)
    return work, [_planned(work, asked, machine, request, held) for machine in machines(targets)]


def _planned(
    work: Workload,
    asked: Sequence[Scheme | None],
    machine: Machine,
    request: Request,
    held: Calibration,
) -> list[Plan]:
    """The plans for one machine; for one of those that are here, with what was measured there."""
    target, board = machine
    if not board.here or held == Calibration(held.path):
        return [plan(work, row, target, board, request) for row in asked]
    key, note = machine_key(target, board), held.about(target, board)
    known = with_bandwidth(key, software_key(target.is_gpu), board, held.found)
    predicted, measured = [], []
    for row in asked:
        again = partial(_on, work, row, target, request)
        predicted.append(again(known))
        measured.append(calibrated(predicted[-1], again, key, held.found))
    found = alike(predicted, measured)
    return [replace(one, notes=(*one.notes, note)) for one in found] if note is not None else found
