"""Measure a checkpoint on a text, alone or against the source it was made from."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from isobit.checkpoint.reader import Checkpoint
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError, UsageError
from isobit.evaluation import paths, text
from isobit.evaluation.corpus import Corpus, Sample, require_same_tokens, sample
from isobit.evaluation.fidelity import Fidelity, Progress, compare_all
from isobit.evaluation.info import CheckpointInfo, describe_checkpoint
from isobit.evaluation.kept import KeptLogits
from isobit.evaluation.layers import layer_errors
from isobit.evaluation.likelihood import Likelihood
from isobit.evaluation.loading import load_measured
from isobit.evaluation.results import Method, Results, SchemeResult, SourceResult, Speed
from isobit.evaluation.statistics import RESAMPLES
from isobit.evaluation.windows import DEFAULT_CTX, DEFAULT_TOKENS
from isobit.models.contents import TABLE, contents
from isobit.models.decoder import Decoder
from isobit.models.opening import require_family, runnable
from isobit.models.place import place
from isobit.shortage import shortages
from isobit.targets.detect import detect

LAYER_TOKENS = 1024
"""About how many tokens the error by layer is measured on: hidden states vary far less than single tokens' KL."""


@dataclass(frozen=True)
class Subject:
    """A loaded model and what is known about its checkpoint; ``read_bytes`` is what decoding a token reads of it."""

    name: str
    model: Decoder
    info: CheckpointInfo
    vocab: int
    read_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model.

    Attributes:
        model: its name.
        likelihood: how well it predicts the text.
        fidelity: what it lost against its source; None when there was none to compare with.
        method: how it was measured.
        results: the same with sizes and errors by layer, for a report; None without a source.
        notes: what people should know about the checkpoints that were measured.
    """

    model: str
    likelihood: Likelihood
    fidelity: Fidelity | None
    method: Method
    results: Results | None = field(repr=False)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return text.describe(self.model, self.likelihood, self.fidelity, self.method)


def load_subject(
    path: Path,
    name: str | None = None,
    *,
    device: str = "cpu",
    lowering: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool | None = None,
) -> Subject:
    """Load a checkpoint to be measured.

    Args:
        path: the folder.
        name: what to call it; None for the folder's name.
        device: what runs it: ``cpu`` or ``cuda``.
        lowering: target whose lowering runs on the GPU; None for the GPU's own.
        kv_cache: what it stores keys and values as.
        batch_invariant: see :func:`isobit.evaluation.loading.load_measured`.
    """
    checkpoint = runnable(path)
    model = load_measured(
        checkpoint, device=device, lowering=lowering, kv_cache=kv_cache, batch_invariant=batch_invariant
    )
    info = describe_checkpoint(checkpoint)
    return Subject(name or path.resolve().name, model, info, model.config.vocab_size, bytes_per_token(checkpoint))


def bytes_per_token(checkpoint: Checkpoint) -> int:
    """Stored bytes that decoding one token reads: all that the model needs but an embedding table of its own."""
    found = contents(checkpoint)
    unread = {*found.left_out, *found.kv_scales, *found.beside}
    if not found.config.tie_word_embeddings:
        unread |= {name for name in found.ck.tensors if name.startswith(TABLE)}
    return sum(tensor.nbytes for name, tensor in found.ck.tensors.items() if name not in unread)


@shortages()
def evaluate_asked(path: Path, name: str, source: Source | None, asked: Asked) -> Evaluation:
    """Measure a checkpoint; raises what :func:`evaluate` does."""
    place(asked.device, asked.lowering)  # refused before anything is read
    return measured(path, name, source, asked)


@shortages()
def evaluate(
    path: Path,
    corpus: Corpus,
    *,
    against: Path | None = None,
    ctx: int | None = None,
    stride: int | None = None,
    tokens: int | None = DEFAULT_TOKENS,
    seed: int = 0,
    device: str = "cpu",
    lowering: str | None = None,
    kv_cache: str = "auto",
    batch_invariant: bool | None = None,
    command: str = "",
    names: tuple[str, str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a checkpoint.

    Args:
        path: the folder.
        corpus: the text.
        against: the folder of its source, to measure fidelity too.
        ctx: tokens per window; if None, 512 or as many as the model can read.
        stride: how far apart windows begin; ``ctx`` if None.
        tokens: about how many tokens to score, spread evenly over the text; all if None.
        seed: of the bootstrap.
        device: what runs both models: ``cpu`` or ``cuda``.
        lowering: target whose lowering runs on the GPU; None for the GPU's own.
        kv_cache: what the checkpoint's model stores keys and values as; its source has them as activations.
        batch_invariant: of all models; see :func:`isobit.evaluation.loading.load_measured`.
        command: the command line that does it again, for the report.
        names: what to call the model and its source.
        progress: called after each batch of windows.

    Raises:
        UsageError: the text is too short, the context too long, or the two models cannot be compared.
        Unsupported: there is no such GPU, or it has no kernel for a model's formats.
        IsobitError: a checkpoint cannot be loaded, or gives NaN.
    """
    place(device, lowering)  # refused before anything is read
    name, source_name = names or (path.resolve().name, against.resolve().name if against else "")
    source = None if against is None else Source(against, source_name, device, lowering, batch_invariant)
    asked = Asked(corpus, ctx, stride, tokens, seed, device, lowering, command, progress, kv_cache, batch_invariant)
    return measured(path, name, source, asked)


