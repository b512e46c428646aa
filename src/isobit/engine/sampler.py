"""From logits to the next tokens of many requests at once: penalties, temperature, truncation, a draw.

The order of the steps, the same for every request (it is transformers'). Before all of them, tokens that the request's
constraint does not allow go (:mod:`isobit.engine.constraint`):

1. what ``logit_bias`` names is added;
2. repetition penalty, over the tokens of prompt and output: a positive logit is divided by it, another multiplied;
3. presence and frequency penalty, over the output alone: ``logit -= presence + frequency * count``;
4. temperature: logits are divided by it; 0 takes the largest logit (the smallest id among equals) and ends here;
5. top_k: the k most probable tokens stay (those equal to the k-th too);
6. top_p: of what is left, the smallest set whose probability reaches top_p stays;
7. min_p: tokens below min_p times the probability of the most probable one go;
8. one uniform number in [0, 1) picks a token from the distribution that is left, in the order of ids.

Where a request asks for repetition-aware sampling, :mod:`isobit.engine.repetition` takes the place of 5 to 8.

All of it in float64. A row depends on its own logits, its request's settings, seed and tokens alone: it is the same
bits alone or beside any others (:mod:`isobit.engine.distribution`). Logprobs are of the model's own distribution,
before any of these steps.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isobit.engine import distribution, masking, repetition
from isobit.engine.constraint import Constraint
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.tally import Tally
from isobit.errors import IsobitError

_CACHED = 1 << 16  # float64 numbers


class Chooser:
    """What the choice of a request's tokens depends on besides logits: settings, tokens, its own random numbers.

    Args:
        params: how.
        prompt: token ids, which the repetition penalty counts.
        constraint: what the answer may be made of; None for anything.

    Attributes:
        ahead: whether a token can be chosen before the one in front of it is known.
        plain: whether the largest logit is its token; quiet: whether that is all that it wants to know.
        remembers: whether :meth:`add` makes a difference.
        aware: whether a token that came too often lately is drawn again; ``recent`` has those that count.
    """

    def __init__(
        self, params: SamplingParams, prompt: Iterable[int] = (), constraint: Constraint | None = None
    ) -> None:
        self.params, self.constraint = params, constraint
        self.repeats = params.repetition_penalty != 1
        self.counts = bool(params.presence_penalty or params.frequency_penalty)
        self.draws = params.temperature > 0
        changes = self.repeats or self.counts or params.logit_bias or constraint is not None
        self.plain = not (self.draws or changes)
        self.quiet = self.plain and params.logprobs is None
        self.remembers = self.draws or self.repeats or self.counts or constraint is not None
        self._prompt = prompt if self.repeats else ()
        self._uniforms: deque[float] = deque()
        aware = params.repetition_aware if self.draws else None
        self.aware = aware is not None
        self._each = 1 + self.aware  # numbers that a token may need
        self.recent: deque[int] = deque(maxlen=aware.window if aware else 0)
        self.ahead = not (self.repeats or self.counts or self.aware or constraint is not None)

    # Made for those that need them: most requests do not, and many arrive at once.

    @cached_property
    def seen(self) -> Tally:
        """Tokens of prompt and answer, for the repetition penalty."""
        return Tally(self._prompt)

    @cached_property
    def output(self) -> Tally:
        """Tokens of the answer, for the penalties of presence and frequency."""
        return Tally()

    @cached_property
    def _random(self) -> random.Random:
        return random.Random(self.params.seed)  # its own state: no other request can change the draws

    def uniform(self, unread: int = 0, more: int = 0) -> float:
        """The random number in ``[0, 1)`` of the next token, behind ``unread`` others: the same until :meth:`add`.

        Where tokens may be drawn again, ``more`` is 1 for the number of the second draw.
        """
        place = unread * self._each + more
        while len(self._uniforms) <= place:
            self._uniforms.append(self._random.random())
        return self._uniforms[place]

    def add(self, token: int) -> None:
        """The token that was chosen is part of the answer from now on."""
        for _ in range(min(self._each, len(self._uniforms))):
            self._uniforms.popleft()
        self.recent.append(token)
        if self.repeats:
            self.seen.add(token)
        if self.counts:
            self.output.add(token)
        if self.constraint is not None:
            self.constraint.accept(token)

    @property
    def finished(self) -> bool:
        """Whether the answer is whole by its constraint, and nothing can follow."""
        return self.constraint is not None and self.constraint.finished


class Choice(NamedTuple):
    """A token, its log-probability if it was asked for; or why there is none."""

    token: int
    logprob: TokenLogprob | None = None
    error: IsobitError | None = None


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """On a CPU PyTorch works in this thread alone: waiting for others can take longer than a step does."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def sample(choosers: Sequence[Chooser], logits: Tensor, unread: Sequence[int] | None = None) -> list[Choice]:
    """The next token of each request, which changes none of them: see :meth:`Chooser.add`.

    Args:
        choosers: one for each row.
        logits: ``[R, V]``, any floating dtype, any device; they stay as they are.
        unread: for each how many tokens were chosen that it has not been told yet; None for none.

    Returns:
        For each row a choice. A row with NaN, +inf or nothing finite has an error and no token, and others none of it.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    with _alone(logits.device):
        return _choices(choosers, logits, unread or [0] * len(choosers))


def _choices(choosers: Sequence[Chooser], logits: Tensor, unread: Sequence[int]) -> list[Choice]:
    greedy, highest = _greedy(logits)
    tokens = [*greedy]
    usable = [row for row, value in enumerate(highest) if math.isfinite(value)]
    constraints = {row: found for row in usable if (found := choosers[row].constraint) is not None}
    masks, errors = masking.asked(constraints)
    others = [row for row in usable if not choosers[row].plain and row not in errors]
    if others:
        uniforms = [choosers[row].uniform(unread[row]) if choosers[row].draws else 0.0 for row in others]
        changed = _rows(logits, others)
        errors |= {others[place]: masking.nothing_left() for place in masking.apply([*map(masks.get, others)], changed)}
        chosen = _changed([choosers[row] for row in others], changed, uniforms)
        for row, token in zip(others, chosen, strict=True):
            tokens[row] = token
    fine = [row for row in usable if row not in errors]
    asked = [row for row in fine if choosers[row].params.logprobs is not None]
    picked = [tokens[row] for row in asked], [choosers[row].params.logprobs or 0 for row in asked]
    logprobs = dict(zip(asked, _logprobs(logits, asked, *picked, [greedy[row] for row in asked]), strict=True))
    choices = {row: Choice(tokens[row], logprobs.get(row)) for row in fine}
    choices |= {row: Choice(-1, error=error) for row, error in errors.items()}
    return [choices.get(row) or Choice(-1, error=_unusable(logits[row])) for row in range(len(choosers))]


def _greedy(logits: Tensor) -> tuple[list[int], list[float]]:
    """Ids of the largest logits, the smallest among equals, and these logits: NaN where one is NaN."""
    if logits.device.type == "cpu":  # in a tenth of the time of PyTorch's
        places = torch.from_numpy(logits.numpy().argmax(axis=1))
    else:
        places = logits.argmax(1)
    highest = logits.gather(1, places[:, None])[:, 0]
    return places.tolist(), highest.tolist()


def _rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of the logits in float64, to be changed."""
    if len(rows) < len(logits):
        logits = logits[torch.tensor(rows, device=logits.device)]
    return logits.to(torch.float64, copy=True)


