"""Generation: prefill, then one token after the other with a key-value cache."""

from __future__ import annotations

import gc
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from isobit.checkpoint.text.generation import Defaults
from isobit.engine.runner import Runner, Seat
from isobit.engine.sampling import Sampler, SamplingParams, StopWatch, TokenLogprob, token_logprob
from isobit.engine.tokenizer import DecodeStream, Tokenizer
from isobit.errors import CapacityError, UsageError
from isobit.shortage import shortages
from isobit.targets.prefill import prefill_chunk

DEFAULT_MAX_TOKENS = 256

FinishReason = Literal["stop", "length"]


class Model(Protocol):
    """What generation needs of a model (:class:`isobit.models.decoder.Decoder`).

    ``place.target`` is the GPU whose kernels run it, or None on a CPU; ``notes`` are what people should know.
    """

    config: Any
    place: Any
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds, measured on a monotonic clock; ``tokens_per_second`` is of decoding alone, None for fewer than 2 tokens.

    The first token comes out of the prefill; the decode time is that of the tokens after it.
    """

    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    Attributes:
        text: without special tokens and without the stop string.
        token_ids: every token that was chosen, also the end-of-text token or those of a stop string.
        finish_reason: "stop" at an end-of-text token or stop string, "length" at max_tokens or the context's end.
        stop: what stopped it: the stop string, or the id of the end-of-text token; None for "length".
        logprobs: one per token of ``token_ids`` if asked for.
        notes: what a person should know about this prompt, as sentences.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None
    logprobs: tuple[TokenLogprob, ...] | None
    usage: Usage
    timings: Timings
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it comes: text that is final (often empty), and the tokens since the last piece.

    The last piece has ``completion``; the texts of all pieces concatenate to ``completion.text``.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    completion: Completion | None = None


class Generator:
    """A model and its tokenizer, generating text.

    Attributes:
        chunk: tokens of a prompt that go through the model at once.
        notes: what a person should know about this model and its tokenizer, as sentences.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, runner: Runner | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.runner = runner if runner is not None else Runner(model)  # type: ignore[arg-type]
        self.chunk = prefill_chunk(model.place.target)
        self.notes = (*model.notes, *tokenizer.notes)

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer together."""
        return int(self.model.config.max_context)

    def generate(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Completion:
        """Complete a prompt.

        Args:
            prompt: text, encoded with the special tokens the tokenizer adds; or token ids, used as they are.
            params: how; greedy by default.

        Raises:
            UsageError: the prompt is empty, no text, has impossible ids, or leaves no room for max_tokens.
            CapacityError: the prompt alone is longer than the context.
            IsobitError: the model's logits are NaN.
        """
        for piece in self.stream(prompt, params):
            if piece.completion is not None:
                return piece.completion
        raise AssertionError("a stream ends with a completion")

    def stream(self, prompt: str | Sequence[int], params: SamplingParams | None = None) -> Iterator[Piece]:
        """Complete a prompt piece by piece; takes and raises what :meth:`generate` does, before the first piece."""
        params = params or SamplingParams()
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else given_ids(prompt)
        require_known(ids, self._vocab_size(), self.tokenizer)
        limit = room(ids, params.max_tokens, self.context_length, self.tokenizer.defaults)
        return _Answer(self, ids, params, limit).pieces()

    def prefill(self, seat: Seat, ids: Sequence[int]) -> Tensor:
        """Feeds a prompt, a chunk after the other; returns the logits [V] after its last token."""
        logits = None
        for begin in range(0, len(ids), self.chunk):
            logits = self.runner.feed(seat, ids[begin : begin + self.chunk])
        assert logits is not None
        return logits

    def _vocab_size(self) -> int:
        return int(self.model.config.vocab_size)


def given_ids(prompt: Iterable[int]) -> list[int]:
    """Token ids that a person gave, as Python integers.

    Raises:
        UsageError: they are no integers.
    """
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


def require_known(ids: Sequence[int], vocabulary: int, tokenizer: Tokenizer) -> None:
    """The model must have every token of a prompt: what lies beyond its embedding is no memory of it.

    Raises:
        UsageError: one is outside the model's vocabulary; names the token.
    """
    wrong = next((id for id in ids if not 0 <= id < vocabulary), None)
    if wrong is not None:
        name = tokenizer.name_of(wrong)
        called = "" if name is None else f" ({name!r}, which the tokenizer knows and the model does not)"
        raise UsageError(f"token id {wrong}{called} is outside the model's vocabulary of {vocabulary} tokens")


def room(ids: Sequence[int], max_tokens: int | None, context: int, defaults: Defaults) -> int:
    """How many tokens the answer may have.

    Args:
        ids: the prompt.
        max_tokens: what was asked for; None leaves it to the model and to us.
        context: the most tokens that the model reads.
        defaults: of the model.

    Raises:
        UsageError: no prompt, or max_tokens larger than what the context leaves.
        CapacityError: the prompt fills the context.
    """
    if not ids:
        raise UsageError("the prompt is empty: give some text (this tokenizer adds no begin-of-text token by itself)")
    left = context - len(ids)
    if left < 1:
        raise CapacityError(
            f"the prompt has {len(ids)} tokens and the model's context holds {context}, prompt and answer together; "
            f"shorten the prompt to at most {context - 1} tokens"
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


class _Answer:
    """One running generation."""

    def __init__(self, generator: Generator, ids: list[int], params: SamplingParams, limit: int) -> None:
        self._generator = generator
        self._prompt = ids
        self._params = params
        self._limit = limit
        self._sampler = Sampler(params, ids)
        self._decoder = DecodeStream(generator.tokenizer)
        self._watch = StopWatch(params.stop)
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._text: list[str] = []

    @torch.inference_mode()
    @shortages()
    def _step(self, feed: Callable[[], Tensor]) -> int:
        """Feed tokens, choose the next."""
        logits = feed()
        token = self._sampler.sample(logits)
        if self._params.logprobs is not None:
            self._logprobs.append(token_logprob(logits, token, self._params.logprobs))
        self._tokens.append(token)
        return token

    def pieces(self) -> Iterator[Piece]:
        """The answer; ends with the piece that has the completion."""
        with shortages():
            seat = self._generator.runner.open(len(self._prompt) + self._limit)
        try:
            yield from self._pieces(seat)
        finally:
            seat.close()

    def _pieces(self, seat: Seat) -> Iterator[Piece]:
        eos = frozenset() if self._params.ignore_eos else self._generator.tokenizer.eos_ids
        started = time.perf_counter()
        token = self._step(lambda: self._generator.prefill(seat, self._prompt))
        prefill = time.perf_counter() - started
        decode = 0.0  # only our own time: a slow reader of the pieces is no slow model
        while True:
            at_eos = token in eos
            text = "" if at_eos else self._watch.push(self._decoder.push(token))
            if at_eos or self._watch.found is not None or len(self._tokens) == self._limit:
                break
            self._text.append(text)
            yield Piece(text, (token,))
            started = time.perf_counter()
            token = self._step(lambda last=token: self._generator.runner.feed(seat, (last,)))  # type: ignore[misc]
            decode += time.perf_counter() - started
        text += self._held_back()
        self._text.append(text)
        yield Piece(text, (token,), self._completion(at_eos, Timings(prefill, decode, self._rate(decode))))

    def _held_back(self) -> str:
        """At the end: the text held back, up to a stop string in it."""
        if self._watch.found is not None:
            return ""
        text = self._watch.push(self._decoder.finish())
        return text + self._watch.finish()

    def _completion(self, at_eos: bool, timings: Timings) -> Completion:
        stop: str | int | None = self._watch.found
        if stop is None and at_eos:
            stop = self._tokens[-1]
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._tokens),
            finish_reason="length" if stop is None else "stop",
            stop=stop,
            logprobs=None if self._params.logprobs is None else tuple(self._logprobs),
            usage=Usage(len(self._prompt), len(self._tokens)),
            timings=timings,
            notes=tuple(note for note in [doubled_bos(self._prompt, self._generator.tokenizer)] if note),
        )

    def _rate(self, seconds: float) -> float | None:
        return (len(self._tokens) - 1) / seconds if len(self._tokens) > 1 and seconds > 0 else None


@shortages()
def load_generator(path: str | Path, dtype: str | None = None, device: str = "cpu") -> Generator:
    """Load a checkpoint folder, quantized or not, for generation.

    Args:
        path: the folder (:func:`isobit.checkpoint.source.resolve` finds one for a hub id).
        dtype: what activations are computed in: "float32" (the default on a CPU), "bfloat16" or "float16".
        device: "cpu" or "cuda".

    Raises:
        CheckpointError, ModelError: the folder cannot be used; the message says why.
        Unsupported: the device cannot be used.
    """
    from isobit.models.weights import load_model

    tokenizer = Tokenizer.from_folder(path)  # first: it fails in milliseconds where the weights take long
    model = load_model(path, dtype=dtype, device=device)
    if model.place.tensors.type == "cuda":  # what loading took besides the weights goes back
        gc.collect()
        torch.cuda.empty_cache()
    return Generator(model, tokenizer)