Keep = Callable[[Sample, int], KeptLogits]
"""Where the source's logits are kept: takes the windows and the vocabulary."""


@dataclass
class Source:
    """What models are measured against, loaded when the first of them is."""

    path: Path
    name: str
    device: str
    lowering: str | None
    batch_invariant: bool | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        require_family(self.path)
        return Tokenizer.from_folder(self.path)

    @cached_property
    def subject(self) -> Subject:
        return load_subject(
            self.path, self.name, device=self.device, lowering=self.lowering, batch_invariant=self.batch_invariant
        )


@dataclass(frozen=True)
class Asked:
    """What is measured, whatever the model; ``kv_cache`` is the model's, whose source has it as activations."""

    corpus: Corpus
    ctx: int | None
    stride: int | None
    tokens: int | None
    seed: int
    device: str
    lowering: str | None
    command: str = ""
    progress: Progress | None = None
    kv_cache: str = "auto"
    batch_invariant: bool | None = None


def measured(path: Path, name: str, source: Source | None, asked: Asked, keep: Keep | None = None) -> Evaluation:
    """One model on a text, against its source if there is one."""
    corpus = asked.corpus
    require_family(path)
    tokenizer = Tokenizer.from_folder(path)
    if source is not None:
        require_same_tokens(corpus, tokenizer, source.tokenizer, (name, source.name))
    subject = load_subject(
        path, name, device=asked.device, lowering=asked.lowering, kv_cache=asked.kv_cache,
        batch_invariant=asked.batch_invariant,
    )  # fmt: skip
    chosen = sample(corpus, tokenizer, choose_ctx(subject, asked.ctx), stride=asked.stride, tokens=asked.tokens)
    require_known_ids(chosen, subject, path)
    first, kept = subject, None
    if source is not None:
        first = source.subject
        require_same_vocabulary(first, subject)
        choose_ctx(first, chosen.ctx)
        kept = None if keep is None else keep(chosen, first.vocab)
    own, found = compare_all(
        first.model,
        {} if source is None else {name: subject.model},
        chosen.windows,
        bytes_per_token=chosen.bytes_per_token,
        seed=asked.seed,
        name=first.name,
        progress=asked.progress,
        kept=kept,
    )
    notes = (*subject.model.notes, *tokenizer.id_notes)
    if kept is not None and kept.why_not is not None:
        notes = (*notes, f"{first.name}: its logits were not kept for other models: {kept.why_not}")
    if source is None:
        method = describe_method(corpus, chosen, asked.seed, asked.command, [subject])
        return Evaluation(name, own, None, method, None, notes)

    def method_of(layer_tokens: int) -> Method:
        return describe_method(corpus, chosen, asked.seed, asked.command, [first, subject], layer_tokens)

    return _compared(first, subject, own, found[name], chosen, method_of, notes)


def _compared(
    source: Subject,
    subject: Subject,
    own: Likelihood,
    fidelity: Fidelity,
    chosen: Sample,
    method_of: Callable[[int], Method],
    notes: tuple[str, ...],
) -> Evaluation:
    """The evaluation of a model against its source.

    ``method_of`` takes the tokens the layers were compared on; ``notes`` are those of the model, without its source's.
    """
    notes = (*notes, *(f"{source.name}: {note}" for note in source.model.notes))
    errors: tuple[float, ...] = ()
    layer_tokens = 0
    if (reason := other_layers(source, subject)) is None:
        (errors,), layer_tokens = errors_by_layer(source, [subject], chosen)
    else:
        notes += (f"error by layer: not measured, for {reason}",)
    method = method_of(layer_tokens)
    row = scheme_result(subject, fidelity, note=_schemes(subject.info), layers=errors)
    likelihood = Likelihood(fidelity.tokens, fidelity.windows, fidelity.perplexity, fidelity.bits_per_byte)
    results = Results(source_result(source, own), (row,), (), method)
    return Evaluation(subject.name, likelihood, fidelity, method, results, notes)


