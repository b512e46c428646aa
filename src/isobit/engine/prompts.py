"""What may be asked of a model: prompts as token ids of its own, and how long an answer may be."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from isobit.checkpoint.text.generation import Defaults
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, UsageError

DEFAULT_MAX_TOKENS = 256


def given_ids(prompt: Iterable[int]) -> list[int]:
    """Token ids that a person gave, as Python integers.

    Raises:
        UsageError: they are no integers.
    """
    if isinstance(prompt, list | tuple) and [*map(type, prompt)].count(int) == len(prompt):  # in a tenth of the time
        return [*prompt]
    found: list[int] = []
    wrong: object = prompt
    try:
        for id in () if isinstance(prompt, (bytes, bytearray)) else prompt:
            wrong = id
            found.append(operator.index(id))
            if isinstance(id, bool):
                raise TypeError
        if not isinstance(prompt, (bytes, bytearray)):
            return found
    except TypeError:
        pass
    raise UsageError(f"a prompt is a text or a list of token ids (integers); {type(wrong).__name__} given")


def require_known(ids: Sequence[int], vocabulary: int, tokenizer: Tokenizer, field: str = "prompt") -> None:
    """The model must have every token of a prompt: what lies beyond its embedding is no memory of it.

    Args:
        ids: of the tokens.
        vocabulary: how many tokens the model has.
        tokenizer: which may know more.
        field: where the ids were given.

    Raises:
        UsageError: one is outside the model's vocabulary; names the token.
    """
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(id for id in ids if not 0 <= id < vocabulary)
        name = tokenizer.name_of(wrong)
        called = "" if name is None else f" ({name!r}, which the tokenizer knows and the model does not)"
        raise UsageError(
            f"{field}: token id {wrong}{called} is outside the model's vocabulary of {vocabulary} tokens", field
        )


def room(ids: Sequence[int], max_tokens: int | None, context: int, defaults: Defaults) -> int:
    """How many tokens the answer may have.

    Args:
        ids: the prompt.
        max_tokens: what was asked for; None leaves it to the model and to us, 0 needs no room.
        context: the most tokens that the model reads.
        defaults: of the model.

    Raises:
        UsageError: no prompt, or max_tokens larger than what the context leaves.
        CapacityError: the prompt fills the context.
    """
    if not ids:
        raise UsageError("the prompt is empty: give some text (this tokenizer adds no begin-of-text token by itself)")
    left = context - len(ids)
    least = 0 if max_tokens == 0 else 1
    if left < least:
        raise CapacityError(
            f"the prompt has {len(ids)} tokens and the model's context holds {context}, prompt and answer together; "
            f"shorten the prompt to at most {context - least} tokens"
        )
    if max_tokens is not None and max_tokens > left:
        raise UsageError(
            f"max_tokens={max_tokens} does not fit: the context holds {context} tokens and the prompt has {len(ids)}; "
            f"use max_tokens={left} or less"
        )
    if max_tokens is not None:
        return max_tokens
    if defaults.max_tokens is None and defaults.max_length is not None and defaults.max_length > len(ids):
        left = min(left, defaults.max_length - len(ids))
    return min(left, defaults.max_tokens or DEFAULT_MAX_TOKENS)


PROMPT_AND_TOKENIZER = "the prompt begins with it and the tokenizer adds one, so leave it out of the prompt"


def doubled_bos(ids: Sequence[int], tokenizer: Tokenizer, why: str = PROMPT_AND_TOKENIZER) -> str | None:
    """What to say of a prompt that begins with two begin-of-text tokens; None for others."""
    if tokenizer.bos_id is None or list(ids[:2]) != [tokenizer.bos_id] * 2:
        return None
    token = tokenizer.special_tokens["bos_token"]
    return f"the model reads {token!r} twice at the beginning, as in transformers: {why}"
