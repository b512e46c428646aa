"""How long whole steps take, by format and batch. Made by benchmarks/fit_plan.py; not to be edited."""

from __future__ import annotations

from isobit.legalize.mixtures import Around, Experts
from isobit.legalize.pace import Pace

PACES: tuple[Pace, ...] = (
    Pace(
        ("nvidia", "amd"),
        "bfloat16",
        False,
        "",
        0,
        ((1, 0.846), (8, 0.934), (64, 0.989), (256, 1.065)),
        1.094,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 18296d9: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "e4m3fn",
        True,
        "channel",
        0,
        ((1, 0.748), (8, 0.806), (64, 0.942), (256, 0.856)),
        1.11,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 18296d9: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int8",
        True,
        "channel",
        0,
        ((1, 0.735), (8, 0.78), (64, 0.861), (256, 0.916)),
        1.192,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 18296d9: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int4",
        False,
        "group",
        128,
        ((1, 0.707), (8, 0.948), (64, 1.47), (256, 1.18)),
        1.12,
        ("sm_90",),
        "NVIDIA H200, 2026-11-29, commit 18296d9: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
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
        ((64, 0.304), (128, 0.5)),
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
        0.0958,
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
    ((1, 3.8e-07), (8, 4.11e-06), (64, 1.601e-05), (2048, 1.683e-05)),
    ("sm_90",),
    "NVIDIA H200, 2026-11-28: steps of two mixtures (benchmarks/results/gpu_experts.csv)",
)
