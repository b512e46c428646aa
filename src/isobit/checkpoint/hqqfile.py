"""``qmodel.pt``, the file that hqq's own ``save_quantized`` writes: a dictionary of modules, each one of its parts.

Nothing is unpickled (:mod:`isobit.checkpoint.pickles`). Tensors lie in the file as those of ``pytorch_model.bin`` do;
what else a module says (its shape, its axis, how codes are packed) becomes the small tensors that hqq's files of
safetensors have for it, so that both are read alike. No torch here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from isobit.checkpoint import legacy
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.pickles import Name, Other, Strided
from isobit.checkpoint.safetensors import TensorInfo
from isobit.errors import CheckpointError

_META = "meta"  # where early versions have what a module says
_MOST = 1 << 40  # of a whole number
_LONGEST = 64  # of a text, and of a list


def read_qmodel(path: Path) -> dict[str, TensorInfo]:
    """Its tensors by name, those among them that are made of what is said of modules.

    Raises:
        CheckpointError: the file cannot be read, claims more than it holds, or holds anything but modules of tensors
            and plain values.
    """
    said: dict[str, TensorInfo] = {}

    def tensors(value: object) -> dict[str, object]:
        """The tensors of all modules; what else they say is kept."""
        if not isinstance(value, dict):
            raise CheckpointError(f"holds a {type(value).__name__}, not a dictionary of modules", file=path)
        found: dict[str, object] = {}
        for module, parts in value.items():
            if not isinstance(module, str) or not module or not isinstance(parts, dict):
                raise CheckpointError(f"entry {short(module)} is no module with its parts", file=path)
            for part, one in _flat(parts):
                name = f"{module}.{part}"
                if name in found or name in said:
                    raise CheckpointError("is given twice", file=path, tensor=name)
                if isinstance(one, Strided | Other):
                    found[name] = one
                elif not isinstance(one, float):  # bits of 1.58, which packing says, too
                    said[name] = _small(path, name, one)
        return found

    return legacy.read_bin_header(path, take=tensors) | said


def _flat(parts: dict[object, object]) -> Iterator[tuple[str, object]]:
    """The parts of a module, those that it says in a dictionary of their own among them; what is None is left out.

    Groups of no size are whole rows, or columns: their size is then that of the shape.
    """
    inner = parts.get(_META)
    meta: dict[object, object] = inner if isinstance(inner, dict) else {}
    for name, one in (*((part, value) for part, value in parts.items() if value is not meta), *meta.items()):
        if isinstance(name, str) and one is not None:
            yield name, one
    said = {**parts, **meta}
    axis, shape = said.get("axis"), said.get("shape")
    unsized = "group_size" in said and said["group_size"] is None
    if unsized and axis in (0, 1) and isinstance(shape, tuple | list) and len(shape) == 2:
        yield "group_size", shape[1] if axis == 1 else shape[0]


def _small(path: Path, name: str, value: object) -> TensorInfo:
    """What is no tensor, as one: truth and whole numbers, lists of them, texts."""
    if isinstance(value, Name | str):
        data, shape, dtype = str(value).encode(errors="replace"), None, "U8"
    else:
        numbers = list(value) if isinstance(value, tuple | list) else [value]
        if len(numbers) > _LONGEST or not all(isinstance(one, int) and abs(one) < _MOST for one in numbers):
            why = f"is {short(value)}: isobit reads whole numbers, texts and tensors there"
            raise CheckpointError(why, file=path, tensor=name)
        data, shape, dtype = struct.pack(f"<{len(numbers)}q", *numbers), len(numbers), "I64"
    if len(data) > 8 * _LONGEST or not data:
        raise CheckpointError(f"is {short(value)}, which is too long, or empty", file=path, tensor=name)
    return TensorInfo(name, dtype, (len(data) if shape is None else shape,), path, 0, len(data), data=data)