def _unusable(logits: Tensor) -> IsobitError:
    bad = int((logits.isnan() | (logits == math.inf)).sum())
    return IsobitError(
        f"the model's logits cannot be used: {bad} of {len(logits)} are NaN or infinite. An activation or a "
        "weight overflowed: try --dtype float32 (dtype='float32'), and check the checkpoint with `isobit eval`"
    )


def _changed(choosers: Sequence[Chooser], logits: Tensor, uniforms: Sequence[float]) -> list[int]:
    """Tokens where biases, penalties or draws decide; changes ``logits``, float64 ``[R, V]``."""
    _bias(choosers, logits)
    _penalize(choosers, logits)
    tokens = [-1] * len(choosers)
    if not all(chooser.draws for chooser in choosers):
        tokens = logits.argmax(1).tolist()
    drawn = [row for row, chooser in enumerate(choosers) if chooser.draws and not chooser.aware]
    # On a CPU what stays in its cache is faster.
    at_once = max(1, _CACHED // logits.shape[1]) if logits.device.type == "cpu" else len(drawn)
    for begin in range(0, len(drawn), at_once):
        rows = drawn[begin : begin + at_once]
        some = logits[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] < len(rows) else _rows(logits, rows)
        found = _drawn([choosers[row].params for row in rows], some, [uniforms[row] for row in rows])
        for row, token in zip(rows, found, strict=True):
            tokens[row] = token
    for row, chooser in enumerate(choosers):  # whole vocabularies, each by itself: none depends on others
        if chooser.aware:
            pair = uniforms[row], chooser.uniform(more=1)
            tokens[row] = repetition.drawn([chooser.params], logits[row : row + 1], [pair], [[*chooser.recent]])[0]
    return tokens


def _bias(choosers: Sequence[Chooser], logits: Tensor) -> None:
    biases = [chooser.params.logit_bias for chooser in choosers]
    if any(biases):
        rows = [row for row, pairs in enumerate(biases) for _ in pairs]
        ids = [id for pairs in biases for id, _ in pairs]
        values = [value for pairs in biases for _, value in pairs]
        places = tuple(torch.tensor(part, device=logits.device) for part in (rows, ids))
        logits[places] += torch.tensor(values, dtype=torch.float64, device=logits.device)


def _penalize(choosers: Sequence[Chooser], logits: Tensor) -> None:
    """The repetition penalty, then those of presence and frequency."""
    repeats = [row for row, chooser in enumerate(choosers) if chooser.repeats]
    if repeats:
        places, _ = _places(repeats, [choosers[row].seen for row in repeats], logits)
        factors = torch.tensor([chooser.params.repetition_penalty for chooser in choosers], dtype=torch.float64)
        factor = factors.to(logits.device)[places[0]]
        kept = logits[places]
        logits[places] = torch.where(kept > 0, kept / factor, kept * factor)
    counts = [row for row, chooser in enumerate(choosers) if chooser.counts]
    if counts:
        places, times = _places(counts, [choosers[row].output for row in counts], logits)
        presence, frequency = (
            torch.tensor(values, dtype=torch.float64).to(logits.device)[places[0]]
            for values in (
                [chooser.params.presence_penalty for chooser in choosers],
                [chooser.params.frequency_penalty for chooser in choosers],
            )
        )
        logits[places] -= presence + frequency * times


def _places(rows: Sequence[int], tallies: Sequence[Tally], logits: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """(rows, ids) of the tokens that were tallied, and how often each came; each pair is there once."""
    ids = np.concatenate([tally.ids for tally in tallies])
    times = np.concatenate([tally.counts for tally in tallies])
    at = np.repeat(np.asarray(rows), [len(tally.ids) for tally in tallies])
    known = ids < logits.shape[1]
    parts = (torch.from_numpy(part[known]).to(logits.device) for part in (at, ids, times))
    row, id, count = parts
    return (row, id), count


def _drawn(params: Sequence[SamplingParams], logits: Tensor, uniforms: Sequence[float]) -> list[int]:
    """Temperature, truncation and one draw for each row; changes ``logits``, float64 ``[R, V]``."""
    units, places = truncated(params, logits)
    found = distribution.draw(units, _column(uniforms, logits.device))
    if places is not None:
        found = places.gather(1, found[:, None])[:, 0]
    tokens: list[int] = found.tolist()
    return tokens


def _column(values: Iterable[float], device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64, device=device)


def truncated(params: Sequence[SamplingParams], logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """What each row's token is drawn from: temperature, top_k, top_p and min_p.

    Args:
        params: one for each row.
        logits: float64 ``[R, V]``, one or more finite in each row, none NaN or +inf; they are changed.

    Returns:
        (int64 ``[R, C]``, how much of the distribution each token has, in units of one size; the ids of these tokens
        ``[R, C]``, ascending, or None for the whole vocabulary).
    """
    vocabulary, device = logits.shape[1], logits.device
    places = None
    if any(0 < each.top_k < vocabulary for each in params):
        counts = [min(each.top_k or vocabulary, vocabulary) for each in params]
        logits, places = distribution.largest(logits, torch.tensor(counts, device=device))
    logits -= logits.amax(1, keepdim=True)
    logits /= _column((each.temperature for each in params), device)[:, None]
    weights = logits.exp_()
    bits = distribution.fixed_bits(vocabulary)
    units = distribution.fixed(weights, bits)
    if any(each.top_p < 1 for each in params):
        shares = _column((each.top_p for each in params), device)
        units.masked_fill_(distribution.outside_nucleus(weights, units, shares, bits) & (shares < 1)[:, None], 0)
    if any(each.min_p > 0 for each in params):
        units.masked_fill_(weights < _column((each.min_p for each in params), device)[:, None], 0)
    return units, places


@torch.inference_mode()
def scores(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob | IsobitError]:
    """Log-probabilities of given tokens: the same bits as of tokens that were chosen behind the same logits.

    Args:
        logits: ``[R, V]``, any floating dtype, any device; they stay as they are.
        tokens: one for each row.
        counts: how many of the most probable ones are given beside it, for each row.

    Returns:
        For each row its token's; or why there is none, for a row with NaN, +inf or nothing finite.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    with _alone(logits.device):
        greedy, highest = _greedy(logits)
        fine = [row for row, value in enumerate(highest) if math.isfinite(value)]
        picked = ([values[row] for row in fine] for values in (tokens, counts, greedy))
        found = dict(zip(fine, _logprobs(logits, fine, *picked), strict=True))
        return [found.get(row) or _unusable(logits[row]) for row in range(len(tokens))]


def _logprobs(
    logits: Tensor, rows: Sequence[int], tokens: Sequence[int], counts: Sequence[int], greedy: Sequence[int]
) -> list[TokenLogprob]:
    """Log-probabilities of a token in each of some rows, and of the most probable ones there."""
    at_once = max(1, _CACHED // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(rows))
    found: list[TokenLogprob] = []
    for begin in range(0, len(rows), at_once):
        part = slice(begin, begin + at_once)
        numbers = _rows(logits, rows[part])
        numbers -= numbers.amax(1, keepdim=True)
        wanted = torch.tensor([[token] for token in tokens[part]], device=logits.device)
        values = numbers.gather(1, wanted)[:, 0].tolist()
        best = _largest(numbers, counts[part])
        sums = distribution.folded_sum(numbers.exp_()).tolist()
        for token, first, value, top, mass in zip(tokens[part], greedy[part], values, best, sums, strict=True):
            below = math.log(mass)
            listed = tuple((id, each - below) for id, each in top)
            found.append(TokenLogprob(token, value - below, listed, token == first))
    return found


def _largest(numbers: Tensor, counts: Sequence[int]) -> list[list[tuple[int, float]]]:
    """The ``counts[r]`` largest of each row, largest first, of equals the smallest id."""
    vocabulary = numbers.shape[1]
    most = min(max(counts), vocabulary)
    if most == 0:
        return [[] for _ in counts]
    least = numbers.topk(most).values[:, -1:]
    places = (numbers >= least).nonzero()
    values = numbers[places[:, 0], places[:, 1]].tolist()
    found: list[list[tuple[int, float]]] = [[] for _ in counts]
    for (row, id), value in zip(places.tolist(), values, strict=True):
        found[row].append((id, value))
    return [sorted(row, key=lambda pair: -pair[1])[:count] for row, count in zip(found, counts, strict=True)]
