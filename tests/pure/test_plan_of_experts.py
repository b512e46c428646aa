"""Plans of mixtures of experts: what a token needs of all the weights, and what a batch of tokens reads."""

from __future__ import annotations

import random
import re
from statistics import mean
from typing import Any

import pytest

from isobit.errors import CheckpointError
from isobit.formats.schemes import scheme
from isobit.legalize.memory import USABLE, activation_bytes
from isobit.legalize.mixtures import Tiles, nearest, tiles
from isobit.legalize.ops import Lowering, Op
from isobit.legalize.pace_rows import AROUND, EXPERTS
from isobit.legalize.plan import Plan
from isobit.legalize.text import as_data, describe, overview
from isobit.models.archs import family
from isobit.models.planning import plans
from isobit.models.workload import workload
from isobit.targets.prefill import MIXED, experts_at_once
from isobit.targets.table import lookup
from isobit.targets.table import target as target_named

QWEN: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
    "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "moe_intermediate_size": 768,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip


def planned(config: dict[str, Any], batch: int = 1, target: str = "h200") -> Plan:
    return plans(config, targets=[target], scheme_names=["fp8"], batch=batch, calibration=False)[1][0][0]


@pytest.mark.parametrize(
    ("config", "whole", "active"), [(QWEN, 30_532_122_624, 3_353_000_000), (MIXTRAL, 46_702_792_704, 12_879_925_248)]
)
def test_parameters_are_those_of_the_published_models(config: dict[str, Any], whole: int, active: int) -> None:
    work = workload(config)
    assert work.parameters == whole and work.active_parameters == pytest.approx(active, rel=1e-3)
    assert "billion of them for a token" in work.title


def test_a_batch_reads_the_experts_that_its_tokens_choose_among_them() -> None:
    op = Op("linear", "up", 8, 8, count=6144, experts=128, active=8)
    assert op.read(1) == pytest.approx(1 / 16) and op.read(2) == pytest.approx(1 - (15 / 16) ** 2)
    assert op.read(10_000) == pytest.approx(1) and op.calls == 48 and op.share == 1 / 16
    assert Op("linear", "up", 8, 8, count=3).read(1) == 1 and Op("linear", "up", 8, 8, count=3).calls == 3
    one, many, all_of_them = (planned(QWEN, batch).cost for batch in (1, 8, 1024))
    assert one and many and all_of_them
    experts = 48 * 128 * 3 * 768 * 2048
    # between two batches nothing but experts and the cache is read that was not read before
    cache = 4096 * 98304
    assert many.step_bytes - one.step_bytes == pytest.approx(7 * cache + experts * (15 / 16 - (15 / 16) ** 8), rel=2e-2)
    assert one.step_bytes < 4.2e9 < 29e9 < all_of_them.step_bytes - 1024 * cache
    assert one.measured and not many.measured, "that choices are by chance is an assumption, where there are several"
    assert [any("choose their experts by themselves" in line for line in found.sources) for found in (one, many)] == [
        False, True,
    ]  # fmt: skip


