"""Which kernel runs the experts of a layer: rows as those of linears (``backends``), chosen in the same way.

A binder is called with (mixture, keep_values=..., and what binders of this device take besides) and returns a
:class:`isobit.kernels.grouped.BoundMixture`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isobit.errors import Unsupported
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels import backends
from isobit.kernels.backends import Bound, LinearKernel
from isobit.kernels.grouped import Grouped, Mixture

Formats = Sequence[tuple[WeightSpec | None, ActSpec | None]]


def _as_linears(name: str) -> Callable[[WeightSpec | None, ActSpec | None, str], str | None]:
    """What the linears' row of a name takes."""

    def accepts(weights: WeightSpec | None, activations: ActSpec | None, device: str) -> str | None:
        row = next(row for row in backends.LINEAR_KERNELS if row.name == name)
        return row.accepts(weights, activations, device)

    return accepts


MIXTURE_KERNELS: tuple[LinearKernel, ...] = (
    LinearKernel("triton", "isobit.kernels.gpu.mixture:bind", _as_linears("triton"), priority=100, as_stored=True),
    LinearKernel("cpu", "isobit.kernels.cpu.experts:bind", _as_linears("cpu"), priority=50, as_stored=True),
    LinearKernel("reference", "isobit.kernels.reference_experts:bind", _as_linears("reference"), priority=0),
)


def rows() -> list[LinearKernel]:
    """The rows in the order in which they are asked; only the one that ISOBIT_KERNEL names, if one has that name.

    Raises:
        UsageError: it names no kernel at all.
    """
    name = backends.forced()
    named = [row for row in MIXTURE_KERNELS if row.name == name]
    return named or sorted(MIXTURE_KERNELS, key=lambda row: -row.priority)


def why_not(row: LinearKernel, formats: Formats, device: str) -> str | None:
    """Why a row cannot run experts of some formats, or None."""
    return next((why for one in formats if (why := row.accepts(*one, device)) is not None), None)


def bind(mixture: Mixture, *, device: str, keep_values: bool = False, **options: object) -> Bound:
    """Binds experts to the first row that takes them.

    Args:
        mixture: they.
        device: ``cpu`` or ``cuda``.
        keep_values: see the reference kernel.
        options: what binders of this device take besides.

    Raises:
        Unsupported: no row takes them; has the reason of each.
        UsageError: ISOBIT_KERNEL names no row.
    """
    reasons: list[str] = []
    for row in rows():
        floats = _with_float_scales(mixture)
        refusals: list[str] = []
        for given in (mixture, floats) if row.as_stored and floats is not mixture else (floats,):
            reason = why_not(row, given.formats, device)
            if reason is None:
                try:
                    return Bound(row, row.bind(given, keep_values=keep_values, **options), tuple(reasons))
                except Unsupported as refusal:
                    reason = "; ".join(refusal.reasons)
            refusals.append(reason)
        reasons.append(f"{row.name}: {'; '.join(dict.fromkeys(refusals))}")
    raise Unsupported("experts of these formats", reasons)


def _with_float_scales(mixture: Mixture) -> Mixture:
    """With scales of few bits as floats, which are the same values; itself where it has none."""
    gate, up, down = (part.with_float_scales() for part in mixture.parts)
    parts: tuple[Grouped, Grouped, Grouped] = (gate, up, down)
    return mixture if parts == mixture.parts else Mixture(*parts, mixture.gating, mixture.on_input)
