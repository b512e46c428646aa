"""How long whole steps take, by format and batch. Made by benchmarks/fit_plan.py; not to be edited."""

from __future__ import annotations

from isobit.legalize.mixtures import Around, Experts
from isobit.legalize.pace import Pace

PACES: tuple[Pace, ...] = (
    Pace(
        ("nvidia", "amd"),
        "int8",
        True,
        "channel",
        0,
        ((1, 0.741), (8, 0.807), (64, 1.0), (256, 1.467)),
        0.863,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 1495a59: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int4",
        False,
        "group",
        128,
        ((1, 0.717), (8, 0.989), (64, 1.586), (256, 1.448)),
        0.825,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 1495a59: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "e4m3fn",
        True,
        "channel",
        0,
        ((1, 0.754), (8, 0.832), (64, 1.067), (256, 1.264)),
        0.8,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 1495a59: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "bfloat16",
        False,
        "",
        0,
        ((1, 0.852), (8, 0.993), (64, 1.129), (256, 1.416)),
        0.777,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 1495a59: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
)

EXPERTS: tuple[Experts, ...] = (
    Experts(
        ("nvidia", "amd"),
        "e4m3fn",
        True,
        "channel",
        0,
        0.924,
        0.0,
        ((64, 0.304), (128, 0.358)),
        5.77e-06,
        ("sm_90",),
        "NVIDIA H200: experts by themselves, random choices (benchmarks/results/gpu_tune_experts.csv)",
    ),
    Experts(
        ("nvidia", "amd"),
        "int4",
        False,
        "group",
        128,
        0.924,
        0.0901,
        ((64, 0.339),),
        5.77e-06,
        ("sm_90",),
        "NVIDIA H200: experts by themselves, random choices (benchmarks/results/gpu_tune_experts.csv)",
    ),
    Experts(
        ("nvidia", "amd"),
        "bfloat16",
        False,
        "",
        0,
        0.924,
        0.0,
        ((64, 0.339),),
        5.77e-06,
        (),
        "assumed: NVIDIA H200: experts by themselves, random choices (benchmarks/results/gpu_tune_experts.csv)",
    ),
)

AROUND = Around(
    ((1, 1.15e-06), (8, 1.86e-06), (64, 2.442e-05), (2048, 1.683e-05)),
    ("sm_90",),
    "NVIDIA H200, 2026-11-29: steps of two mixtures (benchmarks/results/gpu_experts.csv)",
)
