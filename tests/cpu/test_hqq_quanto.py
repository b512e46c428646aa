"""Checkpoints of HQQ and quanto: codes in planes, zero points and shifts that are floats, and no section that says so.

The packers here are written from what the two tools do; files of hqq 0.2.8 and optimum-quanto 0.2.7 themselves were
compared bit for bit, in every kind and shape below and more (dev/LOG.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, linears, tiny_model, write
from torch import Tensor

import isobit
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import IsobitError
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.models.batch import Batch
from isobit.models.contents import contents
from isobit.models.planning import plans
from isobit.models.weights import load_model

MODULE = "model.layers.0.mlp.up_proj"
Parts = dict[str, Tensor]


@pytest.fixture(scope="module")
def tiny() -> Parts:
    return dict(tiny_model(torch.bfloat16).state_dict())


def chars(text: str) -> Tensor:
    return torch.tensor([*text.encode()], dtype=torch.uint8)


def hqq(
    n: int, k: int, bits: int = 4, group: int = 64, axis: int = 1, dtype: torch.dtype = torch.float16,
    as_floats: bool = False, seed: int = 0,
) -> tuple[Parts, Tensor]:  # fmt: skip
    """A random weight as hqq stores it, and its numbers."""
    made = torch.Generator().manual_seed(seed)
    shape = (n * k // group, group) if axis == 1 else (group, n * k // group)
    codes = torch.randint(0, 1 << bits, shape, generator=made)
    along = (shape[0], 1) if axis == 1 else (1, shape[1])
    scale = (torch.rand(along, generator=made) * 0.02 + 0.001).to(dtype)
    zero = (torch.rand(along, generator=made) * (1 << bits)).to(dtype)
    words, each = (torch.int32, 10) if bits == 3 else (torch.uint8, 8 // bits)
    lines = -(-shape[0] // each)
    padded = torch.zeros(lines * each, shape[1], dtype=torch.int64)
    padded[: shape[0]] = codes
    planes = padded.view(each, lines, shape[1])
    packed = sum(plane << bits * (each - 1 - number) for number, plane in enumerate(planes))
    assert isinstance(packed, Tensor)
    packed = packed.to(words)
    name = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}[bits]
    number = {"nbits": bits, "group_size": group, "axis": axis}
    flags = dict.fromkeys(("quant_scale", "quant_zero", "offload_meta"), 0)
    flags |= dict.fromkeys(("encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero"), 1)
    parts = {
        "W_q": packed.view(dtype) if as_floats else packed,
        "scale": scale,
        "zero": zero,
        "shape": torch.tensor([n, k]),
        "packing": chars(name),
        "compute_dtype": chars(str(dtype)),
        "unpack_view_dtype": chars(str(words)),
        "view_as_float": torch.tensor(int(as_floats), dtype=torch.uint8),
        **{part: torch.tensor(value, dtype=torch.int32) for part, value in number.items()},
        **{part: torch.tensor(value, dtype=torch.uint8) for part, value in flags.items()},
    }
    return parts, ((codes.to(dtype) - zero) * scale).reshape(n, k)


def quanto(
    n: int, k: int, kind: str = "qint4", dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> tuple[Parts, Tensor]:
    """A random weight as quanto stores it, and its numbers."""
    made = torch.Generator().manual_seed(seed)
    ones = {"input_scale": torch.ones((), dtype=dtype), "output_scale": torch.ones((), dtype=dtype)}
    if kind in ("qint8", "qfloat8_e4m3fn", "qfloat8_e5m2"):
        codes = torch.randint(-128, 128, (n, k), generator=made).to(torch.int8)
        if kind != "qint8":
            codes = (codes.float() / 7).to(getattr(torch, kind.removeprefix("q")))
        scale = (torch.rand(n, 1, generator=made) * 0.01 + 0.001).to(dtype)
        return {"weight._data": codes, "weight._scale": scale, **ones}, codes.to(dtype) * scale
    bits = int(kind[-1])
    group = next((size for size in (128, 96, 64, 32) if k > 128 and k % size == 0), k)
    lines = n * k // group
    codes = torch.randint(0, 1 << bits, (lines, group), generator=made)
    scale = (torch.rand(lines, 1, generator=made) * 0.02 + 0.001).to(dtype)
    shift = (torch.rand(lines, 1, generator=made) * 0.1).to(dtype)
    each = 8 // bits
    height = -(-lines // each)
    padded = torch.zeros(height * each, group, dtype=torch.int64)
    padded[:lines] = codes
    packed = sum(plane << bits * number for number, plane in enumerate(padded.view(each, height, group)))
    assert isinstance(packed, Tensor)
    stored = {"weight._data._data": packed.to(torch.uint8), "weight._scale": scale, "weight._shift": shift, **ones}
    return stored, (codes.to(dtype) * scale - shift).reshape(n, k)


def checkpoint(folder: Path, parts: Parts, shape: tuple[int, int], **config: Any) -> Checkpoint:
    tensors = {f"{MODULE}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    return Checkpoint.open(write(folder, CONFIG | config, tensors)).of_model({f"{MODULE}.weight": shape})


def assert_reads(ck: Checkpoint, values: Tensor) -> None:
    """All numbers, and some rows and columns, bit for bit."""
    for rows, columns in (
        (None, None),
        (slice(3, 29), None),
        (slice(17, 18), slice(32, 64)),
        (slice(0, 1), slice(0, 32)),
    ):
        read = read_linear(ck, MODULE, rows, columns)
        found = read.weight.dequantize() if isinstance(read.weight, QTensor) else read.weight
        wanted = values[rows or slice(None), columns or slice(None)]
        assert torch.equal(found.to(values.dtype), wanted) and set(read.names) == set(ck.tensors)
    assert not any("does not" in note for note in ck.notes)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_every_number_of_hqq_is_read(tmp_path: Path, bits: int, axis: int) -> None:
    cases = [
        (64, torch.float16, False),
        (32, torch.bfloat16, True),
        (128, torch.float32, False),
        (40, torch.float16, False),
    ]
    for number, (group, dtype, as_floats) in enumerate(cases):
        n, k = (48, 120) if group == 40 else (48, 128)
        parts, values = hqq(n, k, bits, group, axis, dtype, as_floats, seed=number)
        assert_reads(checkpoint(tmp_path / str(number), parts, (n, k)), values)


@pytest.mark.parametrize("kind", ["qint8", "qfloat8_e4m3fn", "qfloat8_e5m2", "qint4", "qint2"])
def test_every_number_of_quanto_is_read(tmp_path: Path, kind: str) -> None:
    sizes = [(48, 256), (48, 192), (31, 96), (33, 160), (40, 64)]
    for number, (n, k) in enumerate(sizes):
        dtype = (torch.bfloat16, torch.float16, torch.float32)[number % 3]
        parts, values = quanto(n, k, kind, dtype, seed=number)
        assert_reads(checkpoint(tmp_path / str(number), parts, (n, k)), values)


def test_whole_shifts_are_zero_points(tmp_path: Path) -> None:
    parts, _ = quanto(48, 256, "qint4")
    whole = torch.randint(0, 16, parts["weight._shift"].shape, dtype=torch.int8)
    packed = parts["weight._data._data"]
    codes = torch.cat((packed & 15, packed >> 4)).to(torch.int8)
    values = ((codes - whole) * parts["weight._scale"]).reshape(48, 256)
    assert_reads(checkpoint(tmp_path, parts | {"weight._shift": whole}, (48, 256)), values)


MODELS: dict[str, tuple[Callable[..., tuple[Parts, Tensor]], dict[str, Any], str]] = {
    "hqq": (hqq, {}, "hqq, 4 bits"),
    "quanto": (quanto, {}, "quanto's integers, whose shifts are floats"),
    "quanto, 8 bits": (quanto, {"kind": "qint8"}, "int8-w8a16"),
}


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models_run_are_planned_and_quantized(tmp_path: Path, tiny: Parts, name: str, said: bool) -> None:
    """With the sections and files that the tools write, and where they wrote none."""
    make, options, label = MODELS[name]
    plain, packed = dict(tiny), dict(tiny)
    for number, module in enumerate(linears()):
        n, k = packed.pop(f"{module}.weight").shape
        parts, plain[f"{module}.weight"] = make(n, k, seed=number, **options)
        packed |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    config = dict(CONFIG)
    if said and name == "hqq":
        quant = {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}
        section = {"quant_method": "hqq", "quant_config": quant, "skip_modules": ["lm_head"]}
        config["quantization_config"] = section
    ours, theirs = write(tmp_path / "ours", config, packed), write(tmp_path / "plain", CONFIG, plain)
    if said and name != "hqq":
        kind = {"weights": options.get("kind", "qint4"), "activations": "none"}
        (ours / "quanto_qmap.json").write_text(json.dumps(dict.fromkeys(linears(), kind)))
        label = label.replace("quanto's", "quanto's 4-bit")
    batch = Batch.of([[3, 1, 4, 1, 5, 9, 2]])
    one, other = (load_model(folder, dtype="float32").forward(batch) for folder in (ours, theirs))
    assert float((one - other).abs().max()) < (5e-2 if "8" in name else 1e-5)  # bf16(code * scale) against the product
    info, (work, ((plan,),)) = describe(ours), plans(ours, targets=("cpu-avx2",))
    assert info.quantization == name.partition(",")[0] and plan.action in ("native", "legalized")
    use = next(use for use in info.schemes if use.kind == "linear")
    assert use.scheme == label and info.parameters == describe(theirs).parameters and 4 < use.bits_per_weight < 9
    assert any("are made plain floats" in note for note in work.notes) == ("8" not in name)
    assert any("are made plain floats" in note for note in info.notes) == ("8" not in name)
    assert not any("key-value" in note for note in info.notes)
    with pytest.raises(IsobitError, match="--from-quantized"):
        isobit.quantize(ours, tmp_path / "out", "int8", progress=False)
    report = isobit.quantize(ours, tmp_path / "out", "int8", progress=False, from_quantized=True)
    assert 0 < report.relative_squared_error < 1e-3
    contents(Checkpoint.open(tmp_path / "out"))


# ---------------------------------------------------------------------- what lies


def put(part: str, value: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.update({part: value(parts[part]) if callable(value) else value})


def drop(part: str) -> Callable[[Parts], None]:
    return lambda parts: parts.__delitem__(part)


def number(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


BAD_HQQ: dict[str, Callable[[Parts], None]] = {
    "no shape": drop("shape"),
    "no scale": drop("scale"),
    "no zero": drop("zero"),
    "no axis": drop("axis"),
    "no packing": drop("packing"),
    "no group size": drop("group_size"),
    "another shape": put("shape", torch.tensor([128, 256])),
    "twice the rows": put("shape", torch.tensor([512, 128])),
    "a huge shape": put("shape", torch.tensor([1 << 50, 1 << 50])),
    "a negative shape": put("shape", torch.tensor([-256, -128])),
    "three sizes": put("shape", torch.tensor([256, 128, 1])),
    "a shape of floats": put("shape", torch.tensor([256.0, 128.0])),
    "axis 2": put("axis", number(2)),
    "the other axis": put("axis", number(0)),
    "group 0": put("group_size", number(0)),
    "another group": put("group_size", number(32)),
    "group that does not divide": put("group_size", number(100)),
    "a packing nobody knows": put("packing", chars("5bit_u8")),
    "another packing": put("packing", chars("2bit_u8")),
    "packing as a number": put("packing", number(4)),
    "a long packing": put("packing", chars("4bit_u8" * 50)),
    "a dtype nobody knows": put("compute_dtype", chars("__import__('os')")),
    "half the codes": put("W_q", lambda x: x[:128]),
    "codes as one line": put("W_q", lambda x: x.flatten()),
    "half the scales": put("scale", lambda x: x[:256]),
    "NaN scale": put("scale", lambda x: x * float("nan")),
    "infinite zero": put("zero", lambda x: x + float("inf")),
    "scales as codes": put("scale", lambda x: x.to(torch.int8)),
    "quantized scales": put("quant_scale", torch.tensor(1, dtype=torch.uint8)),
    "beyond the dtype": put("scale", lambda x: x * 0 + 60000),
    "plain beside": put("weight", torch.zeros(256, 128)),
}

BAD_QUANTO: dict[str, Callable[[Parts], None]] = {
    "no scale": drop("weight._scale"),
    "no shift": drop("weight._shift"),
    "half the codes": put("weight._data._data", lambda x: x[:63]),
    "codes as words": put("weight._data._data", lambda x: x.view(torch.int32)),
    "codes as int8": put("weight._data._data", lambda x: x.view(torch.int8)),
    "codes as one line": put("weight._data._data", lambda x: x.flatten()),
    "one row more": put("weight._data._data", lambda x: torch.cat((x, x[:1]))),
    "narrower": put("weight._data._data", lambda x: x[:, :96]),
    "half the scales": put("weight._scale", lambda x: x[:128]),
    "scales of another shape": put("weight._scale", lambda x: x.reshape(128, 2)),
    "half the shifts": put("weight._shift", lambda x: x[:128]),
    "scales as integers": put("weight._scale", lambda x: x.to(torch.int8)),
    "shifts of 32 bits": put("weight._shift", lambda x: x.to(torch.int32)),
    "NaN scale": put("weight._scale", lambda x: x * float("nan")),
    "infinite shift": put("weight._shift", lambda x: x + float("inf")),
    "beyond the dtype": put("weight._scale", lambda x: x * 0 + 3e38),
    "plain beside": put("weight", torch.zeros(256, 128)),
    "bytes beside": put("weight._data", torch.zeros(256, 128, dtype=torch.int8)),
}

CASES = [(hqq, name, how) for name, how in BAD_HQQ.items()] + [(quanto, name, how) for name, how in BAD_QUANTO.items()]


@pytest.mark.parametrize(("make", "name", "how"), CASES, ids=[f"{make.__name__}-{name}" for make, name, _ in CASES])
def test_what_lies_is_refused_by_name(
    tmp_path: Path, tiny: Parts, make: Any, name: str, how: Callable[[Parts], None]
) -> None:
    state = {key: tensor for key, tensor in tiny.items() if key != f"{MODULE}.weight"}
    parts, _ = make(256, 128)
    how(parts)
    folder = write(
        tmp_path / "m", CONFIG, state | {f"{MODULE}.{part}": one.contiguous() for part, one in parts.items()}
    )
    with pytest.raises(IsobitError, match=r"layers\.0\.mlp\.up_proj"):
        load_model(folder)


SECTIONS = {
    "rounded activations": ({"a": {"weights": "qint8", "activations": "qint8"}}, "inputs are rounded with input_scale"),
    "a type nobody knows": ({"a": {"weights": "qint5", "activations": "none"}}, "qint5"),
    "no map": ({"a": "qint8"}, "JSON object of modules"),
    "another type": (dict.fromkeys([MODULE], {"weights": "qint8", "activations": "none"}), MODULE),
    "other bits": (dict.fromkeys([MODULE], {"weights": "qint2", "activations": "none"}), "holds 4-bit codes"),
    "none of it": ({}, MODULE),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_maps_of_quanto_that_say_something_else(tmp_path: Path, tiny: Parts, name: str) -> None:
    said, why = SECTIONS[name]
    state = {key: tensor for key, tensor in tiny.items() if key != f"{MODULE}.weight"}
    parts, _ = quanto(256, 128)
    folder = write(tmp_path / "m", CONFIG, state | {f"{MODULE}.{part}": one for part, one in parts.items()})
    (folder / "quanto_qmap.json").write_text(json.dumps(said))
    with pytest.raises(IsobitError) as raised:
        load_model(folder)
    assert why in str(raised.value)


def test_private_names_mean_nothing_beside_plain_weights(tmp_path: Path, tiny: Parts) -> None:
    """A stray tensor with the name of one of HQQ's is surplus."""
    folder = write(tmp_path / "m", CONFIG, tiny | {f"{MODULE}.scale": torch.ones(1), f"{MODULE}.axis": number(1)})
    with pytest.raises(IsobitError, match="surplus"):
        contents(Checkpoint.open(folder))
