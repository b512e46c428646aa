"""Bad input is refused before anything is written, and the message names the file, the tensor and the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import tensors, write

from isobit.errors import CapacityError, CheckpointError, IsobitError, SchemeError, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.quantizer.driver import quantize

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def refuse(source: Path, name: str, error: type[IsobitError], match: str, *rules: tuple[str, str]) -> None:
    """Quantizing raises ``error``, and leaves no trace of an output."""
    out = source.parent / "out"
    policy = Policy(scheme(name), tuple(Rule(*rule) for rule in rules))
    with pytest.raises(error, match=match):
        quantize(source, out, policy, progress=False)
    assert not out.exists()


def test_a_missing_tensor(tmp_path: Path) -> None:
    weights = tensors()
    del weights[Q_PROJ]
    refuse(write(tmp_path / "src", weights), "fp8", CheckpointError, f"src.*{re.escape(Q_PROJ)}.*missing")


def test_a_surplus_tensor(tmp_path: Path) -> None:
    weights = tensors() | {"model.layers.0.mlp.extra.weight": torch.zeros(2, 2)}
    match = "model.safetensors.*mlp.extra.weight.*not a part of this model"
    refuse(write(tmp_path / "src", weights), "fp8", CheckpointError, match)


def test_a_tensor_of_another_shape_than_the_configuration_says(tmp_path: Path) -> None:
    weights = tensors() | {Q_PROJ: torch.zeros(64, 32, dtype=torch.bfloat16)}
    match = rf"model.safetensors.*{re.escape(Q_PROJ)}.*\[64, 32\].*config.json asks for \[64, 64\]"
    refuse(write(tmp_path / "src", weights), "fp8", CheckpointError, match)


def test_every_problem_is_listed(tmp_path: Path) -> None:
    weights = tensors() | {Q_PROJ: torch.zeros(64, 32, dtype=torch.bfloat16), "model.surplus": torch.zeros(1)}
    del weights["model.norm.weight"]
    match = r"(?s)3 tensors.*q_proj.*\(model.safetensors\).*\[64, 32\].*model.norm.weight.*missing.*model.surplus"
    refuse(write(tmp_path / "src", weights), "fp8", CheckpointError, match)


def test_widths_that_a_scheme_does_not_divide_get_another(tmp_path: Path) -> None:
    for name, instead in (("int4", ("int4-g64", "int4-g32")), ("fp8-block", ("fp8", "fp8"))):
        report = quantize(write(tmp_path / f"src-{name}"), tmp_path / name, Policy(scheme(name)), progress=False)
        said = "\n".join(report.notes)
        assert re.search(rf"{name}: .* do not divide 64 inputs: {instead[0]} for .*_proj.* and \d+ more", said)
        assert re.search(rf"{name}: .* do not divide 160 inputs: {instead[1]} for .*down_proj", said)


def test_a_width_that_no_group_divides(tmp_path: Path) -> None:
    weights = tensors()
    for name in [name for name in weights if ".mlp." in name]:
        shape = (64, 100) if "down_proj" in name else (100, 64)
        weights[name] = torch.zeros(shape, dtype=torch.bfloat16)
    match = "K = 100 is not a multiple of the group size 128, and no multiple of 8 divides it; keep this module"
    refuse(write(tmp_path / "src", weights, intermediate_size=100), "int4", SchemeError, match)


def test_a_rule_that_matches_nothing(tmp_path: Path) -> None:
    refuse(write(tmp_path / "src"), "fp8", UsageError, "'qproj'.*named like", ("qproj", "int8"))


def test_weights_that_are_quantized_already(tmp_path: Path) -> None:
    source = write(tmp_path / "src")
    quantize(source, tmp_path / "fp8", Policy(scheme("fp8")), progress=False)
    refuse(tmp_path / "fp8", "int8", CheckpointError, "config.json.*quantized already.*quantize the original")


def test_weights_of_a_dtype_that_is_no_plain_float(tmp_path: Path) -> None:
    weights = tensors() | {Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}
    refuse(write(tmp_path / "src", weights), "fp8", CheckpointError, f"{re.escape(Q_PROJ)}.*dtype is I8")


def test_an_architecture_nobody_knows(tmp_path: Path) -> None:
    refuse(
        write(tmp_path / "src", architectures=["Frobnicator"], model_type="frob"),
        "fp8",
        IsobitError,
        "Frobnicator|frob",
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def claim_a_huge_header(path: Path) -> None:
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])


def overlap(path: Path) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entry = header["model.norm.weight"]["data_offsets"]
    entry[:] = [entry[0] - 2, entry[1] - 2]
    body = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(data[:8] + body + data[8 + length :])


@pytest.mark.parametrize("damage", [truncate, claim_a_huge_header, overlap])
def test_a_damaged_shard(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    source = write(tmp_path / "src")
    damage(source / "model.safetensors")
    refuse(source, "fp8", CheckpointError, "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [Q_PROJ, "model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("to", ["fp8", "int4-g32", "bf16"])
def test_numbers_that_are_none(tmp_path: Path, name: str, value: float, to: str) -> None:
    weights = tensors()
    weights[name].view(-1)[5] = value
    refuse(write(tmp_path / "src", weights), to, CheckpointError, f"(?i)model.safetensors.*{name}.*(nan|infinite)")


def test_values_beyond_float16(tmp_path: Path) -> None:
    weights = tensors()
    weights["model.norm.weight"][3] = 1e6
    refuse(write(tmp_path / "src", weights), "f16", CheckpointError, "model.norm.weight.*beyond float16; use bf16")


def test_an_output_that_is_the_source(tmp_path: Path) -> None:
    source = write(tmp_path / "src")
    with pytest.raises(UsageError, match="is the source"):
        quantize(source, source / ".." / "src", Policy(scheme("fp8")), progress=False)


def test_a_disk_without_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isobit.checkpoint.room.free_bytes", lambda path: 100_000)
    refuse(write(tmp_path / "src"), "fp8", CapacityError, r"needs 15\d,\d\d\d bytes more, 100,000 are free")


@pytest.mark.parametrize(
    ("options", "match"),
    [({"threads": 0}, "threads"), ({"search": "best"}, "search"), ({"calibration": Path("x.txt")}, "leave it out")],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        quantize(write(tmp_path / "src"), tmp_path / "out", Policy(scheme("fp8")), progress=False, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
