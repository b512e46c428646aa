"""The weight of one linear layer (or embedding): out of a checkpoint, whatever its layout, and into isobit's own."""

from __future__ import annotations

from torch import Tensor

from isobit.checkpoint.layouts import compressed, few_bit_scales, table
from isobit.checkpoint.layouts.reading import LinearWeight, Reader, Source
from isobit.errors import CheckpointError
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec


def read_linear(
    ck: Source, prefix: str, rows: slice | None = None, columns: slice | None = None, *, mmap: bool = False
) -> LinearWeight:
    """Reads the weight (and bias) of a module, quantized or not, or some rows and columns of it.

    Args:
        ck: the checkpoint.
        prefix: module name.
        rows: the outputs to read, one after another; None for all. The bias is cut alike.
        columns: the inputs to read; None for all.
        mmap: map large tensors into memory instead of copying them; see ``Store.read``.

    Raises:
        CheckpointError: tensors are missing, contradict each other or contradict the quantization config; or there are
            no such rows and columns, or they cut a group, a block or a word of codes.
        Unsupported: the quantization config uses something isobit cannot run.
    """
    infos = table.infos_of(ck.tensors, prefix)
    row = table.layout_of(infos)
    readable = {part: info for part, info in infos.items() if part in table.READABLE}
    reader = Reader(ck, prefix, readable, rows, columns, mmap)
    if row is None:
        raise reader.error("weight", "is missing from this checkpoint")
    if row.reads is None:
        message = f"is stored in the way of {row.name}, which isobit describes and does not read"
        raise CheckpointError(message, file=infos[row.codes].file, tensor=infos[row.codes].name)
    others = [part for part in table.CODE_PARTS if part in infos and part != row.codes]
    if others:
        beside = "a plain weight" if row.codes == "weight" else row.codes
        raise reader.error(others[0], f"there is {beside} beside it")
    return row.reads(reader)


def module_tensors(
    prefix: str, qt: QTensor, *, activations: ActSpec | None, input_scale: Tensor | None = None, rows: int | None = None
) -> dict[str, Tensor]:
    """The tensors to write for a quantized linear; :func:`read_linear` is the inverse.

    Args:
        prefix: module name, e.g. ``model.layers.0.mlp.up_proj``.
        qt: the quantized weight.
        activations: how inputs are rounded: int8 weights are stored as bytes with, and packed without, rounding.
        input_scale: one number, for static activations.
        rows: of the whole weight, where ``qt`` is some of them: the tensors are then those rows' part of it.
    """
    if qt.spec.scale is not None:
        stored = few_bit_scales.write(qt, input_scale)
    else:
        stored = compressed.write(qt, activations, input_scale, rows)
    return {f"{prefix}.{part}": tensor for part, tensor in stored.items()}
