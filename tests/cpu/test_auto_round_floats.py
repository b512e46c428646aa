"""AutoRound's floats, in its own section beside the tensors of compressed-tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from foreign_layouts import MODULE, TOOLS
from hf_checkpoints import CONFIG, write

from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import CheckpointError, Unsupported
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import name_of

# What AutoRound 0.16 writes for the scheme MXFP4.
MXFP4: dict[str, Any] = {
    "act_bits": 4, "act_data_type": "mx_fp", "act_dynamic": True, "act_group_size": 32, "act_sym": True,
    "autoround_version": "0.16.1", "bits": 4, "block_name_to_quantize": "model.layers", "data_type": "mx_fp",
    "enable_quanted_input": False, "group_size": 32, "packing_format": "auto_round:llm_compressor",
    "quant_method": "auto-round", "sym": True,
}  # fmt: skip


def opened(folder: Path, tool: str, **changes: Any) -> Checkpoint:
    parts = TOOLS[f"compressed-tensors, {tool}"].make(256, 128, 3)
    said = {"quantization_config": {key: one for key, one in (MXFP4 | changes).items() if one is not None}}
    return Checkpoint.open(write(folder, CONFIG | said, {f"{MODULE}.{part}": one for part, one in parts.items()}))


@pytest.mark.parametrize(
    ("tool", "name", "changes"),
    [
        ("mxfp4-w16", "mxfp4", {}),
        ("mxfp4-w16", "mxfp4-w16", {"act_bits": 16}),
        ("mxfp4-w16", "mxfp4-w16", {"act_bits": None, "act_data_type": None}),
        ("mxfp8", "mxfp8", {"bits": 8, "act_bits": 8}),
        ("nvfp4", "nvfp4", {"data_type": "nv_fp", "act_data_type": "nv_fp4_with_static_gs", "group_size": 16}),
    ],
)
def test_the_numbers_of_compressed_tensors(tmp_path: Path, tool: str, name: str, changes: dict[str, Any]) -> None:
    ck = opened(tmp_path / "m", tool, **changes)
    parts = TOOLS[f"compressed-tensors, {tool}"].make(256, 128, 3)
    tensors = {f"{MODULE}.{part}": one for part, one in parts.items()}
    plain = write(tmp_path / "ct", CONFIG | TOOLS[f"compressed-tensors, {tool}"].config, tensors)
    read, wanted = read_linear(ck, MODULE), read_linear(Checkpoint.open(plain), MODULE)
    assert isinstance(read.weight, QTensor) and name_of(read.weight.spec, read.activations) == name
    assert read.numbers().equal(wanted.numbers()) and not ck.notes


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data_type": "int"}, "mx_fp of 4 bits"), ({"bits": 6}, "of 6 bits"), ({"group_size": 64}, "groups are of 64"),
        ({"act_bits": 8}, "inputs are 'mx_fp' of 8 bits"), ({"act_data_type": "fp"}, "inputs are 'fp' of 4 bits"),
        ({"packing_format": "auto_round:mlx"}, "auto_round:llm_compressor"),
    ],
)  # fmt: skip
def test_other_floats_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        read_linear(opened(tmp_path / "m", "mxfp4-w16", **changes), MODULE)


def test_exceptions(tmp_path: Path) -> None:
    other = {MODULE: {"bits": 16}}
    with pytest.raises(CheckpointError, match="says that this module is not"):
        read_linear(opened(tmp_path / "a", "mxfp4-w16", extra_config=other), MODULE)
    eight = {".*up_proj.*": {"bits": 8, "act_bits": 16}}
    read = read_linear(opened(tmp_path / "b", "mxfp8", extra_config=eight), MODULE)
    assert isinstance(read.weight, QTensor) and name_of(read.weight.spec, read.activations) == "mxfp8-w16"
    with pytest.raises(CheckpointError, match="extra_config must hold JSON objects"):
        read_linear(opened(tmp_path / "c", "mxfp4-w16", extra_config=[4]), MODULE)
