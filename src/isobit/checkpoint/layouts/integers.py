"""Integers with zero points, several in a word, as GPTQ and AWQ have them: from their codes to a weight of isobit's.

The files of these layouts find codes, scales and zero points; what is done with them is here. Their order along K may
be that of the groups (act-order): then columns are put side by side that share a scale, and inputs must follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.quantization import Group, Integers
from isobit.errors import CheckpointError, SchemeError

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

Zeros = Literal["itself", "one less", "one less, by words"]
_LARGEST_GROUP = 2**31 - 1


def group_of(targets: tuple[str, ...], how: Integers) -> Group:
    """A config group of weights that are packed so.

    Raises:
        CheckpointError: there are no such groups.
    """
    try:
        spec = how.spec
    except SchemeError as error:
        raise CheckpointError(f"quantization_config: {error}") from None
    return Group(targets, spec, None, integers=how, widened="" if spec else str(how))


def whole_number(section: Mapping[str, Any], keys: tuple[str, ...], default: int | None = None) -> int:
    """A whole number of a section, under one of some keys.

    Raises:
        CheckpointError: it is none, or missing without a default.
    """
    for key in keys:
        found = section.get(key)
        if found is None:
            continue
        if isinstance(found, bool) or not isinstance(found, int):
            raise CheckpointError(f"quantization_config: {key} must be a whole number, not {short(found)}")
        return found
    if default is None:
        raise CheckpointError(f"quantization_config of {short(section.get('quant_method'))} has no {keys[0]}")
    return default


def yes_or_no(section: Mapping[str, Any], key: str, default: bool) -> bool:
    """A truth value of a section.

    Raises:
        CheckpointError: it is none.
    """
    found = section.get(key)
    if found is not None and not isinstance(found, bool):
        raise CheckpointError(f"quantization_config: {key} must be true or false, not {short(found)}")
    return default if found is None else found


def integers(
    bits: int, group: int, symmetric: bool, zeros: Zeros, known: tuple[int, ...], *, ordered: bool = False
) -> Integers:
    """What a section's numbers mean, checked.

    Raises:
        CheckpointError: there are no such integers.
    """
    if bits not in known:
        listed = ", ".join(map(str, known))
        raise CheckpointError(f"quantization_config: codes of {short(bits)} bits; isobit reads {listed} in this layout")
    if group != -1 and not 0 < group <= _LARGEST_GROUP:
        raise CheckpointError(f"quantization_config: a group of {short(group)} weights; it is above 0, or -1 for a row")
    return Integers(bits, None if group == -1 else group, symmetric, zeros, ordered and group != -1)


def describe(parts: Parts, n: int, k: int) -> Described:
    """What a weight ``[n, k]`` holds; ``k`` is -1 where nothing shows it."""
    group = parts.group
    if group is None or k < 1:
        return Described((n, k), max(0, n * k), label="integers in words")
    try:
        spec, activations = group.stored(k)
    except SchemeError:  # a width that groups do not fit: whoever reads it will say so
        spec, activations = None, None
    bits = "" if group.integers is None else str(group.integers)
    return Described((n, k), n * k, spec, activations, label=group.widened or bits)


@dataclass(frozen=True)
class Found:
    """The parts of a weight ``[N, K]`` as they were found, all of K.

    Attributes:
        words: codes as dense little-endian streams along K, int32 ``[N, words]``.
        scale: float ``[N, G]``.
        zero: zero points, int16 ``[N, G]``.
        index: the group of each column, int64 ``[K]``; None where groups are runs of columns.
    """

    words: Tensor
    scale: Tensor
    zero: Tensor
    index: Tensor | None = None


def weight_of(reader: Reader, part: str, how: Integers, n: int, k: int, found: Found) -> LinearWeight:
    """The weight in isobit's format, or widened where there is none; rows were cut already, columns are cut here.

    Args:
        part: holds the codes, and is blamed.
        how: what the config says.
        n, k: sizes of the whole weight.
        found: its parts, for the rows that are read.

    Raises:
        CheckpointError: zero points contradict the config, groups cannot be told apart, or a cut divides one.
    """
    import torch

    order, runs = _order(reader, how, k, found)
    middle = 1 << (how.bits - 1)
    if how.symmetric and bool((found.zero != middle).any()):
        message = f"holds zero points other than {middle}, but quantization_config says that codes are symmetric (sym)"
        raise reader.error("qzeros", message)
    scale, zero = found.scale[:, runs], found.zero[:, runs]
    fits = how.symmetric or bool((zero <= 15).all())  # one less than nothing, read field by field, is one too many
    spec = how.spec
    if spec is None or not fits:
        return _widened(reader, how, n, k, found, scale, zero, order)
    spec = spec if spec.group is None else replace(spec, group=k // scale.shape[1])
    where = reader.cut(part, spec, n, k)
    if order is not None and (where.columns.start, where.columns.stop) != (0, k):
        raise reader.error(part, "its columns are in the order of their groups (act-order): they cannot be cut")
    words = _reordered(found.words, how, k, order) if order is not None else found.words
    codes = _codes(words, how, k)[:, where.words].contiguous()
    columns = where.scales[1] if where.scales else slice(None)
    zeros = None if spec.symmetric else zero[:, columns].to(torch.uint8).contiguous()
    weight = reader.qtensor(part, spec, where, codes, scale[:, columns].contiguous(), zeros)
    return reader.linear(weight, None, None, n, order)


def _order(reader: Reader, how: Integers, k: int, found: Found) -> tuple[Tensor | None, Tensor]:
    """The order of columns that puts groups together (None: they are), and the group of each run of columns then.

    Runs are as long as the largest number that divides every group.
    """
    import torch

    groups = found.scale.shape[1]
    size = how.group or k
    index, order = found.index, None
    if index is None:
        index = torch.arange(k) // size
    elif not bool((index[1:] >= index[:-1]).all()):
        order = index.argsort(stable=True)
        index = index[order]
    counts = index.bincount(minlength=groups)
    run = math.gcd(*(int(count) for count in counts))
    if groups > 1 and run % 8:
        message = f"has groups of {short([int(count) for count in counts[:8]])} columns; isobit reads multiples of 8"
        raise reader.error("g_idx", message)
    return order, index[::run] if groups > 1 else torch.zeros(1, dtype=torch.int64)


def _reordered(words: Tensor, how: Integers, k: int, order: Tensor) -> Tensor:
    """Words of the columns in another order."""
    import torch

    from isobit.formats import pack

    name = f"int{how.bits}"
    made = torch.empty_like(words)
    step = max(1, (1 << 22) // k)
    for begin in range(0, len(words), step):
        rows = slice(begin, begin + step)
        made[rows] = pack.pack(pack.unpack(words[rows], name, k)[:, order].contiguous(), name)
    return made


def _codes(words: Tensor, how: Integers, k: int) -> Tensor:
    """Codes as a QTensor has them: the words as they are, but for formats that are stored wider."""
    from isobit.formats import pack

    if how.bits == 8:
        return pack.unpack(words, "int8", k)
    if how.symmetric or how.bits == 4:
        return words
    return pack.pack(unsigned(words, how.bits, k), "uint4")


def unsigned(words: Tensor, bits: int, k: int) -> Tensor:
    """Codes of dense words as they are stored, uint8 ``[..., k]``."""
    import torch

    from isobit.formats import pack

    codes = pack.unpack(words.contiguous(), f"int{bits}", k)
    return (codes.view(torch.uint8) + (1 << (bits - 1))) & ((1 << bits) - 1)


def _widened(
    reader: Reader, how: Integers, n: int, k: int, found: Found, scale: Tensor, zero: Tensor, order: Tensor | None
) -> LinearWeight:
    """``(code - zero) * scale``, rounded once to the dtype of the scales, columns in the order of the inputs."""
    import torch

    run = k // scale.shape[1]
    _, columns = reader.span(n, k)
    made = torch.empty((len(found.words), k), dtype=scale.dtype)
    step = max(1, (1 << 22) // k)
    for begin in range(0, len(made), step):
        rows = slice(begin, begin + step)
        codes = unsigned(found.words[rows], how.bits, k).to(torch.int16)
        codes = codes if order is None else codes[:, order]
        values = codes.float().view(len(codes), -1, run) - zero[rows].float().unsqueeze(-1)
        values = (values * scale[rows].float().unsqueeze(-1)).flatten(1).to(scale.dtype)
        if order is None:
            made[rows] = values
        else:
            made[rows].index_copy_(1, order, values)
    return reader.linear(made[:, columns].contiguous(), None, None, n, complete=True)


def stored_zeros(words: Tensor, how: Integers, count: int) -> Tensor:
    """Zero points packed along the last axis, int16 ``[..., count]``, what is stored one less made whole."""
    import torch

    if how.zeros == "one less, by words" and how.bits != 3:
        ones = sum(1 << place for place in range(0, 32, how.bits))
        words = (words.long() + ones).to(torch.int32)  # modulo 2**32: what a field cannot hold goes into the next
        return unsigned(words, how.bits, count).to(torch.int16)
    zeros = unsigned(words, how.bits, count).to(torch.int16)
    if how.zeros == "itself":
        return zeros
    zeros += 1
    # Fields of 3 bits lie across words: GPTQModel then counts field by field, modulo 8.
    return zeros & 7 if how.zeros == "one less, by words" else zeros


def checked_scale(reader: Reader, part: str, scale: Tensor) -> Tensor:
    """Scales, every one a number.

    Raises:
        CheckpointError: one is not.
    """
    import torch

    if not bool(torch.isfinite(scale).all()):
        raise reader.error(part, "holds NaN or infinite scales")
    return scale
