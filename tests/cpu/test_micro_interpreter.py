"""Codes under few-bit scales (MX, NVFP4) on the GPU kernels in Triton's interpreter, in processes of their own."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from test_experts_interpreter import printed

from isobit.kernels.gpu.rows import variant
from isobit.proof.claims import claims_of
from isobit.targets.table import target

# Roundings and codes are bits; of a whole mixture: float16 between its parts, which moves codes of e2m1 by a quarter.
LIMITS = {"rounding": 0.0, "linear": 1e-6, "codes": 0.0, "experts": 1e-6, "whole": 1e-1, "model": 1.5}


def failures(results: dict[str, float], kind: str) -> dict[str, float]:
    chosen = {name: error for name, error in results.items() if name.startswith(kind)}
    assert len(chosen) >= 2
    return {name: error for name, error in chosen.items() if not error <= LIMITS[kind]}


@pytest.fixture(scope="module")
def results() -> dict[str, float]:
    return dict(printed("interpreter_micro.py", "roundings", "linears", "signs", "codes", "mixed", "models"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIMITS)
def test_they_are_rounded_and_multiplied_by_the_law(kind: str, results: dict[str, float]) -> None:
    assert not failures(results, kind)
    rows = {word for name in results for word in name.split() if word.startswith(("few-", "many-"))}
    assert "linear signed signs many-nvfp4" in results and "linear plain signs many-nvfp4-native" in results
    assert {"many-mxfp4-native", "many-mxfp8-native", "many-nvfp4-native", "few-nvfp4-f16"} <= rows


def test_the_unit_of_sm_100_is_told_to_apply_the_scales() -> None:
    """Of 8-bit floats its machine code has one mnemonic, with scales or without: the portable assembly tells."""
    from isobit.kernels.gpu.compile.build import compile_request

    claim = claims_of(variant("many-mxfp8-native"), target("sm_100"))[0]
    assert "kind::mxf8f6f4.block_scale" in compile_request(claim.request).asm["ptx"]


def test_a_slice_of_that() -> None:
    found = dict(printed("interpreter_micro.py", "thin"))
    assert not failures(found, "rounding") and not failures(found, "linear")
