"""The Python interface: plan, quantize, load, LLM, evaluate, info. The commands of the same names call these functions.

What is wrong with an argument is said here, by its name, before anything is read (:mod:`isobit.arguments`). This file
only gathers: each function stands, with what it needs alone, in the file that it is taken from.
"""

from __future__ import annotations

from isobit.api.certifying import certify, check_certificate
from isobit.api.evaluating import bench, compare, evaluate, info
from isobit.api.finding import DEVICES, DTYPES, MOST_SEQUENCES, default_name, find
from isobit.api.loading import LLM, generator, load
from isobit.api.planning import plan
from isobit.api.quantizing import (
    DEFAULT_SHARD_BYTES,
    MOST_THREADS,
    SEARCHES,
    make_policy,
    output_folder,
    predict,
    quantize,
)
from isobit.api.speaking import talker
from isobit.api.transcribing import opened, read_sound, transcribe, transcribe_in_pieces
from isobit.engine.grammar import Grammar
from isobit.engine.loaded import Model
from isobit.engine.params import SamplingParams

LARGEST_SEED = 2**64 - 1

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "DEVICES",
    "DTYPES",
    "Grammar",
    "LARGEST_SEED",
    "LLM",
    "MOST_SEQUENCES",
    "MOST_THREADS",
    "Model",
    "SEARCHES",
    "SamplingParams",
    "bench",
    "certify",
    "check_certificate",
    "compare",
    "default_name",
    "evaluate",
    "find",
    "generator",
    "info",
    "load",
    "make_policy",
    "opened",
    "output_folder",
    "plan",
    "predict",
    "quantize",
    "read_sound",
    "talker",
    "transcribe",
    "transcribe_in_pieces",
]
