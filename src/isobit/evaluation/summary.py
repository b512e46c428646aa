"""What the report says in words, computed from the results. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.evaluation import wording
from isobit.evaluation.results import Results, SchemeResult

KL_BOUND = 0.05
"""Mean KL, in nats per token, under which the summary calls a format close to its source.

At 0.05 nats Pinsker's inequality bounds the mean total variation distance: sampling from the two models gives another
token in at most sqrt(0.05 / 2) = 16 % of the cases; measured top-1 agreement is usually above 90 %.
"""

TERMS = (
    (
        "bits/weight",
        "Stored bits per weight of the linear layers, scales and zero points included. Embeddings and norms count in "
        "the size, but not here.",
    ),
    (
        "perplexity",
        "How surprised the model is by the text: exp of the mean negative log-likelihood per token. Lower is better. "
        "It hides errors that cancel: a model can be wrong in new ways at an equal perplexity.",
    ),
    (
        "KL divergence",
        "How far the quantized model's distribution over the next token lies from the source's, in nats: 0 when they "
        "are the same. The mean is the typical loss; p99 is exceeded by one token in a hundred.",
    ),
    (
        "top-1 agreement",
        "The share of tokens where both models find the same next token most probable, so that greedy decoding goes on "
        "alike.",
    ),
    (
        "confidence interval",
        "Holds the value for all text of this kind in about 95 of 100 such measurements. It is made of how far whole "
        "windows lie apart, because neighbouring tokens are not independent, and is wide where windows are few.",
    ),
    (
        "relative error",
        "Length of the difference divided by the length of the original (Frobenius norm). 1 % is a signal-to-noise "
        "ratio of 40 dB.",
    ),
    ("token", "What the model reads and writes: a piece of text of a few characters."),
)


@dataclass(frozen=True)
class Tile:
    """One large figure and what it means."""

    value: str
    words: str


def heading(results: Results) -> str:
    """The title of the page."""
    if len(results.schemes) == 1:
        return f"{results.schemes[0].name}: what it keeps of {results.source.name}"
    return f"{results.source.name}: what quantization costs"


def smallest_close(results: Results) -> SchemeResult | None:
    """The smallest format whose mean KL is below :data:`KL_BOUND`, if there is one.

    Of formats within 1 % of the smallest size, the most faithful: a few bytes of header are no advantage.
    """
    close = [row for row in results.schemes if row.fidelity.kl_mean.value < KL_BOUND]
    least = min((row.size for row in close), default=0)
    alike = [row for row in close if row.size <= 1.01 * least]
    return min(alike, key=lambda row: row.fidelity.kl_mean.value, default=None)


def closest(results: Results) -> SchemeResult:
    """The format with the least mean KL."""
    return min(results.schemes, key=lambda row: row.fidelity.kl_mean.value)


def summary(results: Results) -> str:
    """One paragraph in plain words."""
    source = results.source
    bound = f"mean KL divergence below {KL_BOUND} nats per token"
    best = smallest_close(results)
    if best is None:
        nearest = closest(results)
        start = f"No format measured here stays close to {source.name} ({bound}); the closest is "
        return " ".join([f"{start}{_verdict(nearest, source.size)}.", *_extremes(results, nearest)])
    if len(results.schemes) == 1:
        return f"{_verdict(best, source.size)}. It stays close to {source.name} ({bound})."
    start = f"The smallest format that stays close to {source.name} ({bound}) is "
    return " ".join([f"{start}{_verdict(best, source.size)}.", *_extremes(results, best)])


def _verdict(row: SchemeResult, source_size: int) -> str:
    kept = wording.percent(row.fidelity.top1.value)
    factor = source_size / row.size
    smaller = f"{factor:.1f} times smaller than the source" if factor >= 1.05 else "no smaller than the source"
    return (
        f"{row.name}: {wording.size(row.size)} on disk, {smaller}; it picks the same next token {kept} of the time and "
        f"{_perplexity_change(row)}"
    )


def _perplexity_change(row: SchemeResult) -> str:
    change = row.fidelity.perplexity_ratio.value - 1
    if abs(change) < 5e-4:
        return "leaves perplexity as it was"
    return f"{'raises' if change > 0 else 'lowers'} perplexity by {100 * abs(change):.1f} %"


def _extremes(results: Results, named: SchemeResult) -> list[str]:
    """Sentences about the most and the least faithful of the lossy formats, unless they were named already."""
    lossy = [row for row in results.schemes if row.fidelity.kl_mean.value > 0 and row is not named]
    if not lossy:
        return []
    said = []
    best = min(lossy, key=lambda row: row.fidelity.kl_mean.value)
    worst = max(lossy, key=lambda row: row.fidelity.kl_mean.value)
    if best.fidelity.kl_mean.value < named.fidelity.kl_mean.value:
        kept = f"{wording.percent(best.fidelity.top1.value)} agreement at {wording.size(best.size)}"
        said.append(f"The most faithful of the lossy formats is {best.name}, with {kept}.")
    if worst.fidelity.kl_mean.value > named.fidelity.kl_mean.value:
        kept = wording.percent(worst.fidelity.top1.value)
        lost = 100 * (worst.fidelity.perplexity_ratio.value - 1)
        said.append(f"{worst.name} loses most: {kept} agreement, perplexity {lost:+.1f} %.")
    return said


def tiles(results: Results) -> list[Tile]:
    """The figures at the top, for the format that the summary is about."""
    best = smallest_close(results)
    row = best or closest(results)
    before, after = results.source.size, row.size
    own, found = results.source.likelihood, row.fidelity
    if len(results.schemes) == 1:
        meaning = row.note
    else:
        meaning = "closest format measured" if best is None else f"smallest format with a mean KL below {KL_BOUND}"
    return [
        Tile(row.name, meaning),
        Tile(f"{before / after:.1f}x", f"smaller: {wording.size(before)} becomes {wording.size(after)}"),
        Tile(wording.percent(found.top1.value), "of next tokens stay the same"),
        Tile(
            f"{100 * (found.perplexity_ratio.value - 1):+.2f} %",
            f"perplexity, {wording.perplexity(own.perplexity.value)} to {wording.perplexity(found.perplexity.value)}",
        ),
    ]
