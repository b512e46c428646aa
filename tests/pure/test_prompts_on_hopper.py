"""Prompts and large batches on H100 and H200: which attention makes weights under the next products, and tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isobit.formats.schemes import WeightSpec
from isobit.kernels.gpu.ahead_tiles import attention_ahead, misfit_ahead
from isobit.kernels.gpu.configure import Call, configure
from isobit.kernels.gpu.fits import Matrix
from isobit.kernels.gpu.layer_rows import LAYER_ROWS
from isobit.kernels.gpu.layer_tiles import AttentionShape, attention_many
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rows import variant
from isobit.kernels.gpu.selection import size_class
from isobit.kernels.gpu.tiles import row_scaled
from isobit.proof.claims import claims
from isobit.targets.table import TARGETS

USUAL = AttentionShape("bfloat16", 32, 8, 128, block=64)


def test_warp_groups_that_multiply_by_themselves_are_there_on_one_target() -> None:
    assert [name for name, target in TARGETS.items() if misfit_ahead(USUAL, target) is None] == ["sm_90"]
    rows = [row for row in LAYER_ROWS if row.name.startswith("attention-ahead")]
    assert {claim.target for claim in claims(rows, TARGETS.values())} == {"sm_90"}
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": "float32"}, "stored"), ({"element": "e4m3fn"}, "stored"), ({"dim": 80}, "80 numbers"),
        ({"dim": 256}, "256 numbers"), ({"block": 16}, "16 tokens"),
    ],
)  # fmt: skip
def test_what_it_does_not_take_has_a_reason(change: dict[str, object], why: str) -> None:
    found = misfit_ahead(replace(USUAL, **change), TARGETS["sm_90"])  # type: ignore[arg-type]
    assert found is not None and (why in found or "no matrix unit" in found)


@pytest.mark.parametrize("dim", [64, 128])
def test_two_programs_share_a_multiprocessor(dim: int) -> None:
    target = TARGETS["sm_90"]
    config = attention_ahead(replace(USUAL, dim=dim, window=True, sinks=True), target)
    ring = 2 * (int(config.constexprs["DEPTH"] or 0) + 1) * int(config.constexprs["BLOCK_N"] or 0)
    held = 2 * dim * (ring + int(config.constexprs["BLOCK_M"] or 0))
    assert 2 * (held + 1024) <= 228 << 10  # what there is, a KiB of which each program takes for itself
    assert config.constexprs["WINDOW"] and config.constexprs["SINKS"] and not config.constexprs["CHUNK"]
    many = attention_many(replace(USUAL, dim=dim, window=True, sinks=True), target)
    assert many.signature == config.signature
    assert many.constexprs["BLOCK_N"] == config.constexprs["BLOCK_N"]  # in whose steps sums have one order


def test_int8_of_many_tokens_shares_a_multiprocessor_where_sums_leave_registers_free() -> None:
    found = row_scaled("many", "*i8", "*i8", "native", rounded=True, native="int8")(TARGETS["sm_90"])
    constants = found.constexprs
    stage = int(constants["BLOCK_K"] or 0) * (int(constants["BLOCK_N"] or 0) + int(constants["BLOCK_M"] or 0))
    assert 2 * (found.num_stages * stage + 1024) <= 228 << 10
    few = row_scaled("few", "*i8", "*i8", "native", rounded=True, native="int8")(TARGETS["sm_90"])
    assert few.constexprs["BLOCK_M"] == 16


def test_a_batch_of_256_has_tiles_for_all_multiprocessors() -> None:
    machine = Machine.imagined(TARGETS["sm_90"])
    o = Matrix(4096, 4096, WeightSpec("int8", "channel"))
    configs = {
        tokens: configure(variant("many-int8-native"), Call(o, "bfloat16", tokens), machine) for tokens in (256, 1023)
    }
    assert [configs[256].constexprs[name] for name in ("BLOCK_N", "BLOCK_M", "SPLIT_K")] == [64, 128, 1]
    assert configs[1023].constexprs["BLOCK_N"] == 128
    assert size_class(129) == size_class(255) and size_class(256) == 256 and size_class(257) > 256
    nibbles = configure(
        variant("many-int4-bf16"), Call(Matrix(4096, 4096, WeightSpec("int4", "group", 128)), "bfloat16", 256), machine
    )
    assert nibbles.num_stages == 3
