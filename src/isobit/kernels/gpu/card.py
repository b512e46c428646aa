"""The card at hand, as PyTorch sees it."""

from __future__ import annotations

import torch

from isobit.kernels.gpu.machine import Machine
from isobit.targets.spec import Target
from isobit.targets.table import target as lookup


def here() -> Target:
    """The target of the current device.

    Raises:
        Unsupported: it is no target that is known.
    """
    if torch.version.hip is not None:
        return lookup(torch.cuda.get_device_properties().gcnArchName.partition(":")[0])
    major, minor = torch.cuda.get_device_capability()
    return lookup(f"sm_{major}{minor}")


def machine(target: Target | None = None) -> Machine:
    """The machine at hand; an imagined one where PyTorch sees no card, as under Triton's interpreter.

    Args:
        target: whose lowering runs; None for the card's own.
    """
    target = target or here()
    if not torch.cuda.is_available():
        return Machine.imagined(target)
    card = torch.cuda.get_device_properties()
    return Machine(target, int(card.multi_processor_count), int(card.shared_memory_per_multiprocessor))
