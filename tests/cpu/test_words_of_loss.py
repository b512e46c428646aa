"""What plans say that `bf16` and `f16` lose of a source is what casting its numbers loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from isobit.formats.schemes import SCHEMES
from isobit.legalize.advice import choose, loss_in_words, recommendation, rounding
from isobit.legalize.plan import AS_STORED, CODES, Plan
from isobit.models.planning import plans

DENSE = {name: row.dtype for name, row in SCHEMES.items() if row.dtype is not None}
SOURCES = ("float32", "bfloat16", "float16")


def numbers(dtype: str) -> torch.Tensor:
    """Every finite number of a dtype of 16 bits, float32 as it has them; of float32 some of each exponent."""
    if dtype != "float32":
        codes = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
        found = codes.view(getattr(torch, dtype)).float()
    else:
        found = torch.arange(0, 1 << 31, 65537, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return found[found.isfinite()]


def survives(values: torch.Tensor, dtype: str) -> torch.Tensor:
    return values.to(getattr(torch, dtype)).float() == values


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", DENSE)
def test_words_are_what_a_cast_does(name: str, source: str) -> None:
    values, dtype = numbers(source), DENSE[name]
    assert dtype is not None
    kept, said = survives(values, dtype), loss_in_words(SCHEMES[name], (source,))
    assert (said == "loses nothing") == bool(kept.all()), said
    if not kept.all():
        assert said.startswith("loses almost nothing (") and f"rounded to {name}" in said
        beyond = values.to(getattr(torch, dtype)).isinf() & (values.abs() < 1e38)
        assert ("65504" in said) == bool(beyond.any())
    if "2^-17" in said:
        inside = (values.abs() >= 2.0**-17) & (values.abs() <= 65504)
        assert kept[inside].all() and not kept[values.abs() < 2.0**-17].all()
    else:
        assert kept.all() or not kept[(values.abs() > 1) & (values.abs() < 2)].all()


def test_several_dtypes_and_codes_are_named() -> None:
    both = rounding("bfloat16", ("bfloat16", "float16", "float32"))
    assert both == "f16 weights are rounded to bf16, f32 weights are rounded to bf16"
    assert "codes stand for are rounded to bf16" in loss_in_words(SCHEMES["bf16"], (CODES,))
    assert all(loss_in_words(SCHEMES[name], ("float32",)) == loss_in_words(SCHEMES[name]) for name in ("int8", "int4"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save_model(tmp_path / "model")


def planned(model: Path, source: str, target: str, *names: str) -> list[Plan]:
    """Plans of a configuration alone, which says in what weights lie."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text()) | {"dtype": source}
    return plans(config, targets=[target], scheme_names=names, calibration=False)[1][0]


@pytest.mark.parametrize("target", ["cpu-avx2", "a6000"])
def test_the_advice_says_it_and_prefers_what_loses_nothing(model: Path, target: str) -> None:
    for source, best in (("bfloat16", "bf16"), ("float16", "f16")):
        for order in (("bf16", "f16"), ("f16", "bf16")):
            found = planned(model, source, target, *order)
            assert (chosen := choose(found)) is not None and chosen.scheme == best
            assert "loses nothing" in recommendation(found)
    for name in DENSE:
        said = recommendation(planned(model, "float32", target, name))
        assert f"loses almost nothing (f32 weights are rounded to {name}" in said and "loses nothing" not in said
    said = recommendation(planned(model, "float32", target, AS_STORED))
    assert ("of which f32 weights are rounded to bf16" in said) == (target == "a6000")
    assert "is what the checkpoint holds" in said


def test_the_tensors_count(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))  # though bf16 lies there
    found = plans(model, targets=["a6000"], scheme_names=["bf16", "f16"], calibration=False)[1][0]
    assert found[0].source == ("bfloat16",) and "loses nothing" in recommendation(found)
