"""QTensor: what it accepts, and dequantization against its definition, element by element."""

from __future__ import annotations

import pytest
import torch

from isobit.errors import FormatError
from isobit.formats.pack import code_dtype, pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, WeightSpec
from isobit.formats.table import element

SPECS = [
    WeightSpec("e4m3fn", "tensor"),
    WeightSpec("e5m2", "channel"),
    WeightSpec("int8", "channel"),
    WeightSpec("int8", "group", 16),
    WeightSpec("int4", "group", 16),
    WeightSpec("int3", "group", 40),
    WeightSpec("e2m1", "group", 16),
    WeightSpec("uint4", "group", 16, symmetric=False),
    WeightSpec("uint4", "channel", symmetric=False),
    WeightSpec("e4m3fn", "block", block=(4, 32)),
]
SHAPE = (10, 80)


def make(spec: WeightSpec, scale_dtype: torch.dtype = torch.bfloat16) -> tuple[QTensor, torch.Tensor]:
    """A random QTensor and its unpacked codes."""
    generator = torch.Generator().manual_seed(3)
    row = element(spec.element)
    finite = torch.tensor([c for c, v in zip(row.codes, row.values, strict=True) if abs(v) < 1e9])
    codes = finite[torch.randint(0, len(finite), SHAPE, generator=generator)].to(code_dtype(row))
    shape = spec.scale_shape(*SHAPE)
    scale = (torch.rand(shape, generator=generator) + 0.1).to(scale_dtype)
    zero = None if spec.symmetric else torch.randint(0, 16, shape, generator=generator).to(torch.uint8)
    return QTensor(spec, SHAPE, codes if row.bits == 8 else pack(codes, row), scale, zero), codes


def scale_index(spec: WeightSpec, n: int, k: int) -> tuple[int, ...]:
    if spec.granularity == "tensor":
        return (0,)
    if spec.granularity == "channel":
        return (n, 0)
    if spec.granularity == "group":
        return (n, k // (spec.group or 1))
    assert spec.block is not None
    return (n // spec.block[0], k // spec.block[1])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_dequantize_by_definition(spec: WeightSpec) -> None:
    q, codes = make(spec)
    assert torch.equal(q.unpacked(), codes)
    whole, values, row = q.dequantize(), q.values(), element(spec.element)
    for n in range(SHAPE[0]):
        for k in range(SHAPE[1]):
            at = scale_index(spec, n, k)
            zero = 0 if q.zero is None else q.zero[at].item()
            value = row.decode(int(codes[n, k])) - zero
            assert values[n, k].item() == value
            assert whole[n, k].item() == (torch.tensor(value) * q.scale[at].float()).item()
    for rows in (slice(0, 3), slice(3, 10), slice(5, 6), slice(4, None)):
        assert torch.equal(q.dequantize(rows), whole[rows])
        assert torch.equal(q.values(rows), values[rows])
        assert torch.equal(q.unpacked(rows), codes[rows])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_split_rows(spec: WeightSpec) -> None:
    q, _ = make(spec)
    parts = q.split_rows([4, 4, 2])
    assert [part.shape for part in parts] == [(4, 80), (4, 80), (2, 80)]
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), q.dequantize())
    with pytest.raises(FormatError, match="do not make up 10"):
        q.split_rows([4, 4])
    with pytest.raises(FormatError, match="are none"):
        q.rows(slice(10, 12))
    if spec.granularity == "block":
        with pytest.raises(FormatError, match="cut a block of 4 rows"):
            q.split_rows([5, 5])


def test_size() -> None:
    q, _ = make(WeightSpec("int4", "group", 16))
    assert q.nbytes == 10 * 80 // 2 + 10 * 5 * 2
    assert q.bits_per_weight == 4 + 16 / 16 == q.nbytes * 8 / 800
    q, _ = make(WeightSpec("int3", "group", 40), torch.float32)
    assert q.bits_per_weight == (10 * 8 * 32 + 20 * 32) / 800


def test_frozen() -> None:
    q, _ = make(SPECS[0])
    with pytest.raises(AttributeError):
        q.scale = q.scale * 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "codes", "scale", "zero", "reason"),
    [
        ("int8", torch.zeros(4, 64, dtype=torch.uint8), torch.ones(4, 1), None, "codes should be int8"),
        ("int8", torch.zeros(4, 63, dtype=torch.int8), torch.ones(4, 1), None, r"\[4, 64\], not int8 \[4, 63\]"),
        ("fp8", torch.zeros(4, 64, dtype=torch.float8_e4m3fn), torch.ones(4, 1), None, "codes should be uint8"),
        ("int8", torch.zeros(4, 64, dtype=torch.int8), torch.ones(4), None, "scale should be"),
        ("int8", torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 1).double(), None, "not float64"),
        ("int8", torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 1), torch.ones(4, 1), "no zero points"),
        ("int4-g32", torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 2), None, r"int32 \[4, 8\]"),
        ("int3", torch.zeros(4, 6, dtype=torch.int32), torch.ones(4, 1), None, "not a multiple of the group size 40"),
    ],
)
def test_what_does_not_fit_is_refused(spec: str, codes, scale, zero, reason: str) -> None:
    weights = SCHEMES[spec].weights
    assert weights is not None
    with pytest.raises(FormatError, match=reason):
        QTensor(weights, (4, 64), codes, scale, zero)


def test_every_problem_is_listed() -> None:
    with pytest.raises(FormatError) as error:
        QTensor(WeightSpec("uint4", "group", 32, symmetric=False), (4, 64), torch.zeros(4, 8), torch.ones(3), None)
    assert all(part in str(error.value) for part in ("codes should be", "scale should be", "zero points are missing"))
    with pytest.raises(FormatError, match="in steps of 2"):
        make(SPECS[0])[0].dequantize(slice(0, 4, 2))
    with pytest.raises(FormatError, match="empty"):
        QTensor(WeightSpec("int8", "channel"), (0, 8), torch.zeros(0, 8, dtype=torch.int8), torch.ones(0, 1))
