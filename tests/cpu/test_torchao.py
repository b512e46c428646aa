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
from isobit.errors import IsobitError, Unsupported
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


UNREAD: dict[str, dict[str, Any]] = {
    "Int4WeightOnlyConfig": section("Int4WeightOnlyConfig", group_size=128),
    "NVFP4": section("NVFP4DynamicActivationNVFP4WeightConfig"),
    "int5": section("IntxWeightOnlyConfig", weight_dtype=enum("torch.dtype", "int5")),
    "IntxWeightOnlyConfig": section("IntxWeightOnlyConfig", weight_dtype="int4", mapping_type=enum("M", "ASYMMETRIC")),
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
