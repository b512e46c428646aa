"""How long whole steps take, by format and batch. Made by benchmarks/fit_plan.py; not to be edited."""

from __future__ import annotations

from isobit.legalize.pace import Pace

PACES: tuple[Pace, ...] = (
    Pace(
        ("nvidia", "amd"),
        "e4m3fn",
        True,
        ((1, 0.861), (8, 0.887), (64, 1.04)),
        1.0,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit 54c4c95: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int8",
        True,
        ((1, 0.838), (8, 0.862), (64, 1.017)),
        1.0,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit 54c4c95: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int4",
        False,
        ((1, 0.824), (8, 1.088), (64, 1.537)),
        1.0,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit 54c4c95: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "bfloat16",
        False,
        ((1, 0.953), (8, 0.956), (64, 1.059)),
        1.0,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit 54c4c95: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
)
