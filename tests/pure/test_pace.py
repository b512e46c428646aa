"""Plans of whole steps, by batch: within a tenth of what the engine was measured at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from isobit.legalize.cost import Cost
from isobit.legalize.ops import Op
from isobit.legalize.pace import EXPECTED, Pace, pace
from isobit.legalize.pace_rows import PACES
from isobit.legalize.text import describe
from isobit.models.planning import plans
from isobit.targets.prefill import prompt_tokens
from isobit.targets.table import target

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FP8 = Pace(("nvidia",), "e4m3fn", True, "channel", 0, ((1, 1.0), (8, 2.0), (64, 4.0)), 0.5, ("sm_90",), "measured")
INT4 = Pace(("nvidia",), "int4", False, "group", 128, ((1, 3.0),), 1.0, ("sm_90",), "measured")


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> object:
    pytest.importorskip("torch")  # shapes.py writes checkpoints, too
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fit_plan

    yield fit_plan
    for name in ("fit_plan", "fit_mixtures", "gpu_experts", "common", "shapes"):
        sys.modules.pop(name, None)


def test_plans_are_within_a_tenth_of_measured_steps(fit: object) -> None:
    steps = fit.measured(BENCHMARKS / "results" / "engine_decode.csv")  # type: ignore[attr-defined]
    assert len(steps) >= 8 and {step.batch for step in steps} >= {1, 8, 64}
    for step in steps:
        assert fit.apart(step) == pytest.approx(1.0, abs=0.1), step  # type: ignore[attr-defined]


def test_rows_are_made_of_what_was_measured(fit: object) -> None:
    steps = fit.measured(BENCHMARKS / "results" / "engine_decode.csv")  # type: ignore[attr-defined]
    for row in PACES:
        assert any(step.where in row.source for step in steps), "run benchmarks/fit_plan.py"
        assert [batch for batch, _ in row.points] == sorted({batch for batch, _ in row.points})


def test_plans_of_mixtures_are_near_measured_steps(fit: object) -> None:
    mixed = fit.fit_mixtures  # type: ignore[attr-defined]
    steps = mixed.measured()
    assert {(step.shape, step.batch) for step in steps} >= {("qwen3-30b-a3b", 64), ("mixtral-8x7b", 8)}
    for step in steps:
        assert mixed.apart(step) == pytest.approx(1.0, abs=mixed.limit(step)), step
        if step.weights == "without" and not step.prompt:  # a mean: tokens chose by chance
            assert mixed.apart(step, chance=True) == pytest.approx(1.0, abs=0.07), step


def test_prompts_are_read_together() -> None:
    hopper, other = target("sm_90"), target("sm_86")
    assert [prompt_tokens(hopper, 4096, due) for due in (64, 4096, 8191, 8192, 1 << 20)] == [64, 2048, 2048, 8192, 8192]
    assert [prompt_tokens(other, 4096, due) for due in (64, 8192)] == [64, 2048]


def test_between_points_and_beyond() -> None:
    assert [FP8.at(number) for number in (1, 8, 64, 1000)] == [1.0, 2.0, 4.0, 4.0]
    assert FP8.at(3) == pytest.approx(1 + 0.528, abs=1e-3) and 2.0 < FP8.at(9) < FP8.at(63) < 4.0
    assert INT4.at(1) == INT4.at(99) == 3.0


def test_the_nearest_row_is_taken() -> None:
    from isobit.formats.schemes import scheme

    def op(name: str) -> Op:
        row = scheme(name)
        return Op("linear", "x", 4096, 4096, row.weights, row.activations)

    rows, hopper = (FP8, INT4), target("sm_90")
    assert pace(op("fp8"), hopper, rows) is FP8 and pace(op("int8"), hopper, rows) is FP8
    assert pace(op("int4"), hopper, rows) is INT4 and pace(op("int3"), hopper, rows) is INT4
    assert pace(op("fp8"), target("cpu-avx2"), rows) is EXPECTED and pace(op("fp8"), hopper, ()) is EXPECTED


@pytest.mark.parametrize("name", ["bf16", "fp8", "int8", "int4"])
def test_whole_steps_that_were_timed_are_called_measured(name: str) -> None:
    assert said_of(name) == (True, False)


@pytest.mark.parametrize(
    "name", ["f16", "fp8-e5m2", "fp8-static", "fp8-block", "fp8-w8a16", "int8-w8a16", "int4-g32", "int4-asym", "int3"]
)
def test_other_formats_are_estimates_and_say_why(name: str) -> None:
    assert said_of(name) == (False, True)


def said_of(name: str) -> tuple[bool, bool]:
    """Whether a 7B's plan for an H200 has measured figures, and whether it says that no such step was timed."""
    sizes = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    sizes |= {"num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes}
    found = plans(config, targets=["h200"], scheme_names=[name], calibration=False)[1][0][0]
    assert found.cost is not None
    assert any("~" in line for line in describe([found])[:6]) != found.cost.measured, "the table marks it"
    return found.cost.measured, any("were not timed" in line for line in found.cost.sources)


def figures(scheme: str, board: str, batch: int, context: int = 256, **sizes: int) -> Cost:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}
    given = {"vocab_size": 128256, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    given |= {"hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 8192} | sizes
    found = plans(
        config | given, targets=[board], scheme_names=[scheme], calibration=False, batch=batch, context=context
    )[1][0][0].cost  # fmt: skip
    assert found is not None
    return found


def test_the_format_that_most_weights_have_sets_the_pace_whatever_the_vocabulary() -> None:
    """An output projection of a large vocabulary is more bytes than any other matrix, or than all in few bits."""
    small = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    by_scheme = {row.weights: row for row in PACES}
    for sizes in ({}, small):
        assert figures("int4", "h200", 64, **sizes).pace == by_scheme["int4"].at(64)
        assert figures("bf16", "h200", 64, **sizes).pace == by_scheme["bfloat16"].at(64)
        assert figures("int4", "h200", 64, **sizes).measured and not figures("int3", "h200", 64, **sizes).measured


def test_heads_in_groups_take_longer_and_longer_where_parts_are_merged() -> None:
    def step(heads: int, context: int) -> float:
        return 1 / figures("int4", "h200", 1, context, num_key_value_heads=heads).decode

    bytes_alone = 32 * 128 * (32 - 8) * 128 * 4 / 3e12  # those of keys and values that are fewer, generously
    assert step(8, 128) - step(32, 128) > 32 * 7e-6 - bytes_alone - 32 * 3 * 4096**2 / 2 / 3e12
    assert step(8, 513) - step(8, 512) > 32 * 2.9e-6


@pytest.mark.parametrize(
    ("board", "scheme"), [("t4", "int8"), ("v100", "int8"), ("a6000", "fp8"), ("rx7900xtx", "int8"), ("h200", "int2")]
)
def test_more_sequences_are_not_slower_than_fewer(board: str, scheme: str) -> None:
    decode = [figures(scheme, board, batch).decode for batch in (1, 8, 64, 128, 256, 1024)]
    assert decode == sorted(decode)
