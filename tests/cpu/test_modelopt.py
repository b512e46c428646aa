"""Checkpoints of ModelOpt and FBGEMM: 8-bit floats and integers, 4-bit integers, factors of inputs."""

from __future__ import annotations

import json
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
FP8 = torch.float8_e4m3fn


def section(algorithm: str, **more: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "producer": {"name": "modelopt"}, **more}


def parts_of(algorithm: str, n: int = 256, k: int = 128, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """A random weight as ModelOpt exports it, and its numbers in float32, factors of inputs multiplied in."""
    made = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (n, k), generator=made).to(torch.int8)
    floats = (torch.randn(n, k, generator=made) * 100).clamp(-448, 448).to(FP8)
    one, row = torch.rand((), generator=made) * 1e-3 + 1e-4, torch.rand(n, generator=made) * 1e-3 + 1e-4
    static = {"input_scale": torch.tensor(0.02)}
    if algorithm == "FP8":
        return {"weight": floats, "weight_scale": one, **static}, floats.float() * one
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        return {"weight": floats, "weight_scale": row}, floats.float() * row[:, None]
    if algorithm == "fp8_pb_wo":
        blocks = torch.rand(-(-n // 128), -(-k // 128), generator=made) * 1e-3
        scale = blocks[:, None, :, None] if blocks.numel() > 1 else blocks.reshape(())
        wide = blocks.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
        return {"weight": floats, "weight_scale": scale.contiguous()}, floats.float() * wide
    if algorithm == "W8A16":
        return {"weight": codes, "weight_scale": row}, codes.float() * row[:, None]
    factor = (torch.rand(k, generator=made) + 0.5).bfloat16()
    if algorithm in FLOATS:
        stored, values = floats_of(algorithm, n, k, made)
        stored |= {"input_scale": torch.tensor(0.001)} if algorithm in ("NVFP4", "NVFP4_AWQ") else {}
        awq = algorithm == "NVFP4_AWQ"
        return stored | ({"pre_quant_scale": factor} if awq else {}), values * factor.float() if awq else values
    if algorithm == "W8A8_SQ_PER_CHANNEL":
        stored = {"weight": codes, "weight_scale": row, "pre_quant_scale": factor, **static}
        return stored, codes.float() * row[:, None] * factor.float()
    four = torch.randint(-8, 8, (n, k), generator=made)
    fields = four & 15
    scale = torch.rand(n, k // 64, generator=made) * 0.01 + 0.001
    values = four.float() * scale.repeat_interleave(64, 1)
    stored = {"weight": (fields[::2] | fields[1::2] << 4).to(torch.uint8), "weight_scale": scale}
    if algorithm == "W4A8_AWQ":
        over = (values.abs().max() / 448).reshape(())
        values = (values / over).to(FP8).float() * over
        stored |= {"weight_scale_2": over, **static}
    return stored | {"pre_quant_scale": factor}, values * factor.float()


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
FLOATS = {"NVFP4": 16, "NVFP4_AWQ": 16, "W4A16_NVFP4": 16, "MXFP4": 32, "MXFP8": 32}


def floats_of(algorithm: str, n: int, k: int, made: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """A random weight in floats under scales of 8 bits, as ModelOpt's own dequantize has it."""
    size = FLOATS[algorithm]
    if algorithm.startswith("MX"):
        scale = torch.randint(110, 125, (n, k // size), generator=made, dtype=torch.uint8)
        wide = torch.exp2(scale.float() - 127).repeat_interleave(size, 1)
        if algorithm == "MXFP8":
            floats = (torch.randn(n, k, generator=made) * 100).to(FP8)
            return {"weight": floats, "weight_scale": scale}, floats.float() * wide
        more = {}
    else:
        scale = (torch.rand(n, k // size, generator=made) * 400 + 1).to(FP8)
        over = torch.rand((), generator=made) * 1e-4 + 1e-5
        wide = (scale.float() * over).repeat_interleave(size, 1)
        more = {"weight_scale_2": over}
    codes = torch.randint(0, 16, (n, k), generator=made)
    packed = (codes[:, 1::2] << 4 | codes[:, ::2]).to(torch.uint8)
    return {"weight": packed, "weight_scale": scale, **more}, E2M1[codes] * wide


def grouped(algorithm: str, **more: Any) -> dict[str, Any]:
    return section(algorithm, group_size=FLOATS.get(algorithm, 64), **more)


ALGORITHMS = {
    "NVFP4": "e2m1 per group 16 (scales: e4m3fn under one of float32) with activations e2m1 per group (scales: e4m3fn"
    " under one of float32)",
    "NVFP4_AWQ": "e2m1 per group 16 (scales: e4m3fn under one of float32) with activations e2m1 per group (scales:"
    " e4m3fn under one of float32)",
    "W4A16_NVFP4": "e2m1 per group 16 (scales: e4m3fn under one of float32)",
    "MXFP4": "mxfp4",
    "MXFP8": "mxfp8",
    "FP8": "fp8-static",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "fp8_pb_wo": "e4m3fn per block 128x128",
    "W8A16": "int8-w8a16",
    "W8A8_SQ_PER_CHANNEL": "int8 per channel with activations int8 per tensor",
    "W4A16_AWQ": "int4-g64",
    "W4A8_AWQ": "fp8-static",
}


def checkpoint(folder: Path, parts: dict[str, Tensor], said: dict[str, Any]) -> Checkpoint:
    tensors = {f"{MODULE}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    return Checkpoint.open(write(folder, CONFIG | {"quantization_config": said}, tensors))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_number_is_read(tmp_path: Path, algorithm: str) -> None:
    for number, (n, k) in enumerate([(256, 128), (128, 128), (384, 256), (130, 128)]):
        parts, expected = parts_of(algorithm, n, k, seed=number)
        ck = checkpoint(tmp_path / str(number), parts, grouped(algorithm))
        read = read_linear(ck, MODULE)
        assert isinstance(read.weight, QTensor) and set(read.names) == set(ck.tensors)
        assert torch.equal(read.numbers(), expected)
        assert name_of(read.weight.spec, read.activations) == ALGORITHMS[algorithm]
        lines = slice(0, 128) if algorithm == "fp8_pb_wo" else slice(5, 40)
        assert torch.equal(read_linear(ck, MODULE, lines).numbers(), expected[lines])
        if k == 256:
            assert torch.equal(read_linear(ck, MODULE, None, slice(128, 256)).numbers(), expected[:, 128:])


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("algorithm", ["FP8", "W4A16_AWQ", "W8A8_SQ_PER_CHANNEL", "NVFP4", "W4A16_NVFP4", "MXFP8"])
def test_models_run(tmp_path: Path, algorithm: str, beside: bool) -> None:
    state = tiny_model(torch.bfloat16).state_dict()
    plain, packed = dict(state), dict(state)
    for number, name in enumerate(linears()):
        parts, plain[f"{name}.weight"] = parts_of(algorithm, *packed.pop(f"{name}.weight").shape, seed=number)
        packed |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    said = grouped(algorithm)
    ours = write(
        tmp_path / "ours", CONFIG | ({} if beside else {"quantization_config": said | {"ignore": ["lm_h*"]}}), packed
    )
    if beside:
        content = {"producer": {"name": "modelopt"}, "quantization": said}
        (ours / "hf_quant_config.json").write_text(json.dumps(content))
    theirs = write(tmp_path / "plain", CONFIG, plain)
    batch = Batch.of([[3, 1, 4, 1, 5, 9, 2]])
    answers = [load_model(folder, dtype="float32").forward(batch) for folder in (ours, theirs)]
    error = float((answers[0] - answers[1]).norm() / answers[1].norm())
    assert error < (1e-5 if "A16" in algorithm else 0.3), error  # inputs of the others are rounded
    info, (_, ((plan,),)) = describe(ours), plans(ours, targets=("cpu-avx2",))
    assert info.quantization == "modelopt" and plan.action in ("native", "legalized")
    assert {use.scheme for use in info.schemes if use.kind == "linear"} == {ALGORITHMS[algorithm]}
    assert info.parameters == describe(theirs).parameters


def test_layers_of_several_kinds(tmp_path: Path) -> None:
    layers = {
        MODULE: {"quant_algo": "FP8"},
        "model.layers.0.mlp.gate_proj": {"quant_algo": "W4A16_AWQ", "group_size": 64},
    }
    ck = checkpoint(tmp_path, parts_of("FP8")[0], section("MIXED_PRECISION", quantized_layers=layers))
    assert torch.equal(read_linear(ck, MODULE).numbers(), parts_of("FP8")[1])
    assert ck.quantization is not None and ck.quantization.group_for("lm_head") is None


@pytest.mark.parametrize("algorithm", ["NVFP4_SVD", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8", "NVFP8"])
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(Unsupported, match=f"ModelOpt's '{algorithm}'"):
        read_linear(checkpoint(tmp_path, parts_of("FP8")[0], section(algorithm)), MODULE)


def test_fbgemm(tmp_path: Path) -> None:
    parts, expected = parts_of("FP8_PER_CHANNEL_PER_TOKEN", 72, 128)
    parts["weight_scale"] = parts["weight_scale"][:, None]
    said = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    ck = checkpoint(tmp_path, parts, said)
    read = read_linear(ck, MODULE)
    assert torch.equal(read.numbers(), expected) and isinstance(read.weight, QTensor)
    assert name_of(read.weight.spec, read.activations) == "fp8" and any("1200.0" in note for note in ck.notes)


@pytest.mark.parametrize(("n", "k"), [(200, 192), (64, 100), (576, 256)])
def test_blocks_of_128_count_from_the_first_row_and_column(tmp_path: Path, n: int, k: int) -> None:
    codes = torch.randn(n, k).to(FP8)
    scale = torch.rand(-(-n // 128), -(-k // 128)) + 0.1
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    ck = checkpoint(tmp_path, {"weight": codes, "weight_scale_inv": scale}, said)
    wide = scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    assert torch.equal(read_linear(ck, MODULE).numbers(), codes.float() * wide)


BAD: dict[str, tuple[str, Any]] = {
    "no scales": ("FP8", lambda parts, said: parts.pop("weight_scale")),
    "no scale of inputs": ("FP8", lambda parts, said: parts.pop("input_scale")),
    "a scale of inputs of nothing": ("FP8", lambda parts, said: parts.update(input_scale=torch.tensor(0.0))),
    "a NaN": ("FP8", lambda parts, said: parts.update(weight_scale=torch.tensor(float("nan")))),
    "two scales": ("FP8", lambda parts, said: parts.update(weight_scale=torch.ones(2))),
    "integers for floats": ("FP8", lambda parts, said: parts.update(weight=parts["weight"].view(torch.int8))),
    "blocks too few": ("fp8_pb_wo", lambda parts, said: parts.update(weight_scale=torch.ones(1, 1, 1, 1))),
    "blocks of five axes": ("fp8_pb_wo", lambda parts, said: parts.update(weight_scale=torch.ones(2, 1, 1, 1, 1))),
    "a factor too short": ("W4A16_AWQ", lambda parts, said: parts.update(pre_quant_scale=torch.ones(127))),
    "a factor of integers": ("W4A16_AWQ", lambda parts, said: parts.update(pre_quant_scale=torch.ones(128).int())),
    "an infinite factor": ("W4A16_AWQ", lambda parts, said: parts["pre_quant_scale"][:1].fill_(torch.inf)),
    "rows too few": ("W4A16_AWQ", lambda parts, said: parts.update(weight=parts["weight"][:-1])),
    "another group": ("W4A16_AWQ", lambda parts, said: said.update(group_size=128)),
    "a group of 12": ("W4A16_AWQ", lambda parts, said: said.update(group_size=12)),
    "a group of text": ("W4A16_AWQ", lambda parts, said: said.update(group_size="64")),
    "scales of 8 bits": ("W4A16_AWQ", lambda parts, said: parts.update(weight_scale=parts["weight_scale"].to(FP8))),
    "zero points": ("W4A16_AWQ", lambda parts, said: said.update(has_zero_point=True)),
    "no scale above": ("W4A8_AWQ", lambda parts, said: parts.pop("weight_scale_2")),
    "a scale above of nothing": ("W4A8_AWQ", lambda parts, said: parts.update(weight_scale_2=torch.tensor(0.0))),
    "said to be 8 bits": ("W4A16_AWQ", lambda parts, said: said.update(quant_algo="W8A16")),
    "no algorithm": ("FP8", lambda parts, said: said.pop("quant_algo")),
    "an algorithm that is a number": ("FP8", lambda parts, said: said.update(quant_algo=8)),
    "layers that are a list": (
        "FP8",
        lambda parts, said: said.update(quant_algo="MIXED_PRECISION", quantized_layers=[1]),
    ),
    "4-bit floats without scales": ("NVFP4", lambda parts, said: parts.pop("weight_scale")),
    "4-bit floats without a scale above": ("NVFP4", lambda parts, said: parts.pop("weight_scale_2")),
    "4-bit floats without a scale of inputs": ("NVFP4", lambda parts, said: parts.pop("input_scale")),
    "inputs under nothing": ("NVFP4", lambda parts, said: parts.update(input_scale=torch.tensor(0.0))),
    "inputs under next to nothing": ("NVFP4", lambda parts, said: parts.update(input_scale=torch.tensor(1e-40))),
    "a scale above below nothing": ("NVFP4", lambda parts, said: parts.update(weight_scale_2=-parts["weight_scale_2"])),
    "a scale above in pairs": ("NVFP4", lambda parts, said: parts.update(weight_scale_2=torch.ones(2))),
    "an infinite scale above": ("NVFP4", lambda parts, said: parts.update(weight_scale_2=torch.tensor(torch.inf))),
    "a scale above beyond all": ("NVFP4", lambda parts, said: parts.update(weight_scale_2=torch.tensor(3e38))),
    "half the scales": ("NVFP4", lambda parts, said: parts.update(weight_scale=parts["weight_scale"][:, ::2])),
    "scales of half the rows": ("NVFP4", lambda parts, said: parts.update(weight_scale=parts["weight_scale"][::2])),
    "scales as floats": ("NVFP4", lambda parts, said: parts.update(weight_scale=parts["weight_scale"].float())),
    "NaN among scales": ("NVFP4", lambda parts, said: parts["weight_scale"].view(torch.uint8)[3, 3:4].fill_(127)),
    "codes of half the rows": ("NVFP4", lambda parts, said: parts.update(weight=parts["weight"][::2])),
    "signed codes": ("NVFP4", lambda parts, said: parts.update(weight=parts["weight"].view(torch.int8))),
    "codes in words": ("NVFP4", lambda parts, said: parts.update(weight=parts["weight"].view(torch.int32))),
    "codes in one row": ("NVFP4", lambda parts, said: parts.update(weight=parts["weight"].flatten())),
    "a group of 7": ("NVFP4", lambda parts, said: said.update(group_size=7)),
    "another group of floats": ("W4A16_NVFP4", lambda parts, said: said.update(group_size=32)),
    "NVFP4 said to be MXFP4": ("W4A16_NVFP4", lambda parts, said: said.update(quant_algo="MXFP4", group_size=32)),
    "MXFP4 said to be NVFP4": ("MXFP4", lambda parts, said: said.update(quant_algo="W4A16_NVFP4", group_size=16)),
    "NaN among powers": ("MXFP4", lambda parts, said: parts["weight_scale"][3, 1:2].fill_(255)),
    "powers beyond all": ("MXFP4", lambda parts, said: parts["weight_scale"][3, 1:2].fill_(254)),
    "plain by its section": ("FP8", lambda parts, said: said.update(ignore=["*up_proj"])),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_said(tmp_path: Path, kind: str) -> None:
    algorithm, change = BAD[kind]
    parts, said = parts_of(algorithm)[0], grouped(algorithm)
    change(parts, said)
    with pytest.raises(IsobitError) as found:
        read_linear(checkpoint(tmp_path, parts, said), MODULE)
    message = str(found.value)
    assert len(message) < 1000 and any(word in message for word in (MODULE, "quant", "modelopt", "ModelOpt")), message
