"""Checkpoints of GPTQ, AutoRound and AWQ: every tensor bit for bit, then loaded, described and planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import Codes, awq_gemm, awq_gemv, gptq, random_codes
from hf_checkpoints import CONFIG, linears, tiny_model, write
from torch import Tensor

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, IsobitError
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.models.batch import Batch
from isobit.models.planning import plans
from isobit.models.weights import load_model

MODULE = "model.layers.0.mlp.up_proj"


def module(folder: Path, parts: dict[str, Tensor], section: dict[str, Any]) -> Checkpoint:
    """A checkpoint of one module."""
    tensors = {f"{MODULE}.{part}": tensor for part, tensor in parts.items()}
    return Checkpoint.open(write(folder, CONFIG | {"quantization_config": section}, tensors))


def values(ck: Checkpoint, rows: slice | None = None, columns: slice | None = None) -> Tensor:
    """The weight, in float16 and the order of the inputs."""
    read = read_linear(ck, MODULE, rows, columns)
    assert set(read.names) == set(ck.tensors)
    found = read.weight.dequantize().half() if isinstance(read.weight, QTensor) else read.weight
    assert found.dtype == torch.float16
    return found if read.order is None else torch.empty_like(found).index_copy_(1, read.order, found)


def spec(ck: Checkpoint) -> str:
    weight = read_linear(ck, MODULE).weight
    return str(weight.spec.element) if isinstance(weight, QTensor) else "widened"


def section(method: str, bits: int = 4, group: int = 32, sym: bool = False, **more: Any) -> dict[str, Any]:
    return {"quant_method": method, "bits": bits, "group_size": group, "sym": sym, **more}


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_read_bit_for_bit(tmp_path: Path, bits: int, sym: bool) -> None:
    """Both versions, groups and whole rows, with and without act-order and the tensor that says which."""
    kinds = [(32, False), (64, True), (-1, False), (96, False), (96, True)]  # 96 does not divide 128
    expected = f"int{bits}" if sym else "uint4" if bits < 8 else "widened"
    for number, (group, shuffled) in enumerate(kinds):
        weight = random_codes(64, 128, bits, group, symmetric=sym, shuffled=shuffled, seed=bits)
        for version, name in ((1, "gptq"), (2, "gptq_v2")):
            for index in {True, shuffled}:
                said = section("gptq", bits, group, sym, checkpoint_format=name, desc_act=shuffled)
                ck = module(tmp_path / f"{number}{name}{index}", gptq(weight, bits, version=version, index=index), said)
                assert torch.equal(values(ck), weight.values), (group, shuffled, version)
                assert torch.equal(values(ck, slice(5, 40)), weight.values[5:40])
                assert spec(ck) == expected
                if not shuffled:
                    part = slice(64, 128) if group != -1 and 128 % group == 0 else None
                    assert torch.equal(values(ck, None, part), weight.values[:, part or slice(None)])


def test_a_zero_point_of_nothing_goes_on_into_the_next_field(tmp_path: Path) -> None:
    """GPTQModel takes one from a word of eight zero points, and so it is given back."""
    weight = random_codes(8, 32, 4, 32)
    zero = torch.tensor([0, 8, 8, 8, 8, 8, 8, 8])[:, None]
    weight = Codes(weight.codes, zero, weight.scale, weight.index)
    parts = gptq(weight, 4, version=2)
    word = int(parts["qzeros"].item())
    assert word & 0xFFFFFFFF == 0x88888880
    parts["qzeros"] = torch.tensor([[0x7777776F]], dtype=torch.int32)
    assert torch.equal(values(module(tmp_path, parts, section("gptq"))), weight.values)


@pytest.mark.parametrize(
    "packing", ["auto_round:auto_gptq", "auto_round", "auto_round:gptqmodel", "auto_round:auto_awq"]
)
def test_auto_round_is_read_bit_for_bit(tmp_path: Path, packing: str) -> None:
    for sym in (True, False):
        weight = random_codes(64, 128, 4, 32, symmetric=sym)
        parts = gptq(weight, 4, version=1 if packing.endswith("auto_gptq") else 2, index=False)
        parts = awq_gemm(weight) if packing.endswith("awq") else parts
        ck = module(tmp_path / str(sym), parts, section("auto-round", sym=sym, packing_format=packing))
        assert torch.equal(values(ck), weight.values) and spec(ck) == ("int4" if sym else "uint4")


def test_a_zero_point_of_sixteen_is_widened(tmp_path: Path) -> None:
    weight = random_codes(8, 32, 4, 32)
    weight = Codes(weight.codes, torch.full((8, 1), 16), weight.scale, weight.index)
    parts = gptq(Codes(weight.codes, weight.zero, weight.scale, weight.index), 4)  # fields of 15
    ck = module(tmp_path, parts, section("auto-round", packing_format="auto_round:auto_gptq"))
    assert torch.equal(values(ck), weight.values) and spec(ck) == "widened"


@pytest.mark.parametrize("version", ["gemm", "GEMV"])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_awq_is_read_bit_for_bit(tmp_path: Path, version: str, group: int) -> None:
    weight = random_codes(64, 256, 4, group)
    parts = awq_gemm(weight) if version == "gemm" else awq_gemv(weight, {32: 4, 64: 2}.get(group, 1))
    ck = module(tmp_path, parts, {"quant_method": "awq", "bits": 4, "group_size": group, "version": version})
    assert torch.equal(values(ck), weight.values) and spec(ck) == "uint4"
    assert torch.equal(values(ck, slice(8, 40), slice(128, 256) if group != -1 else None),
                       weight.values[8:40, 128 if group != -1 else 0:])  # fmt: skip
    assert torch.equal(values(ck, slice(3, 5)), weight.values[3:5])


# ---------------------------------------------------------------------- whole models


def model(folder: Path, kind: str, files: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """A tiny model in a layout, and the same one plain, in float16."""
    state = {name: tensor.half() for name, tensor in tiny_model(torch.float16).state_dict().items()}
    plain, packed = dict(state), dict(state)
    for number, name in enumerate(linears()):
        n, k = state[f"{name}.weight"].shape
        weight = random_codes(n, k, 4, 32, symmetric=kind != "awq", shuffled=kind == "act-order", seed=number)
        plain[f"{name}.weight"] = weight.values
        del packed[f"{name}.weight"]
        parts = awq_gemm(weight) if kind == "awq" else gptq(weight, 4)
        packed |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    config = CONFIG | {"dtype": "float16"}
    said = section("awq" if kind == "awq" else "gptq", sym=True)
    ours = write(folder / "packed", config | ({} if files else {"quantization_config": said}), packed)
    for name, content in (files or {}).items():
        (ours / name).write_text(json.dumps(content))
    return ours, write(folder / "plain", config, plain)


@pytest.mark.parametrize("kind", ["gptq", "act-order", "awq"])
def test_models_compute_what_the_same_plain_numbers_do(tmp_path: Path, kind: str) -> None:
    ours, plain = model(tmp_path, kind)
    batch = Batch.of([[3, 1, 4, 1, 5, 9, 2]])
    answers = [load_model(folder, dtype="float32").forward(batch) for folder in (ours, plain)]
    error = (answers[0] - answers[1]).norm() / answers[1].norm()
    assert float(error) < 2e-3  # the plain weights are rounded to float16 once more
    info, (work, ((plan,),)) = describe(ours), plans(ours, targets=("cpu-avx2",))
    name = "int4-asym-g32" if kind == "awq" else "int4-g32"
    assert info.quantization == ("awq" if kind == "awq" else "gptq") and not info.notes, info.notes
    assert {use.scheme for use in info.schemes if use.kind == "linear"} == {name}
    assert info.linear_bits_per_weight is not None and 4.4 < info.linear_bits_per_weight < 5.0
    assert info.parameters == describe(plain).parameters
    assert plan.action == "legalized" and {str(op.weights) for op, _ in plan.ops if op.name == "q_proj"} != {"None"}
    assert work.stored is not None


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "quantization_config.json"])
def test_files_beside_the_configuration_say_it(tmp_path: Path, name: str) -> None:
    said = section("gptq", sym=True)
    content = {
        "quantize_config.json": {**said, "damp_percent": 0.01},
        "quant_config.json": {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"},
        "quantization_config.json": said | {"quant_method": "auto-round"},
    }[name]
    content = {key: value for key, value in content.items() if name != "quantize_config.json" or key != "quant_method"}
    ours, plain = model(tmp_path, "awq" if name == "quant_config.json" else "gptq", {name: content})
    batch = Batch.of([[3, 1, 4, 1, 5]])
    answers = [load_model(folder, dtype="float32").forward(batch) for folder in (ours, plain)]
    assert float((answers[0] - answers[1]).norm() / answers[1].norm()) < 2e-3
    for way in (ours, ours / "config.json"):
        (_, ((plan,),)) = plans(way, targets=("cpu-avx2",))
        assert any(op.weights is not None for op, _ in plan.ops)


# ---------------------------------------------------------------------- bad input


def bad(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A module, one thing of which is wrong."""
    awq = kind.startswith("awq")
    weight = random_codes(64, 128, 4, 32, symmetric=not awq)
    parts = awq_gemm(weight) if awq else gptq(weight, 4)
    said = section("awq" if awq else "gptq", sym=True)
    how = kind.removeprefix("awq ")
    changes: dict[str, Any] = {
        "no scales": lambda: parts.pop("scales"),
        "no zero points": lambda: parts.pop("qzeros"),
        "scales are integers": lambda: parts.update(scales=parts["scales"].int()),
        "scales of another width": lambda: parts.update(scales=parts["scales"][:, :32].contiguous()),
        "a group too few": lambda: parts.update(scales=parts["scales"][:3].contiguous()),
        "zero points of another width": lambda: parts.update(qzeros=parts["qzeros"][:, :4].contiguous()),
        "a row of words too few": lambda: parts.update(qweight=parts["qweight"][:15].contiguous()),
        "codes are bytes": lambda: parts.update(qweight=parts["qweight"].view(torch.uint8)),
        "codes of three axes": lambda: parts.update(qweight=parts["qweight"][None].contiguous()),
        "a scale is NaN": lambda: parts["scales"].view(-1)[3:4].fill_(torch.nan),
        "a scale is infinite": lambda: parts["scales"].view(-1)[3:4].fill_(torch.inf),
        "a group below none": lambda: parts["g_idx"][3:4].fill_(-1),
        "a group too many": lambda: parts["g_idx"][3:4].fill_(4),
        "groups of odd sizes": lambda: parts["g_idx"][3:4].fill_(2),
        "an index too short": lambda: parts.update(g_idx=parts["g_idx"][:100].contiguous()),
        "an index of floats": lambda: parts.update(g_idx=parts["g_idx"].float()),
        "zero points that sym denies": lambda: parts["qzeros"].fill_(0x11111111),
        "a plain weight beside it": lambda: parts.update(weight=torch.zeros(64, 128)),
        "scales beside it": lambda: parts.update(weight_scale=torch.ones(64, 1)),
        "bits are a text": lambda: said.update(bits="4"),
        "bits are five": lambda: said.update(bits=5),
        "another group size": lambda: said.update(group_size=64),
        "a group of nothing": lambda: said.update(group_size=0),
        "a group of 12": lambda: said.update(group_size=12),
        "another version": lambda: said.update({"version": "gemv_fast", "checkpoint_format": "marlin"}),
        "sym is a number": lambda: said.update({"sym": 1, "zero_point": 1}),
        "another method": lambda: said.update(quant_method="gptq" if awq else "awq"),
        "no section": lambda: said.clear(),
    }
    if how in changes:
        changes[how]()
    return parts, said


