"""The tensors of a module held against what its layout takes, by their headers. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from isobit.checkpoint.layouts import table
from isobit.checkpoint.layouts.needs import Need, Wrong
from isobit.checkpoint.layouts.parts import FACTOR, Parts
from isobit.checkpoint.layouts.peek import whole_numbers
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Quantization
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo

_LEFT = "does not fit the way quantization_config says this module is quantized"


def misfits(
    module: str, infos: Mapping[str, TensorInfo], shape: tuple[int, int], quantization: Quantization | None
) -> list[tuple[str, str]]:
    """(tensor, what is wrong with it) of the tensors of a module, by part, that hold a weight of a shape.

    Empty where they hold none at all, and where only their numbers could tell.
    """
    row = table.layout_of(infos)
    if row is None:
        return []
    method = "" if quantization is None else f"{quantization.method} {quantization.format}"
    group = None if quantization is None else quantization.group_for(module)
    if row.methods and not _matched(row, method):  # misshapen ones look like those of another method
        row = max((one for one in table.LAYOUTS if one.codes == row.codes), key=lambda one: _matched(one, method))
    if row.needs is None or row.reads is None:
        return []
    parts = Parts(module, infos, group, method=method, numbers=lambda part: _numbers(infos, part))
    return _misfits(module, row, parts, shape)


def _numbers(infos: Mapping[str, TensorInfo], part: str) -> tuple[int, ...] | None:
    return whole_numbers(infos[part]) if part in infos else None


def _matched(row: Layout, method: str) -> int:
    """Letters of a method that name a layout's."""
    return max((len(name) for name in row.methods if name in method), default=0)


def _misfits(module: str, row: Layout, parts: Parts, shape: tuple[int, int]) -> list[tuple[str, str]]:
    infos = parts.infos
    assert row.needs is not None
    needs = [*row.needs(parts, *shape)]
    if not needs:
        return []
    found = []
    for need in (*needs, Need(FACTOR, PLAIN_DTYPES, ((shape[1],),), optional=True)):
        why = need.why if isinstance(need, Wrong) else need.misfit(infos.get(need.part))
        found += [(need.part, why)] if why is not None and (need.part, why) not in found else []
    taken = {need.part for need in needs} | {"bias", FACTOR}
    for part in (part for part in infos if part in table.READABLE and part not in taken):
        beside = "a plain weight" if row.codes == "weight" else row.codes
        found.append((part, f"there is {beside} beside it" if part in table.CODE_PARTS else row.surplus or _LEFT))
    return [(infos[part].name if part in infos else f"{module}.{part}", why) for part, why in found]
