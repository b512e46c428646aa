"""Checkpoints of torchao in safetensors, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, linears, tiny_model, write
from torch import Tensor

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, IsobitError, Unsupported
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import name_of
from isobit.models.batch import Batch
from isobit.models.planning import plans
from isobit.models.weights import load_model

MODULE = "model.layers.0.mlp.up_proj"


def enum(kind: str, value: str) -> dict[str, Any]:
    return {"_type": kind, "_data": value}


def section(kind: str, **fields: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_version": 2, "_data": fields}}}


PER_ROW = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
GROUPS = {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 32}}
SYMMETRIC = enum("MappingType", "SYMMETRIC")
# What is asked for -> the section, the scheme that it is held as.
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "int8wo": (section("Int8WeightOnlyConfig", granularity=PER_ROW, group_size=None), "int8-w8a16"),
    "int8wo, groups": (section("Int8WeightOnlyConfig", group_size=32), "int8-w8a16-g32"),
    "int8dyn": (
        section("Int8DynamicActivationInt8WeightConfig", granularity=PER_ROW, act_mapping_type=SYMMETRIC), "int8"),
    "float8wo": (
        section("Float8WeightOnlyConfig", granularity=PER_ROW, weight_dtype=enum("torch.dtype", "float8_e4m3fn")),
        "fp8-w8a16"),
    "float8dyn": (section("Float8DynamicActivationFloat8WeightConfig", granularity=PER_ROW), "fp8"),
    **{
        f"intx{bits}": (
            section("IntxWeightOnlyConfig", granularity=GROUPS, weight_dtype=enum("torch.dtype", f"int{bits}"),
                    mapping_type=SYMMETRIC, intx_packing_format=enum("IntxPackingFormat", "UNPACKED_TO_INT8")),
            name)
        for bits, name in ((2, "int2"), (3, "int3-g32"), (4, "int4-g32"), (8, "int8-w8a16-g32"))
    },
}  # fmt: skip


def parts_of(kind: str, n: int = 256, k: int = 128, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """A random weight as it is saved, and its numbers in float32."""
    made = torch.Generator().manual_seed(seed)
    bits = int(kind[4]) if kind.startswith("intx") else 8
    groups = k // 32 if kind.startswith("intx") or "groups" in kind else 1
    codes: Tensor = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (n, k), generator=made).to(torch.int8)
    codes = torch.randn(n, k, generator=made).to(torch.float8_e4m3fn) if kind.startswith("float8") else codes
    scale = torch.rand(n, groups, generator=made) * 0.01
    scale = scale.bfloat16() if kind.startswith("intx") else scale
    parts = {"_weight_qdata": codes, "_weight_scale": scale}
    if not kind.startswith("float8"):
        parts["_weight_zero_point"] = torch.zeros(n, groups, dtype=torch.int8)
    return parts, codes.float() * scale.float().repeat_interleave(k // groups, 1)


def checkpoint(folder: Path, parts: dict[str, Tensor], said: dict[str, Any]) -> Checkpoint:
    tensors = {f"{MODULE}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    return Checkpoint.open(write(folder, CONFIG | {"quantization_config": said}, tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_read(tmp_path: Path, kind: str) -> None:
    parts, expected = parts_of(kind)
    ck = checkpoint(tmp_path, parts, KINDS[kind][0])
    read = read_linear(ck, MODULE)
    assert isinstance(read.weight, QTensor) and torch.equal(read.numbers(), expected)
    assert set(read.names) == set(ck.tensors)
    assert name_of(read.weight.spec, read.activations) == KINDS[kind][1]
    part = read_linear(ck, MODULE, slice(3, 20), slice(32, 96)).numbers()
    assert torch.equal(part, expected[3:20, 32:96])


@pytest.mark.parametrize("kind", ["intx4", "float8wo"])
def test_models_compute_what_the_same_plain_numbers_do(tmp_path: Path, kind: str) -> None:
    state = tiny_model(torch.bfloat16).state_dict()
    plain, packed = dict(state), dict(state)
    for number, name in enumerate(linears()):
        parts, plain[f"{name}.weight"] = parts_of(kind, *packed.pop(f"{name}.weight").shape, seed=number)
        packed |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    ours = write(tmp_path / "ours", CONFIG | {"quantization_config": KINDS[kind][0]}, packed)
    theirs = write(tmp_path / "plain", CONFIG, plain)
    batch = Batch.of([[3, 1, 4, 1, 5, 9, 2]])
    answers = [load_model(folder, dtype="float32").forward(batch) for folder in (ours, theirs)]
    assert float((answers[0] - answers[1]).norm() / answers[1].norm()) < 1e-5
    info, (_, ((plan,),)) = describe(ours), plans(ours, targets=("cpu-avx2",))
    assert info.quantization == "torchao" and not info.notes and plan.action == "legalized"
    assert {use.scheme for use in info.schemes if use.kind == "linear"} == {KINDS[kind][1]}
    assert info.parameters == describe(theirs).parameters


def test_rows_of_zeros_that_torchao_makes_nan_are_named(tmp_path: Path) -> None:
    """torchao 0.18.0 divides zeros by zero (findings/torchao_float8_rows_of_zeros.sh): such a model answers nothing."""
    state = tiny_model(torch.bfloat16).state_dict()
    for number, name in enumerate(linears()):
        parts, _ = parts_of("float8wo", *state.pop(f"{name}.weight").shape, seed=number)
        if number == 3:
            parts["_weight_qdata"][5], parts["_weight_scale"][5] = float("nan"), 0.0
            tensor = f"{name}._weight_qdata"
        state |= {f"{name}.{part}": value for part, value in parts.items()}
    folder = write(tmp_path, CONFIG | {"quantization_config": KINDS["float8wo"][0]}, state)
    with pytest.raises(CheckpointError, match=f"{tensor}'.*mean NaN or infinity"):
        load_model(folder, dtype="float32")
    assert f"NaN or infinite weights in {tensor}: isobit does not load this" in describe(folder).notes


def intx(bits: int, **fields: Any) -> dict[str, Any]:
    return section("IntxWeightOnlyConfig", granularity=GROUPS, weight_dtype=enum("torch.dtype", f"int{bits}"), **fields)


@pytest.mark.parametrize("bits", range(1, 9))
def test_zero_points_and_other_widths(tmp_path: Path, bits: int) -> None:
    """Each number is the code less its zero point, times its scale, rounded once; few bits are held as 4-bit codes."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    made = torch.Generator().manual_seed(bits)
    codes = torch.randint(low, high + 1, (96, 160), generator=made).to(torch.int8)
    zero = torch.randint(low, high + 1, (96, 5), generator=made).to(torch.int8)
    scale = (torch.rand(96, 5, generator=made) * 0.01 + 0.001).bfloat16()
    parts = {"_weight_qdata": codes, "_weight_scale": scale, "_weight_zero_point": zero}
    wide = (codes.float().view(96, 5, 32) - zero.float()[..., None]) * scale.float()[..., None]
    read = read_linear(checkpoint(tmp_path / "a", parts, intx(bits, mapping_type=enum("M", "ASYMMETRIC"))), MODULE)
    assert torch.equal(read.numbers().bfloat16(), wide.flatten(1).bfloat16())
    assert isinstance(read.weight, QTensor) == (bits <= 4)
    ck = checkpoint(tmp_path / "a", parts, intx(bits, mapping_type=enum("M", "ASYMMETRIC")))
    assert torch.equal(read_linear(ck, MODULE, slice(3, 9), slice(32, 96)).numbers(), read.numbers()[3:9, 32:96])
    parts["_weight_zero_point"] = torch.zeros_like(zero)
    read = read_linear(checkpoint(tmp_path / "s", parts, intx(bits, mapping_type=SYMMETRIC)), MODULE)
    assert torch.equal(read.numbers(), codes.float() * scale.float().repeat_interleave(32, 1))


