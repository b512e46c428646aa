"""``tensor-cache.json`` (older: ``ndarray-cache.json``) and what it lists: where each tensor lies in a shard.

Every number is held against the shard before anything is read: sizes, offsets, types and what shapes take. Matrices
that MLC joins (queries, keys and values; gate and up) are listed as the parts that a model has. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from isobit.checkpoint import views
from isobit.checkpoint.files import is_there
from isobit.checkpoint.jsonfile import read_json, short
from isobit.checkpoint.mlc.config import FAMILIES, Said, said
from isobit.checkpoint.safetensors import DTYPES, LARGEST_TENSOR, TensorInfo
from isobit.errors import CheckpointError

CACHES = ("tensor-cache.json", "ndarray-cache.json")
# What a record's dtype says -> as safetensors has it; words of codes are taken as signed ones.
_DTYPES = {
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "uint32": "I32", "int32": "I32", "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3", "e4m3_float8": "F8_E4M3", "float8_e5m2": "F8_E5M2", "e5m2_float8": "F8_E5M2",
}  # fmt: skip
_NARROWED = "f32-to-bf16"  # of a record's format: numbers of float32 are stored as bfloat16
_MOST_AXES = 4
_AWQ = {"qweight": 8, "qzeros": 8, "scales": 1}  # of AutoAWQ's tensors: outputs in a word, by which matrices are joined
CODES, SCALE, INPUT = "q_weight", "q_scale", "q_calibration_scale"


def cache_of(folder: Path) -> Path | None:
    """The cache file of a folder, if there is one."""
    return next((folder / name for name in CACHES if is_there(folder / name)), None)


def shards(cache: Path) -> tuple[Path, ...]:
    """The files that a cache file names, each a plain name in its folder.

    Raises:
        CheckpointError: it names something else, or nothing.
    """
    return tuple(file for file, _ in _records(cache))


def tensors(cache: Path) -> dict[str, TensorInfo]:
    """The tensors of a folder by a model's own names, in the order of their data.

    Raises:
        CheckpointError: the cache file is damaged or contradicts a shard; names file and tensor.
        Unsupported: isobit does not read the family, or the way its weights are stored.
    """
    found: dict[str, TensorInfo] = {}
    model = said(cache.parent)
    for file, record in _records(cache):
        for info in _of_shard(cache, file, record):
            for part in _placed(info, model):
                if part.name in found:
                    raise CheckpointError("is given twice", file=cache, tensor=part.name)
                found[part.name] = part
    return found


# ---------------------------------------------------------------------- what the file says


def _records(cache: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    listed = read_json(cache).get("records")
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise CheckpointError("holds no records of shards", file=cache)
    seen: set[str] = set()
    for record in listed:
        name = record.get("dataPath")
        plain = isinstance(name, str) and name not in ("", ".", "..") and PurePosixPath(name).name == name
        if not plain or "\0" in name or "\\" in name or name in seen:
            message = f"names the shard {short(name)}, which is not the plain name of a file, given once"
            raise CheckpointError(message, file=cache)
        if record.get("format") != "raw-shard":
            raise CheckpointError(
                f"says that {short(name)} is {short(record.get('format'))}, not raw-shard", file=cache
            )
        seen.add(name)
        yield cache.parent / name, record


def _of_shard(cache: Path, file: Path, record: Mapping[str, Any]) -> list[TensorInfo]:
    """The tensors of a shard, none of them over another."""
    try:
        size = file.stat().st_size
    except (OSError, ValueError):
        raise CheckpointError(f"names {file.name}, which is missing: download it again", file=cache) from None
    listed = record.get("records")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise CheckpointError(f"holds no records of the tensors of {file.name}", file=cache)
    if record.get("nbytes") != size:
        message = f"has {size} bytes, {cache.name} says {short(record.get('nbytes'))}: download it again"
        raise CheckpointError(message, file=file)
    found = sorted((_tensor(cache, file, one, size) for one in listed), key=lambda info: (info.begin, info.end))
    for one, two in zip(found, found[1:], strict=False):
        if two.begin < one.end:
            raise CheckpointError(f"lies over {short(one.name)} in {file.name}", file=cache, tensor=two.name)
    return found


def _tensor(cache: Path, file: Path, record: Mapping[str, Any], size: int) -> TensorInfo:
    name, shape, dtype = record.get("name"), record.get("shape"), record.get("dtype")
    if not isinstance(name, str) or not 0 < len(name) <= 1024:
        raise CheckpointError(f"holds a tensor with the name {short(name)}", file=cache)

    def fail(why: str) -> CheckpointError:
        return CheckpointError(why, file=cache, tensor=name)

    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(_whole(one) and one > 0 for one in shape):
        raise fail(f"has the shape {short(shape)}")
    if math.prod(shape) > LARGEST_TENSOR:
        raise fail(f"has the shape {short(shape)}, more than any file holds")
    if not isinstance(dtype, str) or dtype not in _DTYPES or record.get("format") not in ("raw", _NARROWED):
        raise fail(f"is {short(dtype)} in the format {short(record.get('format'))}; isobit reads {', '.join(_DTYPES)}")
    stored = "BF16" if dtype == "float32" and record["format"] == _NARROWED else _DTYPES[dtype]
    begin, nbytes = record.get("byteOffset"), record.get("nbytes")
    wanted = math.prod(shape) * DTYPES[stored][0] // 8
    if nbytes != wanted:
        raise fail(f"has {short(nbytes)} bytes; {stored} {short(shape)} takes {wanted}")
    if not isinstance(begin, int) or not _whole(begin) or begin < 0 or begin + wanted > size:
        raise fail(f"lies at byte {short(begin)} of {file.name}, which has {size} bytes; it takes {wanted}")
    return TensorInfo(name, stored, tuple(shape), file, begin, begin + wanted)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---------------------------------------------------------------------- as a model has it


def _placed(info: TensorInfo, model: Said) -> Iterator[TensorInfo]:
    """A tensor, or the parts that it is for a model."""
    module, _, part = info.name.rpartition(".")
    if model.kind.turned and part in (CODES, SCALE) and len(info.shape) == 2 and not module.endswith("embed_tokens"):
        info = views.transposed(info)
    parent, _, last = module.rpartition(".")
    queries, keys, inner = model.rows
    joined = {
        FAMILIES[model.family][1]: (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)),
        "gate_up_proj": (("gate_proj", inner), ("up_proj", inner)),
    }.get(last)
    if joined is None:
        yield info
        return
    whole = info.numel == 1  # one scale of all
    if model.kind.awq and part in _AWQ:
        yield from _columns(info, parent, part, joined)
        return
    if not whole and info.shape[:1] != (sum(rows for _, rows in joined),):
        message = f"has shape {short([*info.shape])}; {' and '.join(name for name, _ in joined)} have"
        raise CheckpointError(f"{message} {sum(rows for _, rows in joined)} rows", file=info.file, tensor=info.name)
    begin = 0
    for name, rows in joined:
        cut = info if whole else views.narrowed(info, 0, begin, rows)
        yield replace(cut, name=f"{parent}.{name}.{part}")
        begin += rows


def _columns(info: TensorInfo, parent: str, part: str, joined: tuple[tuple[str, int], ...]) -> Iterator[TensorInfo]:
    """The same of tensors of AutoAWQ's, whose last axis is that of outputs."""
    each, outputs = _AWQ[part], sum(rows for _, rows in joined)
    if len(info.shape) != 2 or info.shape[1] * each != outputs or any(rows % each for _, rows in joined):
        message = f"has shape {short([*info.shape])}; {' and '.join(name for name, _ in joined)} have {outputs} outputs"
        raise CheckpointError(message, file=info.file, tensor=info.name)
    begin = 0
    for name, rows in joined:
        yield replace(views.narrowed(info, 1, begin, rows // each), name=f"{parent}.{name}.{part}")
        begin += rows // each
