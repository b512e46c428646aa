"""What plans say of latent attention, and how its kernels are compiled: from the same rows."""

from __future__ import annotations

import pytest

from isobit.kernels.gpu import latent_tiles as tiles
from isobit.kernels.gpu.latent_tiles import LatentShape, ProductShape
from isobit.kernels.gpu.layer_rows import LAYER_ROWS
from isobit.legalize.ops import Lowering, Op, Refusal
from isobit.legalize.planner import decide
from isobit.legalize.text import describe
from isobit.models.archs.deepseek_v3 import tiny
from isobit.models.planning import plans
from isobit.models.workload import workload
from isobit.targets.table import TARGETS


def attention(target: str, dtype: str = "bfloat16", kv: str = "", rank: int = 512) -> Lowering | Refusal:
    return decide(
        Op("attention", "self_attn", 16, 192, dtype=dtype, kv=kv or dtype, kv_heads=1, kept=(rank, 64)), TARGETS[target]
    )


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942"])
@pytest.mark.parametrize("kv", ["", "e4m3fn", "int8"])
def test_plans_name_the_kernels(target: str, kv: str) -> None:
    found = attention(target, kv=kv)
    assert isinstance(found, Lowering)
    assert found.kernels == ("latent-few-bf16", "latent-many-bf16") and not found.notes


@pytest.mark.parametrize(
    ("target", "dtype", "rank"),
    [("sm_75", "float16", 512), ("gfx1100", "bfloat16", 512), ("sm_90", "float32", 512), ("sm_90", "bfloat16", 640),
     ("cpu-avx2", "float32", 640)],
)  # fmt: skip
def test_plans_say_where_pytorch_runs_it(target: str, dtype: str, rank: int) -> None:
    found = attention(target, dtype, rank=rank)
    assert isinstance(found, Lowering) and found.kernels == ("torch latent attention",)
    assert found.notes == ("latent attention runs in PyTorch, one sequence after the other",)
    if TARGETS[target].is_gpu:
        assert tiles.unsupported(64, rank, dtype, TARGETS[target])


@pytest.mark.parametrize(("target", "said"), [("gfx1100", True), ("sm_90", False), ("cpu-avx2", False)])
def test_a_plan_of_a_model_says_that_pytorch_runs_it(target: str, said: bool) -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **tiny()}
    found = plans(config, targets=[target], scheme_names=["int8"], calibration=False)[1][0][0]
    assert any("latent attention runs in PyTorch" in line for line in describe([found])) is said


def test_a_plan_says_which_layers_are_left_out() -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **tiny()}
    assert not any("guess further tokens" in note for note in workload(config).notes)
    notes = workload(config | {"num_nextn_predict_layers": 1}).notes
    assert any("guess further tokens (1 by config.json) are left out" in note for note in notes)


def test_cpus_have_a_kernel_of_their_own() -> None:
    found = attention("cpu-avx2", "float32", "bfloat16")
    assert isinstance(found, Lowering) and found.kernels == ("cpu latent attention",) and not found.notes


def test_what_the_kernels_do_not_take_has_a_reason() -> None:
    target = TARGETS["sm_90"]
    assert tiles.unsupported(64, 512, "bfloat16", target) is None
    assert "up to 512 dimensions, not 513" in str(tiles.unsupported(64, 513, "bfloat16", target))
    assert "up to 128 rotated dimensions, not 130" in str(tiles.unsupported(130, 512, "bfloat16", target))
    assert "not in float32" in str(tiles.unsupported(64, 512, "float32", target))
    assert "matrix unit" in str(tiles.unsupported(64, 512, "float16", TARGETS["sm_75"]))
    assert "RDNA" in str(tiles.unsupported(64, 512, "float16", TARGETS["gfx1201"]))


def test_tiles_fit_the_shared_memory_of_every_target_that_has_them() -> None:
    rows = [row for row in LAYER_ROWS if row.attends == "latent"]
    assert len(rows) == 4
    for target in TARGETS.values():
        if not target.is_gpu or tiles.requires(target) is not None:
            continue
        for row in rows:
            for config in row.configurations(target) if row.requires(target) is None else ():
                keys, stages = int(config.constexprs["BLOCK_N"] or 0), config.num_stages
                size = 1 if config.constexprs["ELEMENT"] else 2
                assert keys * 576 * size * stages <= target.shared_memory, (target.name, row.name)
                assert config.constexprs["PART"] % keys == 0 if "PART" in config.constexprs else True


def test_parts_depend_on_lengths_alone() -> None:
    assert [tiles.parts_of(16, most) for most in (1, 256, 257, 4096, 1 << 20)] == [1, 1, 3, 32, 32]
    assert [tiles.parts_of(heads, 1 << 20) for heads in (1, 20, 64, 128, 100_000)] == [32, 32, 32, 16, 4]
    assert [tiles.part_of(heads) for heads in (16, 32, 64)] == [128, 128, 256]
    assert tiles.programs_of(4, 1, 132) == 4 and tiles.programs_of(32, 1000, 132) == 2


def test_where_bits_must_be_alike_there_is_one_way() -> None:
    plain = LatentShape("bfloat16", 16)
    alike = LatentShape("bfloat16", 16, alike=True)
    assert (plain.few, alike.few) == (1, 0)
    target = TARGETS["sm_90"]
    few, many = (tiles.product(ProductShape(alike, True, more), target) for more in (False, True))
    assert few == many
    few, many = (tiles.product(ProductShape(plain, True, more), target) for more in (False, True))
    assert few != many
