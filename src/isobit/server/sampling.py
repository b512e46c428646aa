"""Fields of a request as the engine has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from isobit.engine.params import SamplingParams
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError
from isobit.server.errors import wrong

LARGEST_SEED = 2**64 - 1
# Fields of every request for text that are those of SamplingParams.
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip


class Asked(Protocol):
    """What requests for text have in common; see :mod:`isobit.server.schema.common`."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | list[str] | None
    logit_bias: dict[str, float] | None
    ignore_eos: bool | None
    max_tokens: int | None


def params(asked: Asked, tokenizer: Tokenizer, most: int | None, **further: Any) -> SamplingParams:
    """How an answer is to be chosen: what is asked for, then what the model's generation_config.json says.

    Args:
        asked: the request.
        most: tokens of the answer at most.
        further: fields of SamplingParams that the request has under other names.

    Raises:
        UsageError: a value cannot be used; the message names the field.
    """
    given = {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
    if given.get("top_k") == -1:  # as other servers say "all of them"
        given["top_k"] = 0
    if asked.stop is not None:
        given["stop"] = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop)
    if asked.logit_bias:
        given["logit_bias"] = _biases(asked.logit_bias)
    if most is not None:
        given["max_tokens"] = most
    chosen = tokenizer.defaults.choose(given).settings
    try:
        return SamplingParams(**chosen, ignore_eos=bool(asked.ignore_eos), **further)
    except UsageError as error:
        if error.field not in given:  # the request has it under another name
            error.field = None
        raise


def _biases(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(id): value for id, value in given.items() if id.isdecimal() and id.isascii() or _fail()}
    except ValueError:
        raise wrong('logit_bias must have token ids as keys, like {"17": -100}', "logit_bias") from None


def _fail() -> bool:
    raise ValueError


def seeds(seed: int | None, count: int) -> list[int | None]:
    """The seeds of ``count`` answers to one prompt: the first is the one that was given."""
    return [None if seed is None else (seed + place) % (LARGEST_SEED + 1) for place in range(count)]


def seeded(params: SamplingParams, seed: int | None) -> SamplingParams:
    """The same with another seed."""
    return params if seed == params.seed else replace(params, seed=seed)
