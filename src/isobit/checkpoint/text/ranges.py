"""What each setting of sampling may be: one table for options, the Python interface and generation_config.json."""

from __future__ import annotations

import math
from typing import Any

from isobit.checkpoint.jsonfile import short

# name: lowest, highest, the rule in words
NUMBERS: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "between 0 (greedy) and 100"),
    "top_p": (math.ulp(0.0), 1.0, "above 0 and at most 1"),
    "min_p": (0.0, 1.0, "between 0 and 1"),
    "repetition_penalty": (1e-3, 1e3, "between 0.001 and 1000; 1 is none"),
    "presence_penalty": (-2.0, 2.0, "between -2 and 2"),
    "frequency_penalty": (-2.0, 2.0, "between -2 and 2"),
}
MAX_LOGPROBS = 100
INTEGERS: dict[str, tuple[int, int]] = {
    "top_k": (0, 2**31 - 1),
    "seed": (-(2**63), 2**64 - 1),
    "max_tokens": (1, 2**31 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
MAX_STOP_STRINGS = 64
MAX_LOGIT_BIAS = 100.0


def problem(name: str, value: Any) -> str | None:
    """Why a setting cannot have this value; None if it can."""
    if name in NUMBERS:
        low, high, rule = NUMBERS[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            return f"{name} must be a number {rule}, not {short(value)}"
        return None
    lowest, highest = INTEGERS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        return f"{name} must be an integer between {lowest} and {highest}, not {short(value)}"
    return None
