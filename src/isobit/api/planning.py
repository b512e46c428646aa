"""plan: what will happen to a model on a machine, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.api.finding import model_named

if TYPE_CHECKING:
    from isobit.legalize.plan import Plan
    from isobit.legalize.workload import Workload


def plan(
    model: str | Path | Mapping[str, Any],
    *,
    targets: Iterable[str] = ("here",),
    schemes: Iterable[str] = (),
    context: int | None = None,
    batch: int = 1,
    kv: str | None = None,
    allow_relaxed: bool = False,
    memory: int | str | None = None,
    revision: str | None = None,
    calibration: bool | str | Path = True,
) -> tuple[Workload, list[list[Plan]]]:
    """What happens to a model under every scheme on every target, without weights, GPU or torch.

    Args:
        model: a ``config.json``, its contents, a folder with one, a Hugging Face id, or ``"bundled"``.
        targets: names of targets and boards, ``"all"``, ``"here"``.
        schemes: names of schemes, ``"as stored"``, or ``"all"``; none for what the checkpoint holds if it is quantized,
            else all.
        context: tokens of a sequence; by default 4096, or the model's longest context if that is shorter.
        batch: sequences at once.
        kv: format of the cache; by default that of the activations.
        allow_relaxed: whether a rounding point may be dropped where nothing else works.
        memory: what of each machine may be taken: bytes, or text like ``"20GiB"``; all of it if None.
        revision: branch, tag or commit of a Hugging Face id.
        calibration: whether speeds on this machine go by what :func:`bench` measured there; or the file that holds it.

    Returns:
        The model, and the plans of each machine, a scheme each.

    Raises:
        IsobitError: something named does not exist, or the model is not one that isobit runs.
    """
    from isobit.models.planning import LARGEST_BATCH, plans

    return plans(
        model if isinstance(model, Mapping) else model_named("model", model, revision),
        targets=arguments.texts("targets", targets),
        scheme_names=arguments.texts("schemes", schemes),
        context=arguments.optional_whole("context", context, 1),
        batch=arguments.whole("batch", batch, 1, LARGEST_BATCH),
        kv=arguments.optional_text("kv", kv),
        allow_relaxed=arguments.flag("allow_relaxed", allow_relaxed),
        memory=arguments.optional_memory("memory", memory),
        revision=revision,
        calibration=_calibration(calibration),
    )


def _calibration(given: object) -> bool | Path:
    """Whether measurements are used, or the file that holds them."""
    return given if isinstance(given, bool) else Path(arguments.path("calibration", given))
