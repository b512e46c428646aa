"""A line on standard error where a model runs through the reference path though nobody asked for it."""

from __future__ import annotations

import os
import sys
from typing import Any


def warn(model: Any) -> None:
    """Says what runs through the reference path, and why; nothing where ISOBIT_KERNEL asks for it.

    Args:
        model: what ``load_generator`` has loaded, a :class:`isobit.models.decoder.Decoder`.
    """
    reasons = [linear.reasons for _, linear in model.linears()]
    slow = [why[-1] for why in reasons if why and why[-1].startswith("cpu: ")]  # of the row before the reference
    for why in dict.fromkeys(slow):
        count = f"{slow.count(why)} of {len(reasons)} linear layers"
        print(f"isobit: note: {count} run through the reference path, slowly: {why[5:]}", file=sys.stderr)
    lacks = model.kernels_lack
    if lacks is not None and os.environ.get("ISOBIT_KERNEL") != "reference":
        print(f"isobit: note: attention and norms run in PyTorch, slowly: the kernel {lacks}", file=sys.stderr)