_GPTQ_ONLY = {
    "a group below none",
    "a group too many",
    "groups of odd sizes",
    "an index too short",
    "an index of floats",
}
_BAD = [
    "no scales", "no zero points", "scales are integers", "scales of another width", "a group too few",
    "zero points of another width", "a row of words too few", "codes are bytes", "codes of three axes",
    "a scale is NaN", "a scale is infinite", *sorted(_GPTQ_ONLY), "zero points that sym denies",
    "a plain weight beside it", "scales beside it", "bits are a text", "bits are five", "another group size",
    "a group of nothing",
    "a group of 12", "another version", "sym is a number", "another method", "no section",
]  # fmt: skip


@pytest.mark.parametrize("kind", [*_BAD, *(f"awq {kind}" for kind in _BAD if kind not in _GPTQ_ONLY)])
def test_what_is_wrong_is_said(tmp_path: Path, kind: str) -> None:
    if kind in ("awq zero points that sym denies",):
        pytest.skip("AWQ's zero points are its own")
    parts, said = bad(kind)
    with pytest.raises(IsobitError) as found:
        values(module(tmp_path, parts, said))
    message = str(found.value)
    assert len(message) < 1200 and message.isprintable() or "\n" in message
    about_config = (
        not isinstance(found.value, CheckpointError) or "quantization_config" in message or "AWQ in" in message
    )
    assert MODULE in message or about_config, message


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    parts, said = bad("none")
    module(tmp_path, parts, said)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Checkpoint.open(tmp_path)


def test_quantizing_again_takes_the_numbers_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    """``--from-quantized`` of a source in an order of its own gives what the same plain numbers give."""
    import isobit

    ours, plain = model(tmp_path, "act-order")
    reports = [
        isobit.quantize(folder, tmp_path / name, "int8", progress=False, from_quantized=True)
        for name, folder in (("twice", ours), ("once", plain))
    ]
    twice, once = (Checkpoint.open(tmp_path / name) for name in ("twice", "once"))
    assert any("the source is quantized" in note for note in reports[0].notes)
    for name in linears():
        weights = [read_linear(ck, name).weight for ck in (twice, once)]
        one, other = (weight.dequantize() for weight in weights if isinstance(weight, QTensor))
        assert float((one - other).abs().max()) <= 2 * float(other.abs().max()) / 127  # the plain ones are float16
        assert float((one - other).norm() / other.norm()) < 1e-2, name
