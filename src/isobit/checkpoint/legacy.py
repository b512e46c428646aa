"""Old ``pytorch_model*.bin`` files, through ``torch.load(weights_only=True)``: tensors, never other objects.

Files in torch's zip format (since 1.6) are memory mapped for each read and released after it, so that the resident
memory stays that of one tensor. Older ones can only be loaded as a whole; the one last used is kept.
"""

from __future__ import annotations

import pickle
import struct
import threading
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from isobit.checkpoint.safetensors import TensorInfo, dtype_name
from isobit.errors import CheckpointError

# What torch.load raises for damaged files, besides UnpicklingError.
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zipfile.BadZipFile,
)

_whole_file_lock = threading.Lock()
_whole_file: tuple[Path, tuple[int, int], dict[str, Tensor]] | None = None  # (path, (size, mtime), tensors)


def read_bin_header(path: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of a ``.bin`` file; ``begin`` is 0 and ``end`` the size: offsets are torch's affair.

    Raises:
        CheckpointError: the file cannot be read, or holds anything but a dictionary of dense tensors.
    """
    infos = {}
    for name, tensor in _tensors(path).items():
        dtype = dtype_name(tensor.dtype)
        if dtype is None:
            raise CheckpointError(f"dtype {tensor.dtype} cannot be read by isobit", file=path, tensor=name)
        infos[name] = TensorInfo(name, dtype, tuple(tensor.shape), path, 0, tensor.numel() * tensor.element_size())
    return infos


def read_bin_tensor(path: Path, name: str, rows: slice | None = None) -> Tensor:
    """Reads one tensor (or some of its rows) into memory of its own.

    Raises:
        CheckpointError: as for :func:`read_bin_header`, or there is no such tensor.
    """
    tensors = _tensors(path)
    if name not in tensors:
        raise CheckpointError("is no longer in the file", file=path, tensor=name)
    tensor = tensors[name] if rows is None else tensors[name][rows]
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        if zipfile.is_zipfile(path):
            return _checked(torch.load(path, map_location="cpu", weights_only=True, mmap=True), path)
        return _load_whole(path)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "it cannot be unpickled"
        raise CheckpointError(
            f"refused: {reason[:200]} A .bin file may hold tensors only, because anything else could run code."
            " Use a safetensors version of the model",
            file=path,
        ) from None
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot be read as a torch file: {reason[:200]}", file=path) from None


def _load_whole(path: Path) -> dict[str, Tensor]:
    global _whole_file
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns)
    with _whole_file_lock:
        if _whole_file is None or _whole_file[:2] != (path, stamp):
            _whole_file = None  # free the last file before the next one is loaded
            _whole_file = (path, stamp, _checked(torch.load(path, map_location="cpu", weights_only=True), path))
        return _whole_file[2]


def _checked(value: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise CheckpointError(f"holds a {type(value).__name__}, not a dictionary of tensors", file=path)
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"entry {str(name)[:80]!r} is a {kind}, not a named tensor", file=path)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError("is not a plain dense tensor", file=path, tensor=name)
    return dict(value)
