"""Generation of one answer after the other with a loaded model: what commands and the Python interface call."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from isobit.engine.answer import Completion, Piece
from isobit.engine.engine import SEQUENCES
from isobit.engine.grammar import Grammar
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.prepare import Prompt
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CapacityError
from isobit.formats.caches import cache_format
from isobit.kernels.cpu import library as cpu_library
from isobit.models.opening import runnable
from isobit.models.place import place
from isobit.models.room import Room, room
from isobit.shortage import shortages
from isobit.targets import detect
from isobit.targets.here import Gpu, cpu_machine, gpu_machine
from isobit.targets.recorded import recorded_steps
from isobit.targets.spec import Board, Target

_AT_ONCE = 2  # longest answers that the cache holds, where it has one size and they come one after the other


class Generator:
    """A model and its tokenizer behind the engine, asked for one answer after the other.

    Attributes:
        llm: the same for many at once.
        notes: what a person should know about this model and its tokenizer, as sentences.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.model, self.tokenizer, self.notes = llm.model, llm.tokenizer, llm.notes

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer together."""
        return self.llm.context_length

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, constraint: Grammar | None = None
    ) -> Completion:
        """Complete a prompt.

        Args:
            prompt: text, encoded with the special tokens the tokenizer adds; token ids, used as they are; or a prompt
                with media (:meth:`isobit.engine.llm.LLM.media_prompt`).
            params: how; greedy by default.
            constraint: which answers are right.

        Raises:
            UsageError: the prompt is empty, no text, has impossible ids, or leaves no room for max_tokens.
            CapacityError: the prompt alone is longer than the context.
            IsobitError: the model's logits are NaN.
        """
        for piece in self.stream(prompt, params, constraint):
            if piece.completion is not None:
                return piece.completion
        raise AssertionError("a stream ends with a completion")

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, constraint: Grammar | None = None
    ) -> Iterator[Piece]:
        """Complete a prompt piece by piece; takes and raises what :meth:`generate` does, before the first piece."""
        return self.llm.stream(prompt, params or SamplingParams(), constraint=constraint)


def load_generator(
    path: str | Path,
    dtype: str | None = None,
    device: str = "cpu",
    *,
    prefix_cache: bool = False,
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | None = None,
    context: int | None = None,
) -> Generator:
    """Load a checkpoint folder for one answer after the other; takes and raises what :func:`load_llm` does.

    Nothing is kept from one answer for the next unless that is asked for: the same prompt gives the same answer.
    """
    options: dict[str, Any] = {"prefix_cache": prefix_cache, "kv_cache": kv_cache, "batch_invariant": batch_invariant}
    return Generator(load_llm(path, dtype, device, memory=memory, context=context, at_once=_AT_ONCE, **options))


def require_room(
    folder: Path,
    device: str = "cpu",
    memory: int | None = None,
    kv_cache: str = "auto",
    sequences: int = 1,
    target: str | None = None,
    context: int | None = None,
) -> Room | None:
    """That a checkpoint fits its device, as it is planned; what that leaves. See :func:`isobit.models.room.room`.

    Args:
        target: whose lowering is to run there; None for the device's own.
        folder, device, memory, kv_cache, sequences, context: as of :func:`load_llm`.

    Raises:
        CapacityError: it does not fit, or more is allowed than there is.
    """
    where = place(device, target).tensors
    gpu = where.type == "cuda"
    free, whole = torch.cuda.mem_get_info() if gpu else detect.memory()[::-1]
    if memory is not None and 0 < whole < memory:
        raise CapacityError(
            f"--memory (memory=) allows {memory / (1 << 30):.2f} GiB, and this {'GPU' if gpu else 'machine'} has"
            f" {whole / (1 << 30):.2f} GiB, {free / (1 << 30):.2f} of them free: allow no more than it has"
        )
    return room(
        folder, gpu=gpu, free=free, given=memory, cache=cache_format(kv_cache), sequences=sequences,
        machine=_card(where) if gpu else cpu_machine(detect.detect(programs=False), cpu_library.wanted_threads()),
        graphs=recorded_steps(sequences) if gpu and memory is not None else 0,
        context=context,
    )  # fmt: skip


def _card(device: torch.device) -> tuple[Target, Board] | None:
    """A GPU as plans know it, by what torch says of it: asking another program takes half a second."""
    found = torch.cuda.get_device_properties(device)
    return gpu_machine(Gpu(found.name, f"{found.major}.{found.minor}", found.total_memory >> 20, ""))


@shortages()
def load_llm(
    path: str | Path,
    dtype: str | None = None,
    device: str = "cpu",
    *,
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | None = None,
    context: int | None = None,
    at_once: int | None = None,
    tokenizer: str | Path | None = None,
    **options: Any,
) -> LLM:
    """Load a checkpoint folder, quantized or not.

    Args:
        path: the folder (:func:`isobit.checkpoint.source.resolve` finds one for a hub id).
        dtype: what activations are computed in: "float32" (the default on a CPU), "bfloat16" or "float16".
        device: "cpu" or "cuda".
        kv_cache: what keys and values are stored as: "auto", "bf16", "f16", "fp8", "fp8-e5m2", "int8", "mxfp8",
            "mxfp4" or "nvfp4".
        batch_invariant: tokens and logprobs are the same bits whatever comes beside them.
        memory: bytes of the device that all of it may take: the cache then gets at once what weights and the rest
            leave. None for what is free, of which the cache takes what it needs.
        context: tokens of prompt and answer at most, if fewer than the model reads.
        at_once: longest answers that such a cache is to hold; None for as many as take part in a step.
        tokenizer: the folder that has its files; None for the same one.
        options: of :class:`isobit.engine.llm.LLM`.

    Raises:
        CheckpointError, ModelError: the folder cannot be used; the message says why.
        CapacityError: there is no memory for the weights, or for a cache that was asked for; before a tensor is read
            where the plan knows it.
        Unsupported: the device cannot be used.
    """
    from isobit.models.encoders.table import open_tower
    from isobit.models.weights import load_model

    ck = runnable(path)
    own = Tokenizer.from_folder(
        path if tokenizer is None else tokenizer
    )  # first: it fails in milliseconds where the weights take long
    sequences = options.get("sequences", SEQUENCES)
    left = require_room(Path(path), device, memory, kv_cache, sequences, context=context)
    asked = options.get("cache_tokens")
    if memory is not None and left is not None and asked is None:
        options["cache_tokens"] = left.cache_tokens(at_once or sequences)
    if left is not None:
        options.setdefault("wide", left.piece)
    model = load_model(
        ck, dtype=dtype, device=device, kv_cache=kv_cache, batch_invariant=batch_invariant, context=context
    )  # fmt: skip
    tower = open_tower(ck, model.dtype, model.place.tensors)
    if model.place.tensors.type == "cuda":  # what loading took besides the weights goes back
        gc.collect()
        torch.cuda.empty_cache()
    llm = LLM(model, own, tower=tower, **options)
    if asked is not None and llm.engine.longest != asked:
        llm.notes += (
            f"a cache of {asked} tokens was asked for, and it has {llm.engine.longest}: whole blocks of"
            f" {llm.engine.pool.size}",
        )
    return llm
