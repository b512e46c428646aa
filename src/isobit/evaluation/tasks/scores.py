"""Log-probabilities of continuations, by the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isobit.engine.llm import LLM

# Sequences that are handed over at once: enough to fill every step, few enough that what waits stays small.
_AT_ONCE = 512


def score(
    llm: LLM,
    sequences: Sequence[Sequence[int]],
    first_scored: Sequence[int],
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> list[tuple[float, bool]]:
    """What the model makes of the last tokens of sequences.

    Sequences are worked on in the order of their tokens: what begins alike is neighbours, and computed once.

    Args:
        llm: the model.
        sequences: token ids, each no longer than the model's context.
        first_scored: place of the first token that counts, of each.
        progress: called with how many more are done.

    Returns:
        For each the sum of its tokens' log-probabilities, in nats, and whether each of them is the most probable one,
        which is what greedy decoding would have given.
    """
    order = sorted(range(len(sequences)), key=lambda place: tuple(sequences[place]))
    found: list[tuple[float, bool]] = [(0.0, True)] * len(sequences)
    for begin in range(0, len(order), _AT_ONCE):
        places = [place for place in order[begin : begin + _AT_ONCE] if first_scored[place] < len(sequences[place])]
        if places:
            scores = llm.score([sequences[p] for p in places], [first_scored[p] for p in places])
            for place, tokens in zip(places, scores, strict=True):
                found[place] = sum(token.logprob for token in tokens), all(token.greedy for token in tokens)
        progress(len(order[begin : begin + _AT_ONCE]))
    return found
