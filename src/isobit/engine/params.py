"""What a request may ask of sampling, and what it gets to know of a token. No torch."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.text.ranges import INTEGERS, MAX_LOGIT_BIAS, MAX_STOP_STRINGS, NUMBERS, problem
from isobit.errors import UsageError

_OPTIONAL = ("seed", "max_tokens", "logprobs", "prompt_logprobs")  # None is a value of these


@dataclass(frozen=True)
class Repetition:
    """When a token is drawn again (:mod:`isobit.engine.repetition`).

    Attributes:
        window: latest tokens of the answer that are looked at, 1 to 1024.
        share: of them, in (0, 1], that may not be the drawn one.
    """

    window: int = 10
    share: float = 0.1

    def __post_init__(self) -> None:
        if type(self.window) is not int or not 1 <= self.window <= 1024:
            raise UsageError(
                f"the window of repetitions must be an integer between 1 and 1024, not {short(self.window)}"
            )
        if type(self.share) not in (int, float) or not 0 < self.share <= 1:
            raise UsageError(
                f"the share of repetitions must be a number above 0 and at most 1, not {short(self.share)}"
            )


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
        logit_bias: added to the logits of these token ids, each in [-100, 100]; pairs, or a dict.
        seed: the same seed gives the same tokens, whatever else runs; None draws a fresh one.
        stop: texts that end the answer; they are not part of it.
        max_tokens: most tokens of the answer; None is 256, or fewer if the context ends before. 0, where
            ``prompt_logprobs`` are asked for, generates nothing.
        logprobs: give each token's log-probability and those of this many most probable tokens; None gives none.
        prompt_logprobs: the same for the tokens of the prompt, which is then computed from its beginning.
        ignore_eos: go on after end-of-text tokens.
        kept_special: ids of special tokens whose text is part of the answer; that of others is not.
        repetition_aware: draw tokens that came too often lately again, where tokens are drawn at all; top_p is then a
            share of the whole distribution, and min_p has no effect (:mod:`isobit.engine.repetition`). None for no.

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
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    kept_special: tuple[int, ...] = ()
    repetition_aware: Repetition | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        for name in (*NUMBERS, *INTEGERS):
            value = getattr(self, name)
            left_out = (value is None and name in _OPTIONAL) or (name == "max_tokens" and self._reads_only)
            reason = None if left_out else problem(name, value)
            if reason is not None:
                raise UsageError(reason, name)
        if not isinstance(self.repetition_aware, Repetition | None):
            raise UsageError(f"repetition_aware must be a Repetition or None, not {short(self.repetition_aware)}")
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos must be True or False, not {self.ignore_eos!r}", "ignore_eos")

    @property
    def _reads_only(self) -> bool:
        """Whether the prompt's logprobs are all that is asked for."""
        return self.prompt_logprobs is not None and type(self.max_tokens) is int and self.max_tokens == 0


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(strings, (tuple, list)) or not all(isinstance(text, str) and text for text in strings):
        raise UsageError(f"stop must be texts that are not empty, not {stop!r}", "stop")
    if len(strings) > MAX_STOP_STRINGS:
        raise UsageError(f"stop has {len(strings)} texts; at most {MAX_STOP_STRINGS} are possible", "stop")
    return tuple(strings)


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    """Token ids and what is added to their logits, by id."""
    found: dict[int, float] = {}
    try:
        pairs = () if given is None else given.items() if isinstance(given, Mapping) else given
        for id, value in pairs:  # type: ignore[attr-defined]
            found[operator.index(id)] = float(value)
            if isinstance(id, bool) or isinstance(value, (bool, str)) or id < 0 or not abs(value) <= MAX_LOGIT_BIAS:
                raise ValueError
    except (TypeError, ValueError):
        raise UsageError(
            f"logit_bias must be token ids and numbers between -{MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}, like "
            f"{{17: -100}}, not {short(given)}",
            "logit_bias",
        ) from None
    return tuple(sorted(found.items()))


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability under the model, and the most probable tokens in its place.

    Attributes:
        id: of the token.
        logprob: natural logarithm of its probability.
        top: (id, logprob) of as many tokens as were asked for, the most probable first, of equals the smallest id.
        greedy: whether it is the most probable one, of equals the one with the smallest id.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    greedy: bool
