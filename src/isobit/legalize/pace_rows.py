"""How long whole steps take, by format and batch. Made by benchmarks/fit_plan.py; not to be edited."""

from __future__ import annotations

from isobit.legalize.mixtures import Around, Experts
from isobit.legalize.pace import Pace

PACES: tuple[Pace, ...] = (
    Pace(
        ("nvidia", "amd"),
        "e4m3fn",
        True,
        ((1, 0.748), (8, 0.804), (64, 0.933), (256, 0.88)),
        1.124,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit e499e69: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int4",
        False,
        ((1, 0.709), (8, 0.954), (64, 1.43), (256, 1.192)),
        1.135,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit e499e69: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "bfloat16",
        False,
        ((1, 0.846), (8, 0.937), (64, 1.007), (256, 1.051)),
        1.089,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit e499e69: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
    ),
    Pace(
        ("nvidia", "amd"),
        "int8",
        True,
        ((1, 0.732), (8, 0.779), (64, 0.858), (256, 0.883)),
        1.194,
        ("sm_90",),
        "NVIDIA H200, 2026-11-28, commit e499e69: whole steps of a Llama-2-7B (benchmarks/results/engine_decode.csv)",
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
        0.0957,
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
    ((1, 3.3e-07), (8, 4.7e-06), (64, 1.661e-05), (2048, 1.683e-05)),
    ("sm_90",),
    "NVIDIA H200, 2026-11-28: steps of two mixtures (benchmarks/results/gpu_experts.csv)",
)
