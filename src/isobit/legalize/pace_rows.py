"""How long whole steps take, by format and batch. Made by benchmarks/fit_plan.py; not to be edited."""

from __future__ import annotations

from isobit.legalize.pace import Pace

PACES: tuple[Pace, ...] = (
    Pace(
        ("nvidia", "amd"),
        "e4m3fn",
        True,
        ((1, 1.106), (8, 1.369), (64, 2.658), (256, 3.715)),
        0.756,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit 291dda2: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int4",
        False,
        ((1, 1.197), (8, 1.746), (64, 5.196), (256, 2.926)),
        0.721,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit 291dda2: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
)
