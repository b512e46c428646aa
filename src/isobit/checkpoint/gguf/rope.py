"""The rotary embedding of a GGUF file, as config.json would say it."""

from __future__ import annotations

import math
import struct
from itertools import product
from typing import Any

from isobit.checkpoint.gguf.header import Entry
from isobit.checkpoint.gguf.keys import Keys, shortest
from isobit.checkpoint.gguf.model import Gguf
from isobit.checkpoint.regular import open_regular, why
from isobit.errors import CheckpointError

FACTORS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_CLOSE = 1e-5
_BOUNDS = ((1.0, 4.0), (1.0, 1.0))  # low and high of Llama 3.1 and all its successors, and of Llama 4
_ORIGINALS = tuple(1 << power for power in range(4, 21))  # contexts that were trained with


def rope_keys(keys: Keys, gguf: Gguf, head_dim: int) -> dict[str, Any]:
    """Keys of config.json.

    Args:
        keys: the family's.
        gguf: the model.
        head_dim: width of a head.

    Raises:
        CheckpointError: a scaling that cannot be said there; names the file.
    """
    theta = keys.number("rope.freq_base", 10000.0)
    turned = keys.integer("rope.dimension_count", head_dim)
    found: dict[str, Any] = {"rope_theta": theta}
    if turned != head_dim:
        found["partial_rotary_factor"] = turned / head_dim
    scaling = _scaling(keys) if LONG not in gguf.tensors else _longrope(keys, gguf, turned)
    factors = gguf.tensors.get(FACTORS)
    if factors is not None:
        if scaling is not None:
            message = "stands beside rope.scaling.type: one of them counts"
            raise CheckpointError(message, file=factors.file, tensor=FACTORS)
        scaling = _llama3(factors, theta, turned)
    if scaling is not None:
        found["rope_scaling"] = scaling
    return found


def _longrope(keys: Keys, gguf: Gguf, dims: int) -> dict[str, Any]:
    """Phi's scaling, with a factor for each frequency; what attention is multiplied by follows from the contexts."""
    if SHORT not in gguf.tensors:
        raise CheckpointError("stands without the short ones", file=gguf.tensors[LONG].file, tensor=LONG)
    long, short = (list(map(shortest, _numbers(gguf.tensors[name]))) for name in (LONG, SHORT))
    if {len(long), len(short)} != {dims // 2}:
        message = f"holds {len(long)} factors, the short ones are {len(short)}; {dims // 2} are wanted"
        raise CheckpointError(message, file=gguf.tensors[LONG].file, tensor=LONG)
    keys.raw("rope.scaling.attn_factor"), keys.raw("rope.scaling.type")
    original = keys.integer("rope.scaling.original_context_length", high=1 << 31)
    return {"rope_type": "longrope", "long_factor": long, "short_factor": short,
            "original_max_position_embeddings": original}  # fmt: skip


def _scaling(keys: Keys) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "linear" if keys.raw("rope.scale_linear") is not None else "none")
    original = keys.raw("rope.scaling.original_context_length")
    if kind == "none":
        keys.raw("rope.scaling.factor")  # of what is none
        return None
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        keys.fail("rope.scaling.type", "isobit reads none, linear and yarn from GGUF files")
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    if original is not None:
        found["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length", high=1 << 31)
    for name, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"),
                      ("attention_factor", "yarn_attn_factor")):  # fmt: skip
        if keys.raw(f"rope.scaling.{key}") is not None:
            found[name] = keys.number(f"rope.scaling.{key}")
    if keys.number("rope.scaling.attn_factor", 1.0) != 1.0:
        keys.fail("rope.scaling.attn_factor", "only 1 is read")
    return found


def _llama3(entry: Entry, theta: float, dims: int) -> dict[str, Any]:
    """The scaling of Llama 3.1 whose factors a file has: it holds those, not what they were made of."""
    factors = _numbers(entry)
    if len(factors) != dims // 2 or not all(math.isfinite(factor) and factor > 0 for factor in factors):
        message = f"holds {len(factors)} factors of frequencies; {dims // 2} positive numbers are wanted"
        raise CheckpointError(message, file=entry.file, tensor=entry.name)
    largest = max(factors)
    for (low, high), original in product(_BOUNDS, _ORIGINALS):
        made = llama3_factors(theta, dims, largest, original, low, high)
        if all(math.isclose(one, other, rel_tol=_CLOSE) for one, other in zip(made, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": _rounded(largest),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise CheckpointError(
        "holds factors of frequencies that are not those of Llama 3.1 and its successors; isobit reads no others",
        file=entry.file,
        tensor=entry.name,
    )


def llama3_factors(
    theta: float, dims: int, factor: float, original: int, low: float = 1.0, high: float = 4.0
) -> list[float]:
    """What each frequency is divided by: ``factor`` for those with fewer than ``low`` turns in the original context, 1
    for those with more than ``high``."""
    found = []
    for pair in range(dims // 2):
        turns = original / (2 * math.pi * theta ** (2 * pair / dims))
        smooth = float(turns > high) if low == high else min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def _rounded(value: float) -> float:
    return round(value) if math.isclose(value, round(value), rel_tol=_CLOSE) and round(value) else value


def _numbers(entry: Entry) -> tuple[float, ...]:
    if entry.type.plain != "F32" or entry.nbytes > 1 << 16:
        raise CheckpointError("is no short list of float32 numbers", file=entry.file, tensor=entry.name)
    try:
        with open(open_regular(entry.file), "rb") as file:
            file.seek(entry.begin)
            data = file.read(entry.nbytes)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {why(error)}", file=entry.file, tensor=entry.name) from None
    if len(data) != entry.nbytes:
        raise CheckpointError("the file was cut off while it was read", file=entry.file, tensor=entry.name)
    return struct.unpack(f"<{entry.nbytes // 4}f", data)
