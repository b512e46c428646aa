"""load and LLM: a model that is ready to answer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.api.finding import DTYPES, MOST_SEQUENCES, device_and_target, find
from isobit.engine.loaded import Model
from isobit.errors import CheckpointWarning
from isobit.formats.caches import cache_format

if TYPE_CHECKING:
    from isobit.engine import llm
    from isobit.engine.generate import Generator


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | str | None = None,
    context: int | None = None,
) -> Model:
    """Load a checkpoint, quantized or not, ready to generate.

    Args:
        model: a local folder, a Hugging Face id, or ``"bundled"``.
        dtype: what activations are computed in: ``"float32"`` (the default on a CPU), ``"bfloat16"`` or ``"float16"``.
        revision: branch, tag or commit of a Hugging Face id.
        device: ``"cpu"`` or ``"cuda"``.
        kv_cache: what keys and values are stored as: ``"auto"`` (as activations), ``"bf16"``, ``"f16"``, ``"fp8"``,
            ``"fp8-e5m2"``, ``"int8"``, ``"mxfp8"``, ``"mxfp4"`` or ``"nvfp4"`` (docs/numerics.md, section 9).
        batch_invariant: tokens and logprobs are the same bits whatever comes beside them (docs/numerics.md,
            section 10); refused with reasons where that cannot be had.
        memory: what of the device all of it may take: bytes, or text like ``"20GiB"``; None for what is free. A model
            that does not fit is refused with the figures before a tensor is read.
        context: tokens of prompt and answer at most, if fewer than the model reads (docs/models.md).

    Raises:
        CapacityError: it does not fit.

    Warns:
        CheckpointWarning: what people should know about this checkpoint; :attr:`Model.notes` has it, too.
    """
    loaded = Model(
        generator(
            model, dtype=dtype, revision=revision, device=device, kv_cache=kv_cache, memory=memory,
            batch_invariant=batch_invariant, context=context,
        )
    )  # fmt: skip
    for note in loaded.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=2)
    return loaded


def LLM(
    model: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    sequences: int = 64,
    cache_tokens: int | None = None,
    prefix_cache: bool = True,
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | str | None = None,
    context: int | None = None,
) -> llm.LLM:
    """Load a checkpoint, quantized or not, to answer many prompts at once.

    Args:
        model, dtype, revision, device: as :func:`load` takes them.
        sequences: prompts that are worked on at once at most; the others wait.
        cache_tokens: tokens that the key-value cache holds; None for as many as the prompts at hand need. Where they
            do not suffice, prompts wait, and the last ones may have to be computed again.
        prefix_cache: whether prompts that begin alike are computed once.
        kv_cache: what keys and values are stored as: ``"auto"`` (as activations), ``"bf16"``, ``"f16"``, ``"fp8"``,
            ``"fp8-e5m2"``, ``"int8"``, ``"mxfp8"``, ``"mxfp4"`` or ``"nvfp4"`` (docs/numerics.md, section 9).
        batch_invariant: tokens and logprobs are the same bits whatever comes beside them (docs/numerics.md,
            section 10); refused with reasons where that cannot be had.
        memory: what of the device all of it may take: bytes, or text like ``"20GiB"``; None for what is free. A model
            that does not fit is refused with the figures before a tensor is read.
            Given, the cache gets at once what weights and the rest leave of it.
        context: tokens of prompt and answer at most, if fewer than the model reads (docs/models.md).

    Returns:
        An :class:`isobit.engine.llm.LLM`: ``generate(prompts, SamplingParams(...))``, ``stream``, ``stream_async``, and
        ``add``, ``step``, ``abort``; ``media_prompt`` makes prompts with pictures, videos and sounds in them, if the
        model takes them (``tower``).

    Raises:
        CapacityError: it does not fit, or there is no memory for so large a cache.

    Warns:
        CheckpointWarning: what people should know about this checkpoint; its ``notes`` have it, too.
    """
    arguments.optional_choice("dtype", dtype, DTYPES)
    cache_format(kv_cache)
    arguments.whole("sequences", sequences, 1, MOST_SEQUENCES)
    arguments.optional_whole("cache_tokens", cache_tokens, 1)
    arguments.flag("prefix_cache", prefix_cache)
    arguments.flag("batch_invariant", batch_invariant)
    most = arguments.optional_memory("memory", memory)
    arguments.optional_whole("context", context, 1)
    device_and_target(device, None)
    folder = find(model, revision=revision)
    from isobit.engine.generate import load_llm

    loaded = load_llm(
        folder, dtype, device, kv_cache=kv_cache, sequences=sequences, cache_tokens=cache_tokens,
        prefix_cache=prefix_cache, memory=most, batch_invariant=batch_invariant, context=context,
    )  # fmt: skip
    for note in loaded.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=2)
    return loaded


def generator(
    model: str | Path,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    prefix_cache: bool = False,
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | str | None = None,
    context: int | None = None,
) -> Generator:
    """What :func:`load` wraps, for the commands: they show notes in their own way. Takes and raises the same.

    With ``prefix_cache`` a prompt that begins like an earlier one, as the next turn of a conversation, is not computed
    from its beginning again.
    """
    arguments.optional_choice("dtype", dtype, DTYPES)
    cache_format(kv_cache)
    arguments.flag("batch_invariant", batch_invariant)
    most = arguments.optional_memory("memory", memory)
    arguments.optional_whole("context", context, 1)
    device_and_target(device, None)
    folder = find(model, revision=revision)
    from isobit.engine.generate import load_generator

    options: dict[str, Any] = {"prefix_cache": prefix_cache, "kv_cache": kv_cache, "batch_invariant": batch_invariant}
    options["context"] = context
    return load_generator(folder, dtype=dtype, device=device, memory=most, **options)