def other_layers(source: Subject, subject: Subject) -> str | None:
    """Why the hidden states of two models cannot be compared layer by layer; None if they can."""
    shapes = [(len(one.model.layers), one.model.config.hidden_size) for one in (source, subject)]
    if shapes[0] == shapes[1]:
        return None
    words = [
        f"{one.name} has {layers} layers of width {width}"
        for one, (layers, width) in zip((source, subject), shapes, strict=True)
    ]
    return " and ".join(words)


def require_known_ids(chosen: Sample, subject: Subject, path: Path) -> None:
    """Check that a tokenizer's tokens are the model's.

    Raises:
        CheckpointError: there is one behind the end of the model's vocabulary.
    """
    largest = max(max(window.ids) for window in chosen.windows)
    if largest >= subject.vocab:
        raise CheckpointError(
            f"it makes token {largest} of the text, and {subject.name} has {subject.vocab} tokens (0 to "
            f"{subject.vocab - 1}): tokenizer and weights are not of the same model",
            file=path / "tokenizer.json",
        )


def choose_ctx(subject: Subject, ctx: int | None) -> int:
    """The context to measure with.

    Raises:
        UsageError: it is longer than the model can read.
    """
    longest = subject.model.config.max_context
    if ctx is None:
        return min(DEFAULT_CTX, longest)
    if ctx > longest:
        raise UsageError(f"a context of {ctx} tokens is more than {subject.name} can read: at most {longest}")
    return ctx


def require_same_vocabulary(source: Subject, other: Subject) -> None:
    """Check that two models give distributions over the same tokens.

    Raises:
        UsageError: their vocabularies differ in size.
    """
    if source.vocab != other.vocab:
        raise UsageError(
            f"{other.name} has a vocabulary of {other.vocab} tokens and {source.name} one of {source.vocab}: their "
            "next-token distributions cannot be compared. Is this the source it was quantized from?"
        )


def errors_by_layer(source: Subject, others: list[Subject], chosen: Sample) -> tuple[list[tuple[float, ...]], int]:
    """Relative error of the hidden states per model, and how many tokens it was measured on."""
    count = max(1, LAYER_TOKENS // chosen.ctx)
    step = max(1, len(chosen.windows) // count)
    few = chosen.windows[::step][:count]
    return layer_errors(source.model, [other.model for other in others], few), sum(len(window.ids) for window in few)


def source_result(source: Subject, own: Likelihood, speed: Speed | None = None) -> SourceResult:
    """The row of the source."""
    bits = source.info.linear_bits_per_weight
    return SourceResult(
        name=source.name,
        parameters=source.info.parameters,
        bits_per_weight=source.info.file_bits_per_parameter if bits is None else bits,
        size=source.info.file_bytes,
        likelihood=own,
        speed=speed,
    )


def scheme_result(
    subject: Subject,
    fidelity: Fidelity,
    *,
    note: str,
    layers: tuple[float, ...] = (),
    weights: tuple[tuple[str, float], ...] = (),
    speed: Speed | None = None,
) -> SchemeResult:
    """The row of a model made from the source."""
    bits = subject.info.linear_bits_per_weight
    return SchemeResult(
        name=subject.name,
        note=note,
        bits_per_weight=subject.info.file_bits_per_parameter if bits is None else bits,
        size=subject.info.file_bytes,
        fidelity=fidelity,
        speed=speed,
        layer_errors=layers,
        weight_errors=weights,
    )


def _schemes(info: CheckpointInfo) -> str:
    return ", ".join(use.scheme for use in info.schemes if use.kind == "linear")


def describe_method(
    corpus: Corpus, chosen: Sample, seed: int, command: str, measured: Sequence[Subject], layer_tokens: int = 0
) -> Method:
    """How it was measured: with what ran each model, this machine, and the versions of what measured it."""
    machine, one = detect(), measured[0].model
    return Method(
        text=corpus.name,
        text_bytes=corpus.num_bytes,
        text_tokens=chosen.text_tokens,
        ctx=chosen.ctx,
        stride=chosen.stride,
        layer_tokens=layer_tokens,
        seed=seed,
        resamples=RESAMPLES,
        paths=tuple(paths.execution_path(subject.name, subject.model, machine) for subject in measured),
        hardware=paths.hardware(one, machine),
        versions=paths.versions(one, machine),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
    )
