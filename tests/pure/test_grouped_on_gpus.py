"""Which GPUs read caches whose groups share a scale, of which heads, and what plans say."""

from __future__ import annotations

import pytest

from isobit.formats.caches import CACHE_FORMATS
from isobit.kernels.gpu.grouped_tiles import groups_of, is_grouped, unread, unread_latents
from isobit.kernels.gpu.layer_rows import LAYER_ROWS
from isobit.kernels.gpu.variant import has_bf16
from isobit.legalize.kernels import ATTENTION_KERNELS
from isobit.targets.table import TARGETS, target

FORMATS = [row.kv for row in CACHE_FORMATS.values() if row.group]
GPUS = [name for name, one in TARGETS.items() if one.backend is not None]


@pytest.mark.parametrize(
    ("kv", "read", "refused"),
    [
        ("mxfp8", (24, 32, 64, 80, 96, 128, 256), (16,)),
        ("mxfp4", (64, 128, 256), (16, 32, 80, 96, 192)),
        ("nvfp4", (32, 64, 128, 256), (16, 24, 80, 96)),
    ],
)
def test_heads_that_are_read(kv: str, read: tuple[int, ...], refused: tuple[int, ...]) -> None:
    for dim in read:
        assert unread(kv, dim, target("sm_90")) is None, dim
    for dim in refused:
        assert f"not of {dim}" in (unread(kv, dim, target("sm_90")) or ""), dim


def test_wide_heads_are_refused_where_registers_are_few() -> None:
    for kv in FORMATS:
        assert unread(kv, 256, target("gfx942")) is None and unread(kv, 128, target("gfx1100")) is None
        assert "up to 128 numbers on gfx1100" in (unread(kv, 256, target("gfx1100")) or "")


@pytest.mark.parametrize("kv", FORMATS)
def test_latents_that_are_read(kv: str) -> None:
    for rank, rotated in ((512, 64), (256, 64), (128, 128)):
        assert unread_latents(kv, rank, rotated, target("sm_90")) is None
    for rank, rotated in ((512, 48), (512, 16), (16, 64)):
        assert unread_latents(kv, rank, rotated, target("sm_90")), (rank, rotated)


@pytest.mark.parametrize("name", GPUS)
def test_a_target_reads_them_where_it_has_bfloat16_and_says_so_elsewhere(name: str) -> None:
    one = TARGETS[name]
    for kv in FORMATS:
        rows = [row for row in ATTENTION_KERNELS if one.vendor in row.vendors and kv in row.cache and not row.latent]
        assert len(rows) == 1
        reason = rows[0].unread(kv, (128, 128), one)
        assert (reason is None) == (has_bf16(one) is None)
        if reason is None:
            names = rows[0].names(one, "bfloat16")
            assert names == ("attention-few-bf16", "attention-many-bf16"), "what reads one token alone does not"
        else:
            assert name in reason and kv in reason


def test_other_caches_are_none_of_these() -> None:
    for element in ("", "e4m3fn", "e5m2", "int8"):
        assert not is_grouped(element) and unread(element, 20, target("sm_75")) is None
        assert groups_of(element, "a", "b").constants == {"a": None, "b": None}
    assert not any(row.groups for row in LAYER_ROWS if row.name.startswith(("attention-one", "attention-ahead")))