def test_tokens_lie_in_tiles_of_an_expert_each() -> None:
    assert tiles(1, 128, 8) == Tiles(1, 8, pytest.approx(8), 8)
    eight = tiles(8, 128, 8)
    assert eight.width == 8 and eight.experts == pytest.approx(128 * (1 - (15 / 16) ** 8))
    assert eight.count == pytest.approx(eight.experts)
    drawn, wide = random.Random(1), tiles(2048, 128, 8)
    counts = [sum(drawn.random() < 1 / 16 for _ in range(2048)) for _ in range(400)]
    assert wide.count == pytest.approx(128 * mean(-(-count // wide.width) for count in counts), rel=0.03)
    assert tiles(1 << 30, 128, 8).count == pytest.approx((1 << 30) * 8 / 128, rel=1e-3) and tiles(9, 4, 4).experts == 4
    assert tiles(5000, 128, 8).count == pytest.approx(tiles(4096, 128, 8).count * 5000 / 4096, rel=0.05)


def test_experts_take_at_least_what_their_bytes_do_and_grow_with_tokens() -> None:
    row, (_, board) = EXPERTS[0], lookup("h200")
    op, size = (
        Op("linear", "up", 768, 2048, scheme("fp8").weights, count=48 * 128, experts=128, active=8),
        48 * 128 * 768 * 2048,
    )
    assert board is not None
    found = [row.seconds(op, size, tiles(count, 128, 8), 1979e12, board) for count in (1, 2, 8, 64, 512, 4096)]
    assert found == sorted(found) and found[0] > size / 16 / board.bandwidth
    assert AROUND.at(1) <= AROUND.at(3) <= AROUND.at(8) < AROUND.at(64) and AROUND.at(4096) == 2 * AROUND.at(2048)
    a6000 = lookup("a6000")[1]
    assert a6000 is not None and row.seconds(op, size, tiles(8, 128, 8), 155e12, a6000) > 4 * found[2]


@pytest.mark.parametrize(
    ("name", "like"), [("int8", "e4m3fn"), ("int3", "int4"), ("mxfp4", "int4"), ("bf16", "bfloat16")]
)
def test_experts_in_other_formats_are_as_those_of_the_nearest(name: str, like: str) -> None:
    row = scheme(name)
    op = Op("linear", "up", 768, 2048, row.weights, row.activations, experts=128, active=8)
    found = nearest(op, target_named("sm_90"), EXPERTS)
    assert found is not None and found.weights == like and nearest(op, target_named("cpu-avx2"), EXPERTS) is None


def test_the_table_of_many_machines_marks_what_was_not_measured_there() -> None:
    lines = overview(plans(QWEN, targets=["h200", "h100", "mi300x"], scheme_names=["fp8"], calibration=False)[1])
    figures = [line for line in lines if line.startswith(("sm_", "gfx"))]
    marked = [bool(re.search(r"(native|legal\.) ~\d", line)) for line in figures]
    assert marked == [line.startswith("gfx") for line in figures] and len(figures) == 3, lines
    dense = {key: value for key, value in MIXTRAL.items() if "experts" not in key}
    dense |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    lines = overview(plans(dense, targets=["h200", "h100", "mi300x"], scheme_names=["fp8"], calibration=False)[1])
    assert any(re.search(r"H200 .*native \d", line) for line in lines), lines


def test_a_token_is_multiplied_by_its_own_experts_alone() -> None:
    found = planned(MIXTRAL).cost
    assert found is not None
    work = workload(MIXTRAL)
    matrices = work.active_parameters - work.vocab * work.hidden  # the embedding is looked up
    assert found.token_operations == pytest.approx(2 * matrices + 2 * 32 * 4096 * 4096, rel=2e-2)


def test_experts_are_one_line_of_a_plan_and_never_run_as_the_largest_calls() -> None:
    found = {op.name: (op, decision) for op, decision in planned(QWEN).ops}
    op, decision = found["mlp.experts.*.up_proj"]
    assert (op.count, op.experts, op.active) == (48 * 128, 128, 8) and isinstance(decision, Lowering)
    assert decision.sizes and not [name for _, name in decision.sizes if name.startswith("large")]
    assert found["mlp.gate"][0].weights is None


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "glm4_moe", "gpt_oss", "llama4_text", "granitemoe"])
def test_every_kind_of_mixture_is_planned_on_every_kind_of_machine(name: str) -> None:
    config = {"model_type": name} | family(name).tiny()
    for target in ("h200", "here"):
        found = planned(config, target=target)
        assert all(isinstance(decision, Lowering) for _, decision in found.ops)
        assert found.memory is not None and found.memory.weights > 0


GPTQ_ORDER = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True}
SMALL = QWEN | {"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize("ordered", [True, False])
def test_experts_whose_inputs_have_an_order_of_their_own_are_planned_as_plain_floats(ordered: bool) -> None:
    work = workload(SMALL | {"quantization_config": GPTQ_ORDER | {"desc_act": ordered}})
    assert work.stored is not None
    assert (work.stored("model.layers.1.mlp.experts.0.up_proj")[0] is None) == ordered
    assert work.stored("model.layers.1.self_attn.q_proj")[0] is not None


def test_experts_of_a_layer_in_two_formats_are_refused_before_anything_is_loaded() -> None:
    fp8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    groups = {
        "a": {"targets": ["Linear"], "weights": fp8},
        "b": {"targets": ["re:.*experts.1.up_proj"], "weights": fp8 | {"strategy": "tensor"}},
    }
    said = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    with pytest.raises(CheckpointError, match=r"experts are stored in different ways: .*experts\.1\.up_proj"):
        workload(SMALL | {"quantization_config": said | {"ignore": ["lm_head"]}})


def test_integers_of_few_bits_with_zero_points_are_said_to_take_four() -> None:
    said = {"quantization_config": GPTQ_ORDER | {"bits": 2, "sym": False, "desc_act": False}}
    assert "integers of 2 bits with zero points take 4 bits each in memory" in workload(SMALL | said).notes


@pytest.mark.parametrize(
    ("name", "timed"),
    [("fp8", True), ("fp8-block", False), ("int4", True), ("int4-g32", False), ("int4-g64", False), ("bf16", False)],
)
def test_only_the_scales_that_were_timed_are_called_measured(name: str, timed: bool) -> None:
    found = plans(QWEN, targets=["h200"], scheme_names=[name], calibration=False)[1][0][0].cost
    assert found is not None and found.measured == timed
    row = scheme(name)
    op = Op("linear", "up", 768, 2048, row.weights, row.activations, experts=128, active=8)
    near = nearest(op, target_named("sm_90"), EXPERTS)
    assert near is not None and near.is_of(op) == (timed or name == "bf16")


def test_prompts_of_mixtures_go_in_longer_steps_where_that_pays_and_there_is_room() -> None:
    def piece(config: dict[str, Any], target: str = "h200", memory: int | None = None, name: str = "fp8") -> int:
        return plans(config, targets=[target], scheme_names=[name], memory=memory, calibration=False)[1][0][0].piece

    assert piece(QWEN) == piece(QWEN, "a100 80gb", name="int4") == MIXED == 8192
    assert piece(QWEN, "here") == 512 and piece(QWEN, "v100 32gb", name="w4a8") == 2048, "on a CPU; refused"
    dense = {
        key: value
        for key, value in QWEN.items()
        if "expert" not in key and key not in ("moe_intermediate_size", "norm_topk_prob")
    }
    dense |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    assert piece(dense) == 2048 and piece(dense | {"hidden_size": 4096}) == 8192, "as was measured of dense models"
    found = planned(QWEN).memory
    beside = found.total - found.kv
    assert piece(QWEN, memory=int((beside + (1 << 30)) / USABLE)) == 2048, "the cache has a GiB"
    assert piece(QWEN, memory=int((beside + (20 << 30)) / USABLE)) == 8192


def test_longer_steps_are_said_and_take_their_memory_and_give_their_speed() -> None:
    short, long = (planned(QWEN | {"max_position_embeddings": 8192}, batch) for batch in (1, 2))
    assert short.piece == long.piece == 8192 and short.cost and long.cost
    assert long.memory.activations - short.memory.activations > 512 << 20, "8192 tokens are due, and 4096 are not"
    assert long.cost.prefill > 1.1 * short.cost.prefill
    assert short.cost.measured and not long.cost.measured and any("not measured" in line for line in long.cost.sources)
    for plan in (short, long):
        said = "Prompts are read 8192 tokens at a time where so many are due, else 2048."
        assert said in describe([plan]) and as_data(plan)["prompt_tokens_at_once"] == 8192
    tight, wide = (
        plans(QWEN, targets=["h200"], scheme_names=["fp8", "int4"], memory=size << 30, calibration=False)[1][0]
        for size in (36, 100)
    )
    assert [plan.piece for plan in tight] == [2048, 8192]
    assert "Prompts are read 8192 tokens at a time where so many are due (int4), else 2048." in describe(tight)
    assert not any("(int4)" in line for line in describe(wide))


def test_experts_run_in_turns_where_their_results_are_many() -> None:
    assert experts_at_once(2048, 8) == 8192 and experts_at_once(7168, 8) < 2 * 2048 and experts_at_once(1 << 40, 8) == 1
    work, target, board = workload(QWEN), target_named("sm_90"), lookup("h200")[1]
    assert board is not None
    sizes = [activation_bytes(work, "bfloat16", tokens, 1, target) for tokens in (2048, 8192, 16384)]
    pairs = 8192 * 8 * (4 * 2048 + 3 * 768 * 2)
    assert (
        sizes[1] == pairs + 8192 * 5 * 2048 * 2 and sizes[2] == sizes[1] + 8192 * 5 * 2048 * 2 and sizes[0] < sizes[1]
    )