def test_a_zero_point_is_one_of_its_codes(tmp_path: Path) -> None:
    parts = parts_of("intx4")[0]
    said = intx(4, mapping_type=enum("M", "ASYMMETRIC"))
    parts["_weight_zero_point"][3, 1] = 8
    with pytest.raises(IsobitError, match="_weight_zero_point.*from 0 to 8, which 4 bits do not have"):
        read_linear(checkpoint(tmp_path / "a", parts, said), MODULE)
    parts.pop("_weight_zero_point")
    with pytest.raises(IsobitError, match="_weight_zero_point.*is missing"):
        read_linear(checkpoint(tmp_path / "b", parts, said), MODULE)


def test_inputs_that_torchao_rounds_with_zero_points_stay(tmp_path: Path) -> None:
    fields = {"weight_dtype": enum("torch.dtype", "int4"), "weight_granularity": GROUPS,
              "weight_mapping_type": SYMMETRIC, "act_mapping_type": enum("M", "ASYMMETRIC")}  # fmt: skip
    parts, expected = parts_of("intx4")
    ck = checkpoint(tmp_path / "a", parts, section("Int8DynamicActivationIntxWeightConfig", **fields))
    read = read_linear(ck, MODULE)
    assert torch.equal(read.numbers(), expected) and read.activations is None
    assert any("takes them as they are" in note for note in ck.notes)
    fields["act_mapping_type"] = SYMMETRIC
    ck = checkpoint(tmp_path / "b", parts, section("Int8DynamicActivationIntxWeightConfig", **fields))
    assert read_linear(ck, MODULE).activations is not None and any("127.5" in note for note in ck.notes)


