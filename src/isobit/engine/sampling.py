"""From logits to the next token: penalties, temperature, truncation, a draw; and the rules for stopping.

The order of the steps, the same for every request (it is transformers'):

1. repetition penalty, over the tokens of prompt and output: a positive logit is divided by it, another multiplied;
2. presence and frequency penalty, over the output alone: ``logit -= presence + frequency * count``;
3. temperature: logits are divided by it; 0 takes the largest logit (the smallest id among equals) and ends here;
4. top_k: the k most probable tokens stay (those equal to the k-th too);
5. top_p: of what is left, the smallest set whose probability reaches top_p stays;
6. min_p: tokens below min_p times the probability of the most probable one go;
7. one uniform number in [0, 1) picks a token from the distribution that is left, in the order of ids.

All of it in float64 (4 to 7: ``draw``). Logprobs are of the model's own distribution, before any of these steps.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.checkpoint.text.ranges import INTEGERS, MAX_STOP_STRINGS, NUMBERS, problem
from isobit.engine.draw import Floats, draw, largest, weights
from isobit.errors import IsobitError, UsageError

_OPTIONAL = ("seed", "max_tokens", "logprobs")  # None is a value of these


@dataclass(frozen=True)
class SamplingParams:
    """How the next tokens are chosen, and when to stop.

    Attributes:
        temperature: 0 is greedy; 1 is the model's own distribution.
        top_k: number of tokens that stay; 0 keeps all.
        top_p: probability that stays, in (0, 1].
        min_p: smallest probability relative to the most probable token, in [0, 1].
        repetition_penalty: above 1 discourages tokens of prompt and output.
        presence_penalty: subtracted once from the logit of every token of the output, in [-2, 2].
        frequency_penalty: subtracted for each time a token is in the output, in [-2, 2].
        seed: the same seed gives the same tokens, whatever else runs; None draws a fresh one.
        stop: texts that end the answer; they are not part of it.
        max_tokens: most tokens of the answer; None is 256, or fewer if the context ends before.
        logprobs: give each token's log-probability and those of this many most probable tokens; None gives none.
        ignore_eos: go on after end-of-text tokens.

    Raises:
        UsageError: a value cannot be used; the message names the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        for name in (*NUMBERS, *INTEGERS):
            value = getattr(self, name)
            reason = None if value is None and name in _OPTIONAL else problem(name, value)
            if reason is not None:
                raise UsageError(reason)
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos must be True or False, not {self.ignore_eos!r}")


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(strings, (tuple, list)) or not all(isinstance(text, str) and text for text in strings):
        raise UsageError(f"stop must be texts that are not empty, not {stop!r}")
    if len(strings) > MAX_STOP_STRINGS:
        raise UsageError(f"stop has {len(strings)} texts; at most {MAX_STOP_STRINGS} are possible")
    return tuple(strings)


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability (natural logarithm) under the model, and the most probable tokens in its place."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (id, logprob), most probable first


class Tally:
    """Tokens and how often each came, as arrays that grow with the text."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(0, np.int64)
        self._counts = np.empty(0, np.float64)
        for id, count in Counter(ids).items():
            self.add(id, count)

    def add(self, id: int, count: int = 1) -> None:
        """Counts a token."""
        place = self._places.setdefault(id, len(self._places))
        if place == len(self._ids):
            room = max(64, 2 * place)
            self._ids, self._counts = (_longer(part, room) for part in (self._ids, self._counts))
        self._ids[place] = id
        self._counts[place] += count

    @property
    def ids(self) -> NDArray[np.int64]:
        """Each token once."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float64]:
        """How often each of ``ids`` came."""
        return self._counts[: len(self._places)]


