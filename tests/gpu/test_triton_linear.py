"""The bound linears on a GPU, its own lowering and those of older targets, against float64 from the same codes."""

from __future__ import annotations

import pytest
import torch
from micro_oracle import entering, over_of
from micro_oracle import weight as micro_weight

from isobit.errors import Unsupported
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, ActSpec, WeightSpec
from isobit.formats.table import element
from isobit.kernels.gpu.selection import unsupported
from isobit.targets.table import target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
TOLERANCE = 5e-4
WIDE = ("mxfp4", "mxfp8")  # what is rounded under powers of two has bfloat16's range, which sm_75 has no arithmetic for
LOWERINGS = (None, "sm_86", "sm_75")
# w4a8 is for CPUs so far: tests/pure says which schemes no GPU kernel takes.
ON_GPUS = [name for name, row in SCHEMES.items() if row.quantized and not unsupported(row.weights, row.activations)]


# Formats that kernels are given in place of others (kernels/held.py), and those of GGUF.
GIVEN = {
    "e2m1-g32": WeightSpec("e2m1", "group", 32), "e2m1-g16": WeightSpec("e2m1", "group", 16),
    "e4m3fn-g32": WeightSpec("e4m3fn", "group", 32), "int8-g32": WeightSpec("int8", "group", 32),
    "int8-g16": WeightSpec("int8", "group", 16),
}  # fmt: skip


def _weight(scheme: str, n: int, k: int, generator: torch.Generator) -> QTensor:
    spec = GIVEN[scheme] if scheme in GIVEN else SCHEMES[scheme].weights
    assert spec is not None
    if spec.scale is not None and spec.scale.codes is not None:
        return micro_weight(spec, n, k)
    row = element(spec.element)
    finite = torch.tensor([c for c, v in zip(row.codes, row.values, strict=True) if abs(v) < 1e300])
    codes = finite[torch.randint(0, len(finite), (n, k), generator=generator)]
    codes = codes.to(torch.int8 if row.kind == "int" and row.signed else torch.uint8)
    shape = spec.scale_shape(n, k)
    scale = (torch.rand(shape, generator=generator) + 0.5).to(torch.bfloat16)
    zero = None if spec.symmetric else torch.randint(0, 16, shape, generator=generator).to(torch.uint8)
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, zero)


def _cuda(weight: QTensor) -> QTensor:
    zero = None if weight.zero is None else weight.zero.cuda()
    over = None if weight.over is None else weight.over.cuda()
    return QTensor(weight.spec, weight.shape, weight.codes.cuda(), weight.scale.cuda(), zero, over)


def _expected(weight: QTensor, acts: ActSpec | None, static: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    exact = x.double() if acts is None else entering(x, acts, static)
    if weight.spec.scale is not None:
        return exact @ weight.dequantize().double().T
    n, k = weight.shape
    scales = weight.scale.double()
    if weight.spec.block is not None:
        rows, columns = weight.spec.block
        scales = scales.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    else:
        scales = scales.reshape(scales.shape[0], -1)
        scales = scales.repeat_interleave(k // scales.shape[1], 1)
    return exact @ (weight.values().double() * scales).T


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("scheme", [*ON_GPUS, *GIVEN])
def test_every_scheme_and_lowering_is_within_the_tolerance(scheme: str, lowering: str | None) -> None:
    from isobit.kernels.gpu.bind import bind

    generator = torch.Generator().manual_seed(3)
    acts = None if scheme in GIVEN else SCHEMES[scheme].activations
    static = (
        None if acts is None else over_of(acts) if acts.dynamic else torch.tensor([0.0234375])
    )  # a scale, above or not
    for n, k in ((200, 1280), (4100, 3840)):
        weight = _weight(scheme, n, k, generator)
        if lowering == "sm_75" and scheme in WIDE:
            with pytest.raises(Unsupported, match="no bfloat16 arithmetic"):
                bind(_cuda(weight), acts, None, None, target=target(lowering), out_dtype=torch.float32)
            continue
        bound = bind(
            _cuda(weight), acts, None if static is None else static.cuda(), None,
            target=target(lowering) if lowering else None, out_dtype=torch.float32,
        )  # fmt: skip
        for tokens in (1, 3, 8, 9, 16, 17, 130):
            x = torch.randn(tokens, k, generator=generator).half()
            wanted = _expected(weight, acts, static, x)
            error = (bound(x.cuda()).double().cpu() - wanted).norm() / wanted.norm()
            assert error <= TOLERANCE, (tokens, n, k)


def test_a_token_does_not_depend_on_the_tokens_beside_it() -> None:
    from isobit.kernels.gpu.bind import bind

    generator = torch.Generator().manual_seed(4)
    for scheme in ("fp8", "int8", "int4"):
        bound = bind(_cuda(_weight(scheme, 512, 1280, generator)), SCHEMES[scheme].activations, None, None)
        x = torch.randn(8, 1280, generator=generator).bfloat16().cuda()
        together = bound(x)
        assert all(torch.equal(bound(x[i : i + 2]), together[i : i + 2]) for i in range(0, 8, 2))
