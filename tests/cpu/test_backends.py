"""The choice of a kernel: rows only, and a reason from each row that cannot."""

from __future__ import annotations

import pytest

from isobit.errors import Unsupported, UsageError
from isobit.formats.schemes import SCHEMES, ActSpec, WeightSpec
from isobit.kernels.backends import LINEAR_KERNELS, LinearKernel, choose

INT8 = WeightSpec("int8", "channel")
REFERENCE = LINEAR_KERNELS[-1:]
FAST = LinearKernel("fast", "isobit.kernels.reference:bind", lambda w, a, d: None if a else "wants activations", 10)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_reference_runs_every_scheme_on_a_cpu(scheme) -> None:
    assert choose(scheme.weights, scheme.activations, "cpu", kernels=REFERENCE).name == "reference"


def test_a_new_row_is_enough_and_the_highest_priority_wins() -> None:
    rows = (*REFERENCE, FAST)
    assert choose(INT8, ActSpec("int8", "token"), "cpu", kernels=rows) is FAST
    assert choose(INT8, None, "cpu", kernels=rows).name == "reference"


def test_every_reason_is_listed() -> None:
    with pytest.raises(Unsupported) as refusal:
        choose(INT8, None, "xpu", kernels=(*LINEAR_KERNELS, FAST))
    assert len(refusal.value.reasons) == len(LINEAR_KERNELS) + 1
    assert "wants activations" in str(refusal.value) and "xpu" in str(refusal.value)


def test_a_row_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (*LINEAR_KERNELS, FAST)
    monkeypatch.setenv("ISOBIT_KERNEL", "reference")
    assert choose(INT8, ActSpec("int8", "token"), "cpu", kernels=rows).name == "reference"
    monkeypatch.setenv("ISOBIT_KERNEL", "fast")
    with pytest.raises(Unsupported, match="fast: wants activations"):
        choose(INT8, None, "cpu", kernels=rows)
    monkeypatch.setenv("ISOBIT_KERNEL", "nonesuch")
    with pytest.raises(UsageError, match="nonesuch.*reference"):
        choose(INT8, None, "cpu", kernels=rows)
