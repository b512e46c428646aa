"""Checkpoints of bitsandbytes: NF4, FP4 and 8-bit integers, bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import CONFIG, linears, tiny_model, write
from torch import Tensor

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import IsobitError
from isobit.evaluation.info import describe
from isobit.formats.qtensor import QTensor
from isobit.models.batch import Batch
from isobit.models.planning import plans
from isobit.models.weights import load_model

MODULE = "model.layers.0.mlp.up_proj"
STATE = "weight.quant_state.bitsandbytes__"
# Quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E), in four digits; files hold their own.
NF4 = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.7230, 1.0)  # fmt: skip
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FOUR: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}


def four_bits(
    n: int, k: int, *, nested: bool = False, dtype: str = "bfloat16", kind: str = "nf4", block: int = 64, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a random weight by part, and the weight."""
    made = torch.Generator().manual_seed(seed)
    table = torch.tensor(NF4)
    codes = torch.randint(0, 16, (n * k,), generator=made)
    count = math.ceil(n * k / block)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": [n, k]}
    padded = torch.cat([codes, codes.new_full((codes.numel() % 2,), 7)]).view(-1, 2)
    parts = {"weight": (padded[:, 0] * 16 + padded[:, 1]).to(torch.uint8)[:, None], "weight.quant_map": table}
    absmax = torch.rand(count, generator=made) * 0.1 + 0.01
    if nested:
        inner, offset = torch.rand(math.ceil(count / 256), generator=made), 0.0537109375
        bytes_ = torch.randint(0, 256, (count,), generator=made)
        levels = torch.linspace(-1, 1, 256)
        absmax = levels[bytes_] * inner[torch.arange(count) // 256] + offset
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        parts |= {
            "weight.absmax": bytes_.to(torch.uint8),
            "weight.nested_absmax": inner,
            "weight.nested_quant_map": levels,
        }
    else:
        parts["weight.absmax"] = absmax
    parts[STATE + kind] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return parts, (table[codes] * absmax[torch.arange(n * k) // block]).view(n, k).to(DTYPES[dtype])


def checkpoint(folder: Path, parts: dict[str, Tensor], section: dict[str, Any]) -> Checkpoint:
    tensors = {f"{MODULE}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    return Checkpoint.open(write(folder, CONFIG | {"quantization_config": section}, tensors))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nested", [True, False])
def test_4_bits_are_widened_to_the_numbers_of_the_tool(tmp_path: Path, nested: bool, dtype: str) -> None:
    for number, (n, k, block) in enumerate([(64, 128, 64), (7, 9, 64), (300, 64, 32), (4, 96, 128)]):
        parts, expected = four_bits(n, k, nested=nested, dtype=dtype, block=block, kind="fp4" if number == 2 else "nf4")
        ck = checkpoint(tmp_path / str(number), parts, FOUR)
        read = read_linear(ck, MODULE)
        assert isinstance(read.weight, Tensor) and read.weight.dtype == DTYPES[dtype]
        assert torch.equal(read.weight, expected) and set(read.names) == set(ck.tensors)
        assert torch.equal(read_linear(ck, MODULE, slice(1, 4), slice(2, 7)).weight, expected[1:4, 2:7])


def test_rows_are_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, expected = four_bits(40, 33)  # rows begin within bytes, and within blocks
    ck, seen = checkpoint(tmp_path, parts, FOUR), []
    original = Checkpoint.read

    def noting(self: Checkpoint, name: str, *args: Any, **options: Any) -> Tensor:
        found = original(self, name, *args, **options)
        if name.endswith(".weight"):
            seen.append(found.numel())
        return found

    monkeypatch.setattr(Checkpoint, "read", noting)
    for row in range(40):
        assert torch.equal(read_linear(ck, MODULE, slice(row, row + 1)).weight, expected[row : row + 1])
    assert max(seen) == 17


def test_codes_in_another_storage_are_the_same(tmp_path: Path) -> None:
    parts, expected = four_bits(64, 128)
    for number, storage in enumerate([torch.bfloat16, torch.float32, torch.int8]):
        changed = parts | {"weight": parts["weight"].view(-1).view(storage)[:, None]}
        assert torch.equal(read_linear(checkpoint(tmp_path / str(number), changed, FOUR), MODULE).weight, expected)


def test_scales_that_were_saved_after_use_are_turned_back(tmp_path: Path) -> None:
    """A save after a forward pass on a CPU writes them transposed, in bfloat16: that is mended, and said."""
    parts, _ = four_bits(32, 128)
    absmax = parts["weight.absmax"].bfloat16()
    good = parts | {"weight.absmax": absmax.float()}
    broken = parts | {"weight.absmax": absmax.view(32, 2).t().contiguous()}
    expected = read_linear(checkpoint(tmp_path / "good", good, FOUR), MODULE).weight
    ck = checkpoint(tmp_path / "broken", broken, FOUR)
    assert torch.equal(read_linear(ck, MODULE).weight, expected)
    assert any("after it had computed" in note for note in ck.notes)
    assert not any("after it had computed" in note for note in checkpoint(tmp_path / "good2", good, FOUR).notes)


def test_8_bits_stay_codes(tmp_path: Path) -> None:
    codes = torch.randint(-127, 128, (64, 128)).to(torch.int8)
    largest = torch.rand(64) + 0.1
    ck = checkpoint(
        tmp_path, {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}, EIGHT
    )
    read = read_linear(ck, MODULE)
    assert isinstance(read.weight, QTensor) and torch.equal(read.weight.codes, codes) and read.activations is None
    exact = codes.double() * largest.double()[:, None] / 127
    assert float(((read.weight.dequantize().double() - exact).abs() / exact.abs().clamp_min(1e-9)).max()) < 2e-7
    part = read_linear(ck, MODULE, slice(3, 9), slice(5, 8)).weight
    assert isinstance(part, QTensor) and torch.equal(part.dequantize(), read.weight.dequantize()[3:9, 5:8])


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_models_compute_what_the_same_plain_numbers_do(tmp_path: Path, kind: str) -> None:
    state = tiny_model(torch.bfloat16).state_dict()
    plain, packed = dict(state), dict(state)
    for number, name in enumerate(linears()):
        n, k = packed.pop(f"{name}.weight").shape
        if kind == "nf4":
            parts, plain[f"{name}.weight"] = four_bits(n, k, nested=number % 2 == 0, seed=number)
        else:
            codes = torch.randint(-127, 128, (n, k)).to(torch.int8)
            parts = {"weight": codes, "SCB": torch.full((n,), 127 * 0.0009765625)}
            plain[f"{name}.weight"] = (codes.float() * 0.0009765625).bfloat16()
        packed |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    ours = write(tmp_path / "ours", CONFIG | {"quantization_config": FOUR if kind == "nf4" else EIGHT}, packed)
    theirs = write(tmp_path / "plain", CONFIG, plain)
    batch = Batch.of([[3, 1, 4, 1, 5, 9, 2]])
    answers = [load_model(folder, dtype="float32").forward(batch) for folder in (ours, theirs)]
    assert float((answers[0] - answers[1]).norm() / answers[1].norm()) < 1e-5
    info, (work, ((plan,),)) = describe(ours), plans(ours, targets=("cpu-avx2",))
    assert info.quantization == "bitsandbytes" and info.linear_bits_per_weight is not None
    schemes = {use.scheme for use in info.schemes if use.kind == "linear"}
    assert schemes == ({"nf4 (bitsandbytes)"} if kind == "nf4" else {"int8-w8a16"})
    assert info.parameters == describe(theirs).parameters
    assert (4.1 < info.linear_bits_per_weight < 5.2) if kind == "nf4" else (8 < info.linear_bits_per_weight < 8.5)
    words = "NF4 of bitsandbytes are made plain floats" if kind == "nf4" else "takes all inputs as they are"
    assert any(words in note for note in work.notes) and any(words in note for note in info.notes)
    held = plans(theirs, targets=("cpu-avx2",), scheme_names=["bf16"])[1][0][0].memory.weights
    assert plan.memory.weights == held if kind == "nf4" else plan.memory.weights < held


# ---------------------------------------------------------------------- bad input


def state_with(parts: dict[str, Tensor], **changes: Any) -> None:
    name = next(name for name in parts if name.startswith(STATE))
    state = json.loads(bytes(parts[name].tolist())) | changes
    parts[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


BAD: dict[str, Any] = {
    "no state": lambda parts, said: parts.pop(STATE + "nf4"),
    "no absmax": lambda parts, said: parts.pop("weight.absmax"),
    "no table": lambda parts, said: parts.pop("weight.quant_map"),
    "no table of absmax": lambda parts, said: parts.pop("weight.nested_quant_map"),
    "a table of 15": lambda parts, said: parts.update({"weight.quant_map": torch.zeros(15)}),
    "a table with NaN": lambda parts, said: parts["weight.quant_map"][3:4].fill_(torch.nan),
    "codes too few": lambda parts, said: parts.update(weight=parts["weight"][:-1]),
    "absmax too few": lambda parts, said: parts.update({"weight.absmax": parts["weight.absmax"][:-1]}),
    "absmax of integers": lambda parts, said: parts.update({"weight.absmax": parts["weight.absmax"].int()}),
    "nested absmax too many": lambda parts, said: parts.update({"weight.nested_absmax": torch.ones(9)}),
    "an infinite absmax": lambda parts, said: parts["weight.nested_absmax"][:1].fill_(torch.inf),
    "a state of nothing": lambda parts, said: parts.update({STATE + "nf4": torch.zeros(0, dtype=torch.uint8)}),
    "a state that is no JSON": lambda parts, said: parts.update({STATE + "nf4": torch.zeros(9, dtype=torch.uint8)}),
    "a state that is a list": lambda parts, said: parts.update(
        {STATE + "nf4": torch.tensor([91, 93], dtype=torch.uint8)}
    ),
    "a state of floats": lambda parts, said: parts.update({STATE + "nf4": torch.zeros(9)}),
    "another shape": lambda parts, said: state_with(parts, shape=[64, 64]),
    "a shape of three": lambda parts, said: state_with(parts, shape=[64, 64, 2]),
    "a shape of texts": lambda parts, said: state_with(parts, shape=["64", "128"]),
    "a block of nothing": lambda parts, said: state_with(parts, blocksize=0),
    "another block": lambda parts, said: state_with(parts, blocksize=128),
    "an unknown dtype": lambda parts, said: state_with(parts, dtype="float64"),
    "an offset of text": lambda parts, said: state_with(parts, nested_offset="0"),
    "another kind inside": lambda parts, said: state_with(parts, quant_type="fp4"),
    "SCB beside it": lambda parts, said: parts.update(SCB=torch.ones(64)),
    "a kind nobody knows": lambda parts, said: said.update(bnb_4bit_quant_type="nf3"),
    "both at once": lambda parts, said: said.update(load_in_8bit=True),
    "neither": lambda parts, said: said.update(load_in_4bit=False),
    "no section": lambda parts, said: said.clear(),
    "plain by its section": lambda parts, said: said.update(llm_int8_skip_modules=["up_proj"]),
}
BAD_8: dict[str, Any] = {
    "SCB too short": lambda parts, said: parts.update(SCB=torch.ones(63)),
    "SCB of integers": lambda parts, said: parts.update(SCB=torch.ones(64, dtype=torch.int32)),
    "SCB is NaN": lambda parts, said: parts["SCB"][:1].fill_(torch.nan),
    "codes are unsigned": lambda parts, said: parts.update(weight=parts["weight"].view(torch.uint8)),
    "codes are floats": lambda parts, said: parts.update(weight=parts["weight"].float()),
    "another order": lambda parts, said: parts["weight_format"].fill_(2),
    "said to be 4 bits": lambda parts, said: said.update(load_in_8bit=False, load_in_4bit=True),
    "a scale beside it": lambda parts, said: parts.update(weight_scale=torch.ones(64, 1)),
}


@pytest.mark.parametrize("kind", [*BAD, *BAD_8])
def test_what_is_wrong_is_said(tmp_path: Path, kind: str) -> None:
    if kind in BAD:
        parts, said = four_bits(64, 128, nested=True)[0], dict(FOUR)
        BAD[kind](parts, said)
    else:
        parts = {"weight": torch.zeros(64, 128, dtype=torch.int8), "SCB": torch.ones(64)}
        parts["weight_format"], said = torch.tensor(0, dtype=torch.uint8), dict(EIGHT)
        BAD_8[kind](parts, said)
    with pytest.raises(IsobitError) as found:
        read_linear(checkpoint(tmp_path, parts, said), MODULE)
    message = str(found.value)
    assert len(message) < 1000 and (MODULE in message or "quantization_config" in message), message
