"""The tensors of one linear: written and read back, read in the forms other tools use, and refused where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, write
from torch import Tensor

from isobit.checkpoint import ctrender
from isobit.checkpoint.layouts import table
from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.checkpoint.linear import module_tensors, read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError
from isobit.formats import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, Scheme, scheme
from isobit.quantizer.grid import quantize_weight

N, K = 136, 640  # N is no multiple of 128, K of every default group


def weight(n: int = N, k: int = K) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1)) * 0.05


def quantized(row: Scheme, n: int = N, k: int = K) -> QTensor:
    assert row.weights is not None
    return quantize_weight(weight(n, k), row.weights, search="absmax", scale_dtype=torch.bfloat16)


def stored(row: Scheme, n: int = N, k: int = K) -> dict[str, Tensor]:
    scale = torch.tensor([0.5]) if row.needs_calibration else None
    return module_tensors("m", quantized(row, n, k), activations=row.activations, input_scale=scale)


def read(folder: Path, tensors: dict[str, Tensor], row: Scheme | None, **config: Any) -> LinearWeight:
    section = config or ({} if row is None else ctrender.render({"m": row}))
    ck = Checkpoint.open(write(folder, CONFIG | {"quantization_config": section}, tensors))
    return read_linear(ck, "m")


@pytest.mark.parametrize("row", [row for row in SCHEMES.values() if row.quantized], ids=lambda row: row.name)
def test_read_is_the_inverse_of_write(tmp_path: Path, row: Scheme) -> None:
    tensors = stored(row) | {"m.bias": torch.ones(N)}
    found, expected = read(tmp_path, tensors, row), quantized(row)
    assert isinstance(found.weight, QTensor) and found.weight.spec == expected.spec
    for name in ("codes", "scale", "zero"):
        mine, theirs = getattr(found.weight, name), getattr(expected, name)
        assert (mine is None) == (theirs is None)
        assert mine is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs))
    assert found.activations == row.activations and set(found.names) == set(tensors)
    assert found.bias is not None and torch.equal(found.bias, torch.ones(N))
    assert (found.input_scale is not None) == row.needs_calibration
    again = module_tensors("m", found.weight, activations=found.activations, input_scale=found.input_scale)
    assert all(torch.equal(again[name].view(torch.uint8), tensors[name].view(torch.uint8)) for name in again)


def test_mapped_reads_are_the_same(tmp_path: Path) -> None:
    row = scheme("int4-asym")
    ck = Checkpoint.open(write(tmp_path, CONFIG | {"quantization_config": ctrender.render({"m": row})}, stored(row)))
    found = read_linear(ck, "m", mmap=True).weight
    assert isinstance(found, QTensor) and torch.equal(found.dequantize(), quantized(row).dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_plain_weights_need_no_config(tmp_path: Path, dtype: torch.dtype) -> None:
    found = read(tmp_path, {"m.weight": weight().to(dtype)}, None)
    assert isinstance(found.weight, Tensor) and torch.equal(found.weight, weight().to(dtype))
    assert found.activations is None and found.names == ("m.weight",)
    kept = read(tmp_path, {"m.weight": weight().to(dtype)}, scheme("fp8"))  # the tensors decide
    assert isinstance(kept.weight, Tensor)


@pytest.mark.parametrize(
    ("name", "shape"), [("fp8-static", ()), ("fp8-static", (1, 1)), ("fp8", (N,)), ("int8", (N,)), ("int8-w8a16", (N,))]
)
def test_scale_shapes_of_other_tools(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = stored(scheme(name))
    tensors["m.weight_scale"] = tensors["m.weight_scale"].reshape(shape)
    found = read(tmp_path, tensors, scheme(name)).weight
    assert isinstance(found, QTensor) and torch.equal(found.dequantize(), quantized(scheme(name)).dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e8m0fnu])
def test_scale_dtypes_of_other_tools(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = stored(scheme("fp8-block"))
    scale = torch.full_like(tensors["m.weight_scale"], 0.25).to(dtype)
    tensors["m.weight_scale_inv"] = scale
    del tensors["m.weight_scale"]
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = read(tmp_path, tensors, None, **fp8)
    assert isinstance(found.weight, QTensor) and found.activations == scheme("fp8-block").activations
    expected = tensors["m.weight"].float() * 0.25
    assert torch.equal(found.weight.dequantize(), expected)


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_the_plain_fp8_method(tmp_path: Path, per: str) -> None:
    codes = weight().to(torch.float8_e4m3fn)
    scale = torch.tensor(0.5) if per == "tensor" else torch.linspace(0.5, 1, N).reshape(N, 1)
    tensors = {"m.weight": codes, "m.weight_scale": scale, "m.input_scale": torch.tensor(0.125)}
    found = read(tmp_path, tensors, None, quant_method="fp8", activation_scheme="static")
    assert isinstance(found.weight, QTensor) and found.weight.spec.granularity == per
    assert found.input_scale is not None and found.input_scale.tolist() == [0.125]
    assert torch.equal(found.weight.dequantize(), codes.float() * scale)


def test_narrow_codes_that_are_not_packed(tmp_path: Path) -> None:
    """As compressed-tensors stores integers below 8 bits when activations are rounded."""
    row, expected = scheme("w4a8-g64"), quantized(scheme("w4a8-g64"))
    codes = pack.unpack(expected.codes, "int4", K)
    tensors = {"m.weight": codes, "m.weight_scale": expected.scale}
    found = read(tmp_path, tensors, row)
    assert isinstance(found.weight, QTensor) and found.activations == row.activations
    assert torch.equal(found.weight.codes, expected.codes)
    codes[1, 2] = 8
    with pytest.raises(CheckpointError, match="int4 codes lie between -8 and 7"):
        read(tmp_path, tensors, row)


def test_zero_points_that_are_not_packed(tmp_path: Path) -> None:
    row, expected = scheme("int4-asym-g64"), quantized(scheme("int4-asym-g64"))
    assert expected.zero is not None
    tensors = stored(row) | {"m.weight_zero_point": (expected.zero.to(torch.int16) - 8).to(torch.int8)}
    found = read(tmp_path, tensors, row).weight
    assert isinstance(found, QTensor) and torch.equal(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_symmetric_weights_may_have_zero_zero_points(tmp_path: Path, name: str) -> None:
    shape = quantized(scheme(name)).scale.shape
    tensors = stored(scheme(name)) | {"m.weight_zero_point": torch.zeros(shape, dtype=torch.int8)}
    read(tmp_path, tensors, scheme(name))
    tensors["m.weight_zero_point"][0, 0] = 1
    with pytest.raises(CheckpointError, match="weight_zero_point'.*not zero"):
        read(tmp_path, tensors, scheme(name))


def test_group_indexes_in_order_are_read_and_others_refused(tmp_path: Path) -> None:
    tensors = stored(scheme("int4")) | {"m.weight_g_idx": torch.arange(K, dtype=torch.int32) // 128}
    read(tmp_path, tensors, scheme("int4"))
    tensors["m.weight_g_idx"] = torch.full((K,), -1, dtype=torch.int32)
    read(tmp_path, tensors, scheme("int4"))
    tensors["m.weight_g_idx"] = torch.arange(K, dtype=torch.int32).flip(0) // 128
    with pytest.raises(CheckpointError, match="act-order"):
        read(tmp_path, tensors, scheme("int4"))


WITHOUT = object()
LIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # scheme of tensors and config, changed tensors, tensor named, message
    "fp8 without scale": ("fp8", {"weight_scale": WITHOUT}, "m.weight", "no weight_scale"),
    "int4 without scale": ("int4", {"weight_scale": WITHOUT}, "m.weight_packed", "no weight_scale"),
    "no shape": ("int4", {"weight_shape": WITHOUT}, "m.weight_shape", "is missing"),
    "wrong shape": ("int4", {"weight_shape": torch.tensor([N, K + 64])}, "m.weight_packed", "does not hold 4-bit"),
    "rows differ": ("int4", {"weight_shape": torch.tensor([N + 1, K])}, "m.weight_packed", "does not hold"),
    "shape of three": ("int4", {"weight_shape": torch.tensor([1, N, K])}, "m.weight_packed", "does not hold"),
    "shape of floats": ("int4", {"weight_shape": torch.tensor([float(N), float("nan")])}, "m.weight_shape", "is F32"),
    "shape of complex": ("int4", {"weight_shape": torch.tensor([N, K]).cfloat()}, "m.weight_shape", "is C64"),
    "shape of flags": ("int4", {"weight_shape": torch.ones(2, dtype=torch.bool)}, "m.weight_shape", "is BOOL"),
    "scalar shape": ("int4", {"weight_shape": torch.tensor(N)}, "m.weight_packed", r"weight_shape \[136\]"),
    "empty shape": ("int4", {"weight_shape": torch.zeros(0, dtype=torch.int64)}, "m.weight_packed", r"shape \[\]"),
    "negative shape": ("int4", {"weight_shape": torch.tensor([N, -K])}, "m.weight_packed", "-640"),
    "huge shape": ("int4", {"weight_shape": torch.tensor([N, 2**62])}, "m.weight_packed", "does not hold"),
    "a million sizes": ("int4", {"weight_shape": torch.ones(10**6, dtype=torch.int64)}, "m.weight_shape",
                        r"is I64 \[1000000\]"),
    "plain vector": ("fp8", {"weight": torch.ones(K), "weight_scale": WITHOUT}, "m.weight", "is a matrix"),
    "F64": ("fp8", {"weight": torch.ones(N, K).double()}, "m.weight", "dtype F64, .*read.*save the model in f"),
    "long bias": ("fp8", {"bias": torch.ones(N + 1)}, "m.bias", r"shape \[137\]"),
    "bias of a matrix": ("int4", {"bias": torch.ones(N, 1)}, "m.bias", r"shape \[136, 1\]"),
    "integer bias": ("int4", {"bias": torch.ones(N, dtype=torch.int32)}, "m.bias", "dtype I32"),
    "complex bias": ("fp8", {"bias": torch.ones(N, dtype=torch.complex64)}, "m.bias", "dtype C64"),
    "NaN bias": ("fp8", {"bias": torch.full((N,), float("nan"))}, "m.bias", "NaN"),
    "complex scale": ("fp8", {"weight_scale": torch.ones(N, 1).cfloat()}, "m.weight_scale", "dtype C64"),
    "infinite scale": ("int4", {"weight_scale": torch.full((N, K // 128), float("inf"))}, "m.weight_scale", "infinite"),
    "complex zero point": ("int8", {"weight_zero_point": torch.full((N, 1), 1j)}, "m.weight_zero_point", "not zero"),
    "long group index": ("int4", {"weight_g_idx": torch.arange(2 * K) // 128}, "m.weight_g_idx", r"I32 \[640\]"),
    "group index of floats": ("int4", {"weight_g_idx": torch.zeros(K)}, "m.weight_g_idx", "is F32"),
    "complex input scale": ("fp8-static", {"input_scale": torch.ones(1).cfloat()}, "m.input_scale", "dtype C64"),
    "no zero points": ("int4-asym", {"weight_zero_point": WITHOUT}, "m.weight_zero_point", "is missing"),
    "few zero points": ("int4-asym", {"weight_zero_point": torch.zeros(2, 5, dtype=torch.int32)},
                        "m.weight_zero_point", "packed"),
    "scale of groups": ("int4", {"weight_scale": torch.ones(N, K // 64)}, "m.weight_scale", "a scale per group 128"),
    "scale too short": ("fp8", {"weight_scale": torch.ones(N - 1, 1)}, "m.weight_scale", "a scale per channel"),
    "blocks": ("fp8-block", {"weight_scale": torch.ones(1, 5)}, "m.weight_scale", "a scale per block"),
    "NaN scale": ("int8", {"weight_scale": torch.full((N, 1), float("nan"))}, "m.weight_scale", "NaN"),
    "integer scale": ("int8", {"weight_scale": torch.ones(N, 1, dtype=torch.int8)}, "m.weight_scale", "dtype I8"),
    "plain with scale": ("fp8", {"weight": weight()}, "m.weight_scale", "not quantized"),
    "both": ("int4", {"weight": weight()}, "m.weight_packed", "a plain weight beside it"),
    "e5m2 in e4m3": ("fp8", {"weight": weight().to(torch.float8_e5m2)}, "m.weight", "is F8_E5M2, but .* says e4m3fn"),
    "int8 in fp8": ("fp8", {"weight": torch.zeros(N, K, dtype=torch.int8)}, "m.weight", "is I8, but"),
    "int32": ("int8", {"weight": torch.zeros(N, K, dtype=torch.int32)}, "m.weight", "dtype I32, which cannot be read"),
    "three axes": ("int8", {"weight": torch.zeros(2, N, K, dtype=torch.int8)}, "m.weight", "is a matrix"),
    "packed as I64": ("int4", {"weight_packed": torch.zeros(N, K // 8, dtype=torch.int64)}, "m.weight_packed", "not"),
    "no input scale": ("fp8-static", {"input_scale": WITHOUT}, "m.input_scale", "is missing"),
    "two input scales": ("fp8-static", {"input_scale": torch.ones(2)}, "m.input_scale", "one number"),
    "zero input scale": ("fp8-static", {"input_scale": torch.zeros(1)}, "m.input_scale", "positive"),
    "surplus input scale": ("fp8", {"input_scale": torch.ones(1)}, "m.input_scale", "does not fit"),
    "surplus zero point": ("fp8-static", {"weight_zero_point": torch.ones(1)}, "m.weight_zero_point", "not zero"),
    "nothing": ("fp8", {"weight": WITHOUT}, "m.weight", "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_contradictions_are_refused_by_name(tmp_path: Path, lie: str) -> None:
    name, changes, tensor, message = LIES[lie]
    tensors = stored(scheme(name)) | {f"m.{part}": value for part, value in changes.items()}
    tensors = {part: value for part, value in tensors.items() if value is not WITHOUT}
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path, tensors, scheme(name))
    assert caught.value.tensor == tensor and str(tmp_path) in str(caught.value)


def test_a_group_size_that_does_not_divide(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="group size 96 .* does not divide K = 640"):
        read(tmp_path, stored(scheme("int4")), scheme("int4-g96"))


def test_the_config_must_know_of_quantized_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json has no quantization_config"):
        read(tmp_path, stored(scheme("fp8")), None)
    section = ctrender.render({"m": scheme("fp8")}) | {"ignore": ["m"]}
    with pytest.raises(CheckpointError, match="says that this module is not"):
        read(tmp_path, stored(scheme("fp8")), None, **section)


def test_names_are_split_and_told_from_others() -> None:
    assert table.split("model.layers.0.mlp.up_proj.weight_scale") == ("model.layers.0.mlp.up_proj", "weight_scale")
    assert table.split("lm_head.weight") == ("lm_head", "weight") and table.split("weight") == ("", "weight")
    assert table.split("m.experts.up_proj_blocks") == ("m.experts.up_proj", "_blocks")
    assert table.belongs_to_linear("lm_head.weight") and not table.belongs_to_linear("weight")
    assert not table.belongs_to_linear("model.layers.0.self_attn.rotary_emb.inv_freq")