def _longer(part: NDArray[Any], room: int) -> NDArray[Any]:
    grown = np.zeros(room, part.dtype)
    grown[: len(part)] = part
    return grown


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        params: how.
        prompt_ids: the prompt, which the repetition penalty counts.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int] = ()) -> None:
        self.params = params
        self._repeats = params.repetition_penalty != 1
        self._counts_output = bool(params.presence_penalty or params.frequency_penalty)
        self._seen = Tally(prompt_ids if self._repeats else ())
        self._output = Tally()
        self._random = random.Random(params.seed)  # its own state: no other request can change the draws

    def sample(self, logits: Tensor) -> int:
        """The next token from logits [V]; it counts as part of the output from now on.

        Raises:
            IsobitError: a logit is NaN or +inf, or none is finite.
        """
        numbers = as_numbers(logits)
        if self.params.temperature == 0 and not self._repeats and not self._counts_output:
            return greedy(numbers)
        check_logits(numbers)
        chosen = self._choose(self._penalized(numbers.astype(np.float64)))
        if self._repeats:
            self._seen.add(chosen)
        if self._counts_output:
            self._output.add(chosen)
        return chosen

    def _choose(self, logits: Floats) -> int:
        params = self.params
        if params.temperature == 0:
            return int(logits.argmax())
        ids, found = weights(
            logits, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p
        )
        place = draw(found, self._random.random())
        return place if ids is None else int(ids[place])

    def _penalized(self, logits: Floats) -> Floats:
        """Changes ``logits`` in place."""
        params = self.params
        if self._repeats:
            ids = self._seen.ids[self._seen.ids < len(logits)]
            kept = logits[ids]
            factor = params.repetition_penalty
            logits[ids] = np.where(kept > 0, kept / factor, kept * factor)
        if self._counts_output:
            output = self._output
            logits[output.ids] -= params.presence_penalty + params.frequency_penalty * output.counts
        return logits


def as_numbers(logits: Tensor) -> NDArray[Any]:
    """Logits [V] as numpy's float32 or float64; the tensor's own memory where that is possible."""
    logits = logits.detach()
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    numbers: NDArray[Any] = logits.cpu().contiguous().numpy()
    return numbers


def greedy(logits: NDArray[Any]) -> int:
    """The id of the largest logit, the smallest among equals, in one pass.

    Raises:
        IsobitError: a logit is NaN or +inf, or none is finite.
    """
    chosen = int(logits.argmax())  # of the first NaN, if there is one
    if not math.isfinite(logits[chosen]):
        check_logits(logits)
    return chosen


def check_logits(logits: NDArray[Any]) -> None:
    """Refuse logits that no token can be chosen from.

    Raises:
        IsobitError: a logit is NaN or +inf, or all are -inf.
    """
    if not math.isfinite(logits.max()):  # NaN if one is NaN
        bad = int((np.isnan(logits) | (logits == math.inf)).sum())
        raise IsobitError(
            f"the model's logits cannot be used: {bad} of {logits.size} are NaN or infinite. An activation or a "
            "weight overflowed: try --dtype float32 (dtype='float32'), and check the checkpoint with `isobit eval`"
        )


def token_logprob(logits: Tensor, id: int, top: int) -> TokenLogprob:
    """Log-probabilities under the model of a token and of the ``top`` most probable ones.

    Args:
        logits: [V], as the model gave them.
        id: the token that was chosen.
        top: how many of the most probable to give. They are the same numbers: the chosen token's log-probability is
            exactly the first of them if it is the most probable.
    """
    numbers = as_numbers(logits).astype(np.float64)
    numbers -= numbers.max()
    numbers -= math.log(np.exp(numbers).sum())
    ids = largest(numbers, top)
    return TokenLogprob(id, float(numbers[id]), tuple(zip(ids.tolist(), numbers[ids].tolist(), strict=True)))


class StopWatch:
    """Finds stop strings in text that arrives piece by piece, and holds back what may become one.

    Args:
        stop: the texts to find. The one that is complete first ends the text, however the text is cut into pieces
            (the longer of two that end together); it and what follows are dropped.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Add text; returns what is safe to give out. After a hit (``found``), nothing more comes."""
        if self.found is not None:
            return ""
        text = self._held + piece
        hits = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stop if stop in text]
        if hits:
            _, position, self.found = min(hits)
            self._held = ""
            return text[:position]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text held back when the answer ends without becoming a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
