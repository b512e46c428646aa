"""From what is asked for to an answer that can begin: everything that can be wrong with it is found here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from isobit.engine.answer import Answer
from isobit.engine.constraint import Constraint
from isobit.engine.params import SamplingParams
from isobit.engine.prompts import doubled_bos, given_ids, require_known, room
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError, UsageError
from isobit.models.media import MediaPrompt

Prompt = str | Sequence[int] | MediaPrompt


class Model(Protocol):
    """What the engine needs of a model (:class:`isobit.models.decoder.Decoder`), beside what its runner does.

    ``place.target`` is the GPU whose kernels run it, or None on a CPU; ``notes`` are what people should know.
    """

    config: Any
    place: Any
    notes: tuple[str, ...]


def usual(tokenizer: Tokenizer) -> SamplingParams:
    """What the model's generation_config.json asks for."""
    return SamplingParams(**tokenizer.defaults.choose({}).settings)


def prepared(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Prompt,
    params: SamplingParams | None,
    scored: int = 1,
    constraint: Constraint | None = None,
) -> Answer:
    """An answer that has not begun.

    Args:
        model, tokenizer: whose it will be.
        prompt: a text, token ids, or those of a prompt with media.
        params: how; None for what the model's generation_config.json asks for.
        scored: place of the first token of the prompt that is scored, if its logprobs are asked for.
        constraint: what it may be made of.

    Raises:
        UsageError, CapacityError: as :meth:`isobit.engine.llm.LLM.generate` says.
    """
    if params is None:
        params = usual(tokenizer)
    media = prompt if isinstance(prompt, MediaPrompt) else None
    given = prompt.ids if isinstance(prompt, MediaPrompt) else prompt
    ids = tokenizer.encode(given) if isinstance(given, str) else given_ids(given)
    vocabulary = int(model.config.vocab_size)
    require_known(ids, vocabulary, tokenizer)
    beyond = next((id for id, _ in params.logit_bias if id >= vocabulary), None)
    if beyond is not None:
        raise UsageError(f"logit_bias names token {beyond}; the model has {vocabulary} tokens, from 0 on", "logit_bias")
    most = room(ids, params.max_tokens, int(model.config.max_context), tokenizer.defaults)
    if media is not None:
        require_sound(media, most, model.config)
    if not 1 <= scored <= max(1, len(ids)):
        raise UsageError(f"token {scored} of {len(ids)} cannot be the first that is scored: use 1 to {len(ids)}")
    doubled = doubled_bos(ids, tokenizer)
    notes = () if doubled is None else (doubled,)
    first = None if params.prompt_logprobs is None else scored
    return Answer(tokenizer, ids, params, most, notes, first, constraint, media)


def require_sound(prompt: MediaPrompt, most: int, config: Any) -> None:
    """That the pieces of a prompt are of its tokens, and its positions of the model.

    Args:
        prompt: it.
        most: tokens of the answer.
        config: of the model.

    Raises:
        UsageError: they are not.
        CapacityError: a position is beyond the context.
    """
    count, taken = len(prompt.ids), [place for one in prompt.placed for place in one.places]
    firsts = [one.places[0] for one in prompt.placed if one.places]
    for one in prompt.placed:
        if not one.places or len(one.places) != one.piece.tokens or list(one.places) != sorted(one.places):
            raise UsageError(
                f"a piece of {one.piece.tokens} tokens has {len(one.places)} places: it needs as many, ascending"
            )
    if len(set(taken)) < len(taken) or firsts != sorted(firsts) or not all(0 <= place < count for place in taken):
        raise UsageError(
            f"pieces stand at places of their own, from 0 to {count - 1}, in the order of their first ones"
        )
    axes, told = getattr(config, "axes", 1), prompt.positions
    if told is not None and (told.dtype != torch.int64 or tuple(told.shape) != (count, axes) or int(told.min()) < 0):
        raise UsageError(
            f"expected positions, int64 [{count}, {axes}] from 0 on; they are {told.dtype} {[*told.shape]}"
        )
    reach = max(0 if told is None else 1 + int(told.max()), count + prompt.shift + most - 1)
    if prompt.shift + count < 0 or reach > int(config.max_context) and (told is not None or prompt.shift):
        raise CapacityError(
            f"the positions of prompt and answer reach {reach}; the model's context has {config.max_context}"
        )


def window_of(config: Any) -> int | None:
    """The latest tokens that a token attends to, the most of any layer; None where one attends to all."""
    windows = getattr(config, "windows", ())
    return max(windows) if windows and None not in windows else None
