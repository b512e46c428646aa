"""From what is asked for to an answer that can begin: everything that can be wrong with it is found here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from isobit.engine.answer import Answer
from isobit.engine.constraint import Constraint
from isobit.engine.params import SamplingParams
from isobit.engine.prompts import doubled_bos, given_ids, require_known, room
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError

Prompt = str | Sequence[int]


class Model(Protocol):
    """What the engine needs of a model (:class:`isobit.models.decoder.Decoder`), beside what its runner does.

    ``place.target`` is the GPU whose kernels run it, or None on a CPU; ``notes`` are what people should know.
    """

    config: Any
    place: Any
    notes: tuple[str, ...]


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
        prompt: a text, or token ids.
        params: how; None for what the model's generation_config.json asks for.
        scored: place of the first token of the prompt that is scored, if its logprobs are asked for.
        constraint: what it may be made of.

    Raises:
        UsageError, CapacityError: as :meth:`isobit.engine.llm.LLM.generate` says.
    """
    if params is None:
        params = SamplingParams(**tokenizer.defaults.choose({}).settings)
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else given_ids(prompt)
    vocabulary = int(model.config.vocab_size)
    require_known(ids, vocabulary, tokenizer)
    beyond = next((id for id, _ in params.logit_bias if id >= vocabulary), None)
    if beyond is not None:
        raise UsageError(f"logit_bias names token {beyond}; the model has {vocabulary} tokens, from 0 on")
    most = room(ids, params.max_tokens, int(model.config.max_context), tokenizer.defaults)
    if not 1 <= scored <= max(1, len(ids)):
        raise UsageError(f"token {scored} of {len(ids)} cannot be the first that is scored: use 1 to {len(ids)}")
    doubled = doubled_bos(ids, tokenizer)
    notes = () if doubled is None else (doubled,)
    first = None if params.prompt_logprobs is None else scored
    return Answer(tokenizer, ids, params, most, notes, first, constraint)


def window_of(config: Any) -> int | None:
    """The latest tokens that a token attends to, the most of any layer; None where one attends to all."""
    windows = getattr(config, "windows", ())
    return max(windows) if windows and None not in windows else None
