"""Norms that are rounded add up their squares in the order of those that are not: read in what Triton compiles."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from isobit.kernels.gpu import row_tiles
from isobit.kernels.gpu.before_tiles import RANGE
from isobit.kernels.gpu.row_tiles import RowShape
from isobit.targets.table import target

pytest.importorskip("triton")


def order_of_the_sum(shape: RowShape) -> str:
    """The layout of the squares that are added up: which thread has which values."""
    from isobit.kernels.gpu.compile.build import compile_request
    from isobit.kernels.gpu.compile.request import specialize

    config = row_tiles.norm_token(shape, target("sm_90"))
    pointers = (name for name, kind in config.signature.items() if kind.startswith("*"))
    request = specialize(
        "isobit.kernels.gpu.triton.norm:norm_token", config, target("sm_90"), (*pointers, *config.divisible)
    )
    text = compile_request(request).asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.blocked<.*>)$", text, re.M))
    first = text.index('"tt.reduce"')  # of the squares: the largest magnitude is found behind it
    (name,) = re.findall(r"tensor<\d+xf32, (#\w+)>\) -> f32", text[first:])[:1]
    return layouts[name]


def test_the_squares_of_a_norm_are_added_up_in_one_order() -> None:
    plain = RowShape("bfloat16", 4096, late=True)
    rounded = replace(plain, element="int8", codes="*i8")
    narrowed = replace(plain, element=RANGE, codes="*fp16")
    shapes = (
        plain,
        rounded,
        replace(rounded, parts=8),
        replace(rounded, add=True),
        narrowed,
        replace(narrowed, add=True),
    )
    found = {order_of_the_sum(shape) for shape in shapes}
    assert len(found) == 1