def test_a_configuration_for_each_module(tmp_path: Path) -> None:
    """Names before patterns, patterns in their order, whatever their letters; None leaves a module as it is."""
    one = {name: KINDS[name][0]["quant_type"]["default"] for name in ("int8wo", "intx4", "intx3")}
    state, wanted = tiny_model(torch.bfloat16).state_dict(), {}
    chosen = {name: "int8wo" for name in linears()} | {"model.layers.1.mlp.up_proj": "intx3"}
    chosen |= {name: "intx4" for name in linears() if name.endswith("o_proj")}
    for number, name in enumerate(linears()):
        if name == "model.layers.0.mlp.down_proj":
            continue
        parts, wanted[name] = parts_of(chosen[name], *state.pop(f"{name}.weight").shape, seed=number)
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    listed = {"re:.*o_proj": one["intx4"], "re:.*attn.*": one["int8wo"], "_default": one["int8wo"],
              "model.layers.0.mlp.down_proj.weight": None, "model.layers.1.mlp.up_proj": one["intx3"]}  # fmt: skip
    said = {"quantization_config": section("FqnToConfig", fqn_to_config=listed)}
    folder = write(tmp_path / "m", CONFIG | said, state)
    load_model(folder)
    ck = Checkpoint.open(folder)
    assert all(torch.equal(read_linear(ck, name).numbers(), wanted[name]) for name in wanted)
    (_, ((plan,),)), found = plans(folder, targets=("cpu-avx2",)), describe(folder)
    assert plan.action == "legalized" and {use.scheme for use in found.schemes if use.kind == "linear"} == {
        "int8-w8a16", "int4-g32", "int3-g32", "bf16",
    }  # fmt: skip


def test_embeddings_that_transformers_leaves(tmp_path: Path) -> None:
    """It says that input and output embeddings are quantized, and quantizes the output's."""
    state = tiny_model(torch.bfloat16).state_dict()
    for number, name in enumerate([*linears(), "lm_head"]):
        parts = parts_of("intx4", *state.pop(f"{name}.weight").shape, seed=number)[0]
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    said = KINDS["intx4"][0] | {"include_input_output_embeddings": True}
    folder = write(tmp_path / "m", CONFIG | {"quantization_config": said}, state)
    load_model(folder)
    assert ("lm_head", "int4-g32") in {(use.kind, use.scheme) for use in describe(folder).schemes}
    assert plans(folder, targets=("cpu-avx2",))[1][0][0].action == "legalized"


