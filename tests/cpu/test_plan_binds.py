"""`isobit plan -v` names, for every number of tokens, the kernel that binding takes: all schemes, GPUs and shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")

from isobit.errors import FormatError, SchemeError
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, scheme
from isobit.formats.table import element
from isobit.kernels import widened
from isobit.kernels.gpu import library
from isobit.kernels.gpu.bind import bind
from isobit.legalize.ops import Lowering
from isobit.legalize.planner import decide, sample_ops
from isobit.legalize.text import op_lines
from isobit.targets.spec import Target
from isobit.targets.table import TARGETS

GPUS = [row for row in TARGETS.values() if row.is_gpu and row.backend is not None]
NAMES = [*SCHEMES, "int4-g64", "int3-g32"]
# (n, k, whether there is a bias, dtype of scales): plain; K of no whole units; N and K of no 16; a bias; float16 scales
SHAPES = (
    (48, 7680, False, "bfloat16"), (48, 1920, False, "bfloat16"), (33, 1320, False, "bfloat16"),
    (48, 7680, True, "bfloat16"), (48, 7680, False, "float16"),
)  # fmt: skip
TOKENS = (1, 2, 8, 16, 17, 64, 255, 256, 257, 1023, 1024, 4096)


def weight(name: str, n: int, k: int, scale_dtype: str) -> QTensor | torch.Tensor:
    spec = scheme(name).weights
    if spec is None:
        return torch.zeros(n, k, dtype=torch.bfloat16)
    row = element(spec.element)
    codes = torch.zeros(n, k, dtype=torch.int8 if row.kind == "int" and row.signed else torch.uint8)
    shape = spec.scale_shape(n, k)
    if spec.scale is not None:  # codes of scales around one, or what kernels are given for them
        codes_of_scales = torch.full(shape, 127 if spec.scale.powers else 56, dtype=torch.uint8)
        over = torch.tensor([3.0]) if spec.scale.over is not None else None
        stored = QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, codes_of_scales, over=over)
        return stored if scheme(name).activations is not None else widened.weight(stored, halves=True)
    scale = torch.linspace(0.01, 0.02, math.prod(shape)).to(getattr(torch, scale_dtype)).view(shape)
    zero = None if spec.symmetric else torch.full(shape, 7, dtype=torch.uint8)
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, zero)


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "problems", lambda device: ())


@pytest.mark.parametrize("name", NAMES)
def test_plans_name_the_kernels_that_are_bound(name: str) -> None:
    compared = 0
    for n, k, bias, scales in SHAPES:
        try:
            held = weight(name, n, k, scales)
        except (FormatError, SchemeError) as problem:  # the shape is refused: then it is in plans, too
            for target in GPUS:
                assert not isinstance(_planned(name, target, n, k, bias, scales), Lowering), (problem, target.name)
            continue
        for target in GPUS:
            answer = _planned(name, target, n, k, bias, scales)
            if not isinstance(answer, Lowering):
                continue
            acts = scheme(name).activations
            dtype = getattr(torch, sample_ops(scheme(name), target)[0].dtype)
            static = torch.tensor([0.02]) if acts is not None and acts.calibrated else None
            plain = held.to(dtype) if isinstance(held, torch.Tensor) else held
            bound = bind(plain, acts, static, torch.zeros(n) if bias else None, target=target)
            for tokens in TOKENS:
                planned = [kernel for first, kernel in answer.sizes if first <= tokens][-1]
                chosen = bound.variant(tokens, dtype)
                assert chosen is not None and chosen.name == planned, (target.name, (n, k, bias, scales), tokens)
                compared += 1
            assert all(kernel in " ".join(op_lines(_op(name, target, n, k, bias, scales), answer))
                       for _, kernel in answer.sizes)  # fmt: skip
    assert compared or name == "w4a8"  # which no GPU kernel takes


def _op(name: str, target: Target, n: int, k: int, bias: bool, scales: str):  # type: ignore[no-untyped-def]
    return replace(sample_ops(scheme(name), target)[0], n=n, k=k, bias=bias, scale_dtype=scales)


def _planned(name: str, target: Target, n: int, k: int, bias: bool, scales: str) -> object:
    return decide(_op(name, target, n, k, bias, scales), target)


def test_groups_are_not_planned_on_a_kernel_that_cannot_read_them() -> None:
    op = _op("int4-g2048", TARGETS["sm_90"], 4096, 4096, False, "bfloat16")
    answer = decide(op, TARGETS["sm_90"])
    assert isinstance(answer, Lowering) and answer.sizes[0] == (1, "few-int4-bf16") == (1, answer.kernels[0])
    wide = decide(_op("int4", TARGETS["sm_90"], 4096, 4096, False, "bfloat16"), TARGETS["sm_90"])
    assert isinstance(wide, Lowering) and wide.kernels[0] == "vector-int4-lanes-bf16"
