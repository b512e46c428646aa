"""The choices of :mod:`isobit.engine.sampler` where logits are, without waiting for them.

The same steps in the same arithmetic, so the same tokens: what there cuts arrays to the size that a batch needs, which
only the device knows, is masked here. Penalties, which need the tokens chosen last, are left to the other one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.engine import distribution
from isobit.engine.params import SamplingParams, TokenLogprob
from isobit.engine.sampler import Chooser
from isobit.models.staging import fetch, send

_AT_ONCE = 1 << 23  # float64 numbers: 64 MiB, a few times over
_LOW = (1 << 32) - 1


def choose(logits: Tensor, rows: Sequence[int], choosers: Sequence[Chooser], unread: Sequence[int]) -> Tensor:
    """Tokens, int64 ``[len(rows)]``, of rows whose logits are biased or drawn from.

    Args:
        logits: float32 ``[R, V]``; they stay as they are. A row that has none to choose gives some token.
        rows: of the logits, one for each chooser.
        choosers: each :attr:`~isobit.engine.sampler.Chooser.ahead`.
        unread: tokens that each was not told yet.
    """
    return Settings(logits.device, logits.shape[1], rows, choosers).choose(logits, unread)


class Settings:
    """How tokens of some rows are chosen: the same for any number of steps, so it is where the logits are.

    Args:
        device, vocabulary: of the logits.
        rows: of the logits, one for each chooser.
        choosers: each :attr:`~isobit.engine.sampler.Chooser.ahead`.
    """

    def __init__(self, device: torch.device, vocabulary: int, rows: Sequence[int], choosers: Sequence[Chooser]) -> None:
        at_once = max(1, _AT_ONCE // vocabulary)
        self._parts = [
            _Part(device, vocabulary, rows[at : at + at_once], choosers[at : at + at_once])
            for at in range(0, len(rows), at_once)
        ]

    def choose(self, logits: Tensor, unread: Sequence[int]) -> Tensor:
        """Tokens; see :func:`choose`."""
        found, at = [], 0
        for part in self._parts:
            found.append(part.choose(logits, unread[at : at + part.count]))
            at += part.count
        return found[0] if len(found) == 1 else torch.cat(found)


class _Part:
    """The settings of rows that are chosen from at once."""

    def __init__(self, device: torch.device, vocabulary: int, rows: Sequence[int], choosers: Sequence[Chooser]) -> None:
        self.count = len(rows)
        self._choosers = choosers
        self._params = params = [chooser.params for chooser in choosers]
        self._draws = draws = [chooser.draws for chooser in choosers]
        self._biases = biases = [(row, id, value) for row, one in enumerate(params) for id, value in one.logit_bias]
        self._places, self._drawn, self._at, self._ids, self._added, *self._limits = send(
            device, np.array(rows, np.int64), np.array(draws, np.int64),
            np.array([row for row, _, _ in biases], np.int64), np.array([id for _, id, _ in biases], np.int64),
            _floats(value for _, _, value in biases), *_limits(params, vocabulary),
        )  # fmt: skip

    def choose(self, logits: Tensor, unread: Sequence[int]) -> Tensor:
        numbers, draws = logits.index_select(0, self._places).double(), self._draws
        if self._biases:
            numbers[self._at, self._ids] = numbers[self._at, self._ids] + self._added
        if not any(draws):
            return numbers.argmax(1)
        greedy = None if all(draws) else numbers.argmax(1)
        each = zip(self._choosers, unread, strict=True)
        (uniforms,) = send(logits.device, _floats([one.uniform(more) if one.draws else 0.0 for one, more in each]))
        found = _draw(numbers, self._params, [*self._limits, uniforms])
        return found if greedy is None else torch.where(self._drawn > 0, found, greedy)


def _limits(params: Sequence[SamplingParams], vocabulary: int) -> list[NDArray[Any]]:
    """Temperatures, top_k (0 for all), top_p and min_p of each row."""
    top_k = [one.top_k if one.top_k < vocabulary else 0 for one in params]
    return [
        _floats(one.temperature or 1.0 for one in params), np.array(top_k, np.int64),
        _floats(one.top_p for one in params), _floats(one.min_p for one in params),
    ]  # fmt: skip


def _floats(values: Iterable[float]) -> NDArray[Any]:
    return np.array([*values], np.float64)


def _draw(logits: Tensor, params: Sequence[SamplingParams], limits: Sequence[Tensor]) -> Tensor:
    """Temperature, truncation and a draw; changes ``logits``, float64 ``[R, V]``."""
    temperatures, top_k, top_p, min_p, uniforms = limits
    vocabulary = logits.shape[1]
    most = max((one.top_k for one in params if one.top_k < vocabulary), default=0)
    if most:
        reach = logits.topk(most).values.gather(1, (top_k - 1).clamp(min=0)[:, None])
        logits.masked_fill_((logits < reach) & (top_k > 0)[:, None], -math.inf)
    logits -= logits.amax(1, keepdim=True)
    logits /= temperatures[:, None]
    weights = logits.exp_()
    bits = distribution.fixed_bits(vocabulary)
    units = distribution.fixed(weights, bits)
    if any(one.top_p < 1 for one in params):
        outside = distribution.outside_nucleus(weights, units, top_p, bits, wait=False)
        units.masked_fill_(outside & (top_p < 1)[:, None], 0)
    if any(one.min_p > 0 for one in params):
        units.masked_fill_(weights < min_p[:, None], 0)
    return distribution.draw(units, uniforms).clamp(0, vocabulary - 1)  # whatever a row of NaN has become


@dataclass(frozen=True)
class Logprobs:
    """Log-probabilities on their way to the host: to be read when the device has come so far.

    Attributes:
        counts: most probable tokens that each row is asked for.
        ids: int64 ``[R, 1 + most]``: the most probable token, and so many of them in order.
        values: float64 ``[R, 2 + most]``: of the chosen token, the sum of all, and of these; see :meth:`read`.
    """

    counts: tuple[int, ...]
    ids: Tensor
    values: Tensor

    def read(self, tokens: Sequence[int]) -> list[TokenLogprob]:
        """What they say of the tokens chosen."""
        found = []
        rows = zip(tokens, self.counts, self.ids.tolist(), self.values.tolist(), strict=True)
        for token, count, (first, *ids), (value, mass, *values) in rows:
            below = math.log(mass)
            top = tuple((id, each - below) for id, each in zip(ids[:count], values, strict=False))
            found.append(TokenLogprob(token, value - below, top, token == first))
        return found


def logprobs(logits: Tensor, rows: Sequence[int], tokens: Tensor, counts: Sequence[int]) -> Logprobs:
    """Log-probabilities of tokens, and of the most probable ones beside each.

    Args:
        logits: float32 ``[R, V]``.
        rows: of the logits.
        tokens: int64 ``[R]``: the token of each row of the logits.
        counts: of the most probable tokens, for each of ``rows``.
    """
    (places,) = send(logits.device, np.array(rows, np.int64))
    plain = logits.index_select(0, places)
    numbers = plain.double()
    numbers -= numbers.amax(1, keepdim=True)
    most = min(max(counts), logits.shape[1])
    best = _largest(plain, max(most, 1))
    chosen = numbers.gather(1, tokens.index_select(0, places)[:, None])
    values = numbers.gather(1, best)[:, :most]
    mass = distribution.folded_sum(numbers.exp_())[:, None]
    ids = torch.cat((best[:, :1], best[:, :most]), 1)
    return Logprobs(tuple(counts), fetch(ids), fetch(torch.cat((chosen, mass, values), 1)))


def _largest(logits: Tensor, count: int) -> Tensor:
    """Places of the largest of each row ``[R, count]``, of equals the first: as keys that have no equals."""
    bits = (logits + 0.0).view(torch.int32).to(torch.int64)  # +0 and -0 are equal
    ordered = bits ^ ((bits >> 63) & 0x7FFFFFFF)
    places = torch.arange(logits.shape[1], dtype=torch.int64, device=logits.device)
    keys = (ordered << 32) + (_LOW - places)
    return _LOW - (keys.topk(count).values & _LOW)
