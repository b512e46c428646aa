"""The machine that kernels are chosen, compiled and launched for, as a value that is passed."""

from __future__ import annotations

from dataclasses import dataclass, field

from isobit.kernels.gpu.packs.record import Recorder
from isobit.targets.spec import Target

# Of a card that does not say how many it has, as under Triton's interpreter, and of the one that the proof imagines: an
# A100's. How far K is split depends on it.
USUAL_MULTIPROCESSORS = 108


@dataclass(frozen=True)
class Machine:
    """Whose lowering runs, on what.

    Attributes:
        target: the target whose lowering runs; the card at hand may be a newer one.
        multiprocessors: how many the card has.
        shared_memory: bytes on each of them.
        recorder: notes what would be launched, where nothing is; None on a card.
    """

    target: Target
    multiprocessors: int
    shared_memory: int
    recorder: Recorder | None = field(default=None, compare=False)

    @staticmethod
    def imagined(
        target: Target, multiprocessors: int = USUAL_MULTIPROCESSORS, recorder: Recorder | None = None
    ) -> Machine:
        """One that is not here."""
        return Machine(target, multiprocessors, target.shared_memory, recorder)