UNREAD: dict[str, dict[str, Any]] = {
    "Int4WeightOnlyConfig": section("Int4WeightOnlyConfig", group_size=128),
    "NVFP4": section("NVFP4DynamicActivationNVFP4WeightConfig"),
    "uint4": section("IntxWeightOnlyConfig", weight_dtype=enum("torch.dtype", "uint4")),
    "one zero point": section(
        "IntxWeightOnlyConfig",
        weight_dtype="int4",
        mapping_type=enum("M", "ASYMMETRIC"),
        granularity={"_type": "PerTensor", "_data": {}},
    ),
    "'FooConfig'": section("FqnToConfig", fqn_to_config={"_default": {"_type": "FooConfig", "_data": {}}}),
    "packed integers": section("IntxWeightOnlyConfig", weight_dtype="int4", intx_packing_format=enum("I", "OPAQUE")),
    "PerBlock": section(
        "Float8WeightOnlyConfig", granularity={"_type": "PerBlock", "_data": {"block_size": [128, 128]}}
    ),
    "quant_type 'int8_weight_only'": {"quant_method": "torchao", "quant_type": "int8_weight_only"},
    "quant_type {": {"quant_method": "torchao", "quant_type": {"default": {}, "m": {}}},
    "of this kind": section("Int8DynamicActivationInt8WeightConfig", act_mapping_type=enum("M", "ASYMMETRIC")),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unsupported) as found:
        read_linear(checkpoint(tmp_path, parts_of("int8wo")[0], UNREAD[name]), MODULE)
    assert name in str(found.value) and "torchao" in str(found.value) and "instead: " in str(found.value)


BAD: dict[str, tuple[str, Any]] = {
    "no scales": ("int8wo", lambda parts, said: parts.pop("_weight_scale")),
    "scales of integers": ("int8wo", lambda parts, said: parts.update(_weight_scale=torch.ones(256, 1).int())),
    "scales too few": ("int8wo", lambda parts, said: parts.update(_weight_scale=torch.ones(255, 1))),
    "scales of groups": ("int8wo", lambda parts, said: parts.update(_weight_scale=torch.ones(256, 4))),
    "a NaN": ("int8wo", lambda parts, said: parts["_weight_scale"][:1].fill_(torch.nan)),
    "zero points": ("int8wo", lambda parts, said: parts["_weight_zero_point"][:1].fill_(3)),
    "floats": ("int8wo", lambda parts, said: parts.update(_weight_qdata=parts["_weight_qdata"].float())),
    "unsigned": ("int8wo", lambda parts, said: parts.update(_weight_qdata=parts["_weight_qdata"].view(torch.uint8))),
    "integers for floats": ("float8wo", lambda p, said: p.update(_weight_qdata=p["_weight_qdata"].view(torch.int8))),
    "codes beyond four bits": ("intx4", lambda parts, said: parts["_weight_qdata"][:1].fill_(8)),
    "codes of three axes": ("int8wo", lambda parts, said: parts.update(_weight_qdata=parts["_weight_qdata"][None])),
    "a plain weight beside it": ("int8wo", lambda parts, said: parts.update(weight=torch.zeros(256, 128))),
    "a group of text": ("int8wo, groups", lambda parts, said: said["default"]["_data"].update(group_size="32")),
    "a group of 12": ("int8wo, groups", lambda parts, said: said["default"]["_data"].update(group_size=12)),
    "a group that does not divide": ("int8wo, groups", lambda p, said: said["default"]["_data"].update(group_size=96)),
    "a type that is a number": ("int8wo", lambda parts, said: said["default"].update(_type=3)),
    "fields that are a list": ("intx4", lambda parts, said: said["default"].update(_data=[])),
    "a dtype that is a number": ("intx4", lambda parts, said: said["default"]["_data"].update(weight_dtype=4)),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_said(tmp_path: Path, kind: str) -> None:
    import copy

    name, change = BAD[kind]
    parts, said = parts_of(name)[0], copy.deepcopy(KINDS[name][0])
    change(parts, said["quant_type"])
    with pytest.raises(IsobitError) as found:
        read_linear(checkpoint(tmp_path, parts, said), MODULE)
    message = str(found.value)
    assert len(message) < 1000 and any(word in message for word in (MODULE, "quantization_config", "dtype")), message
