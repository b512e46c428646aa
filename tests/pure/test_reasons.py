"""No row of a plan is worse than native without a reason, and rows name what they speak of as all else does."""

from __future__ import annotations

from typing import Any

import pytest
from published_configs import LLAMA3
from test_plan_of_experts import MIXTRAL, QWEN

from isobit.formats.fitting import fitted
from isobit.formats.schemes import SCHEMES
from isobit.legalize import text
from isobit.legalize.ops import Lowering
from isobit.legalize.plan import Plan
from isobit.models.planning import plans
from isobit.targets.table import TARGETS, reference_board

BOARDS = tuple(row.name for row in TARGETS.values() if reference_board(row) is not None)
MODELS = {"llama": LLAMA3, "mixtral": MIXTRAL}


def every(config: dict[str, Any], **options: Any) -> list[Plan]:
    found = plans(config, targets=["all"], scheme_names=["all"], calibration=False, **options)[1]
    assert len(found) >= len(BOARDS) > 10
    return [plan for of_one in found for plan in of_one]


@pytest.mark.parametrize(("kv", "relaxed"), [(None, False), ("int8", True)])
@pytest.mark.parametrize("name", MODELS)
def test_rows_that_are_not_native_say_why(name: str, kv: str | None, relaxed: bool) -> None:
    seen = set()
    for plan in every(MODELS[name], kv=kv, allow_relaxed=relaxed):
        seen.add(plan.action)
        where = f"{plan.scheme} on {plan.target.name}: {plan.action}, {plan.reasons}"
        assert (plan.action == "native") == (not plan.reasons), where
        assert all(plan.reasons) and text.as_data(plan)["reasons"] == list(plan.reasons), where
        if plan.action == "refused":
            continue
        told = " ".join(" ".join(text.describe([plan])).split())
        assert ("not native: " in told) == (plan.action != "native"), where
        named = {op.name: decision for op, decision in plan.ops if isinstance(decision, Lowering)}
        main = plan.main[1]
        for reason in plan.reasons:
            module = reason.partition(": ")[0]
            if isinstance(main, Lowering) and reason == main.reason:
                continue
            assert named[module].action == plan.action != main.action, where  # what makes the row what it is
            assert reason == f"{module}: {named[module].reason}" and named[module].reason in told, where
    assert seen >= {"native", "legalized", "refused"}


@pytest.mark.parametrize("scheme", ["int8", "w4a8"])
def test_native_linears_beside_a_projection_that_is_not(scheme: str) -> None:
    """`isobit doctor` says native of the linears; the row, which the output projection makes legalized, says so."""
    plan = plans(LLAMA3, targets=["cpu-avx2"], scheme_names=[scheme], calibration=False)[1][0][0]
    assert plan.main[1].action == "native" and plan.action == "legalized"
    assert plan.reasons == ("lm_head: cpu-avx2 has no instruction for bf16 x f32",)
    assert "    not native: lm_head: cpu-avx2 has no instruction for bf16 x f32" in text.describe([plan])


@pytest.mark.parametrize("config", [QWEN | {"moe_intermediate_size": 800}, MIXTRAL | {"intermediate_size": 14400}])
def test_notes_name_experts_as_ops_are_named(config: dict[str, Any]) -> None:
    plan = plans(config, targets=["a6000"], scheme_names=["int4"], calibration=False)[1][0][0]
    other = [op for op, _ in plan.ops if op.weights is not None and fitted(SCHEMES["int4"], op.k) != SCHEMES["int4"]]
    experts = [op.name for op in other if op.experts]
    assert experts and all(".experts.*." in name for name in experts)
    said = [note for note in plan.notes if "do not divide" in note]
    listed = [name for note in said for name in note.partition(" for ")[2].partition(" and ")[0].split(", ")]
    assert set(listed) <= {op.name for op in other} and set(listed) & set(experts)
