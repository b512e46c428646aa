"""Widths that groups and blocks do not divide: another size is chosen, said, and loads in isobit and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import make_model, save, token_ids
from running import run

import isobit
from isobit.api.quantizing import predict
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import SchemeError
from isobit.formats.fitting import check_shape, fitted, refitted
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES, scheme
from isobit.models.planning import plans
from isobit.models.weights import load_model

# 576 inputs as SmolLM2 has them, 160 in down_proj, and 384, three groups of 128, in o_proj.
SIZES = {"hidden_size": 576, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2,
         "head_dim": 64, "attention_bias": False, "mlp_bias": False}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("int4", 576, "int4-g64"), ("int4", 160, "int4-g32"), ("int4", 1536, "int4"), ("int4", 40, "int4-g40"),
        ("int4-asym", 576, "int4-asym-g64"), ("w4a8", 576, "w4a8-g64"), ("int3", 576, "int3-g32"),
        ("int2", 48, "int2-g24"),
        ("int4-g64", 96, "int4-g32"), ("int4-g32", 576, "int4-g32"), ("int8-w8a16-g128", 576, "int8-w8a16-g64"),
        ("fp8-block", 576, "fp8"), ("fp8-block", 640, "fp8-block"), ("int8", 7, "int8"), ("bf16", 7, "bf16"),
    ],
)  # fmt: skip
def test_what_is_chosen(name: str, k: int, expected: str) -> None:
    found = fitted(scheme(name), k)
    assert found.name == scheme(expected).name
    if found.weights is not None:
        check_shape(found.weights, 8, k, "m", found.activations)


FIXED = [name for name, row in SCHEMES.items() if row.weights is not None and row.weights.scale is not None]


@pytest.mark.parametrize("name", [name for name, row in SCHEMES.items() if row.quantized and name not in FIXED])
def test_whatever_a_multiple_of_eight_divides_fits(name: str) -> None:
    for k in range(8, 1025, 8):
        found = fitted(SCHEMES[name], k)
        assert found.weights is not None
        check_shape(found.weights, 8, k, "m", found.activations)
        assert found.weights.element == SCHEMES[name].weights.element  # type: ignore[union-attr]
        assert bool(refitted(SCHEMES[name], [("m", k)])) == (found != SCHEMES[name])


@pytest.mark.parametrize("name", FIXED)
def test_groups_that_are_part_of_a_format_stay(name: str) -> None:
    row = SCHEMES[name]
    assert row.weights is not None and row.weights.group is not None
    k = 5 * row.weights.group + 8
    assert fitted(row, k) == row
    with pytest.raises(SchemeError, match=f"groups of {row.weights.group}, which are part of the format.*keep"):
        check_shape(row.weights, 8, k, "m", row.activations)


@pytest.mark.parametrize(("k", "other"), [(2056, "int4"), (2052, "int8-w8a16")])
def test_what_is_named_instead_of_a_fixed_group_fits(k: int, other: str) -> None:
    with pytest.raises(SchemeError, match=f"for example {other}$"):
        check_shape(SCHEMES["mxfp4-w16"].weights, 8, k, "m")  # type: ignore[arg-type]
    found = fitted(SCHEMES[other], k)
    assert found.weights is not None
    check_shape(found.weights, 8, k, "m", found.activations)


def test_what_nothing_divides_is_refused_as_ever() -> None:
    found = fitted(SCHEMES["int4"], 100)
    assert found == SCHEMES["int4"] and found.weights is not None
    with pytest.raises(SchemeError, match="no multiple of 8 divides it"):
        check_shape(found.weights, 8, 100, "m")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model("LlamaForCausalLM", **SIZES), tmp_path_factory.mktemp("m"), torch.bfloat16)


@pytest.mark.parametrize("name", ["int4", "int4-asym", "w4a8", "int3", "fp8-block"])
def test_it_is_said_written_and_read(source: Path, tmp_path: Path, name: str) -> None:
    report = isobit.quantize(source, tmp_path / "out", name, progress=False)
    wide, narrow = fitted(scheme(name), 576), fitted(scheme(name), 160)
    said = [note for note in report.notes if note.startswith(f"{name}: ")]
    others = {k for k in (160, 384, 576) if fitted(scheme(name), k) != scheme(name)}
    assert {int(note.partition(" inputs: ")[0].rpartition(" ")[2]) for note in said} == others
    assert (160 in others) == any(f"{narrow.name} for model.layers.0.mlp.down_proj" in note for note in said)
    assert any(f"{wide.name} for " in note and "and 7 more" in note for note in said)
    assert predict(source, tmp_path / "again", name).bits_per_weight == pytest.approx(report.bits_per_weight, abs=1e-4)
    ck = Checkpoint.open(tmp_path / "out")
    for module, row in (("self_attn.q_proj", wide), ("mlp.down_proj", narrow)):
        found = read_linear(ck, f"model.layers.1.{module}")
        assert isinstance(found.weight, QTensor)
        assert (found.weight.spec, found.activations) == (row.weights, row.activations)
    assert torch.isfinite(run(load_model(tmp_path / "out"), token_ids(8))).all()
    work, ((plan, *_),) = plans(source, targets=["cpu-avx512"], scheme_names=[name])
    assert work.layers == 2 and plan.action != "refused"
    assert any(f"{wide.name} for self_attn.q_proj" in note for note in plan.notes), plan.notes
    info = isobit.info(tmp_path / "out")
    assert {wide.name, narrow.name} <= {use.scheme for use in info.schemes}


@pytest.mark.parametrize("name", ["int4", "fp8-block"])
@torch.inference_mode()
def test_transformers_loads_the_same(source: Path, tmp_path: Path, name: str, capsys: Any) -> None:
    isobit.quantize(source, tmp_path / "out", name, progress=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"].values()
    assert sorted(str(group["weights"]["group_size"]) for group in groups) == (
        ["128", "32", "64"] if name == "int4" else ["None", "None"]
    )
    load: Callable[..., Any] = transformers.AutoModelForCausalLM.from_pretrained
    model, ids = load(tmp_path / "out", dtype=torch.float32).eval(), token_ids(12)
    ours, theirs = run(load_model(tmp_path / "out"), ids), model(ids).logits
    error = float((ours - theirs).norm() / ours.norm())
    assert error < (1e-4 if name == "int4" else 0.1)  # rounded activations: a sum in another order moves a code
