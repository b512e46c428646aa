"""An evaluation in plain text, a line for every figure: what `isobit eval` prints, and `print(evaluation)`."""

from __future__ import annotations

from collections.abc import Callable

from isobit.evaluation import wording
from isobit.evaluation.fidelity import Fidelity
from isobit.evaluation.likelihood import Likelihood
from isobit.evaluation.results import Method
from isobit.evaluation.statistics import CONFIDENCE, Estimate


def describe(model: str, own: Likelihood, lost: Fidelity | None, method: Method) -> str:
    """What was measured of a model, with intervals where there are some, and what is to be said about them."""
    windows = f"{own.windows} window{'s' if own.windows > 1 else ''} of {method.ctx}"
    lines = [f"{model} on {method.text}: {own.tokens:,} tokens scored in {windows}", ""]
    rows = facts(own, lost)
    width = max(len(name) for name, _, _ in rows)
    for name, estimate, show in rows:
        span = wording.interval(estimate, show)
        told = f"   {100 * CONFIDENCE:.0f} %: {span}" if span else ""
        lines.append(f"{name:<{width}}  {show(estimate.value):>10}{told}")
    lines.append("")
    for path, models in method.models_by_path().items():
        lines.append(f"{', '.join(models)} ran on {path}")
    if (doubt := wording.doubt(own.windows)) is not None:
        lines += ["", doubt]
    return "\n".join(lines)


def facts(own: Likelihood, lost: Fidelity | None) -> list[tuple[str, Estimate, Callable[[float], str]]]:
    """(name, estimate, how to write it) of every figure."""
    rows: list[tuple[str, Estimate, Callable[[float], str]]] = [
        ("perplexity", own.perplexity, wording.decimals(4)),
        ("bits per byte", own.bits_per_byte, wording.decimals(4)),
    ]
    if lost is None:
        return rows
    return [
        *rows,
        ("perplexity of source", lost.source_perplexity, wording.decimals(4)),
        ("perplexity ratio", lost.perplexity_ratio, wording.decimals(5)),
        ("KL mean (nats)", lost.kl_mean, wording.significant),
        ("KL p99 (nats)", lost.kl_p99, wording.significant),
        ("top-1 agreement", lost.top1, wording.percent_exact),
    ]
