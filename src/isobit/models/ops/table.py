"""The rows of ways to run layers, and the one place where the choice is made.

Environment variable ``ISOBIT_KERNEL``, which forces a row of linear kernels by name, decides here too where a row has
that name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from isobit.errors import Unsupported
from isobit.formats.caches import AUTO, CacheFormat
from isobit.models.config import LayerSpec
from isobit.models.ops import cpu, gpu, reference
from isobit.models.ops.limits import lacking
from isobit.models.place import Place
from isobit.models.step import LayerOps, LayerRow

LAYER_ROWS: tuple[LayerRow, ...] = (gpu.ROW, cpu.ROW, reference.ROW)


def lacks(dtype: torch.dtype, place: Place, layers: Sequence[LayerSpec]) -> str | None:
    """What layers have and isobit's own kernels at a place have not, so that PyTorch runs them; or None."""
    if place.device == "cuda":
        return lacking(layers, gpu.ABLE) or gpu.lacking_latents(dtype, place, layers)
    return lacking(layers, cpu.ABLE)


def choose(
    dtype: torch.dtype,
    place: Place,
    layers: Sequence[LayerSpec],
    stored: CacheFormat = AUTO,
    *,
    rows: tuple[LayerRow, ...] = LAYER_ROWS,
) -> LayerOps:
    """What runs the layers of a model: the ops of the first row that accepts them.

    Args:
        dtype: of the activations.
        place: where the model lives.
        layers: what they are.
        stored: the format of their keys and values.
        rows: to choose from.

    Raises:
        Unsupported: the row that ISOBIT_KERNEL forces cannot run it; has the reason.
    """
    forced = os.environ.get("ISOBIT_KERNEL")
    if forced in {row.name for row in rows}:
        rows = tuple(row for row in rows if row.name == forced)
    reasons = []
    for row in sorted(rows, key=lambda row: -row.priority):
        reason = row.accepts(dtype, place, layers, stored)
        if reason is None:
            return row.make(place)
        reasons.append(f"{row.name}: {reason}")
    raise Unsupported(f"layers in {str(dtype).removeprefix('torch.')} on {place.device}", reasons)
