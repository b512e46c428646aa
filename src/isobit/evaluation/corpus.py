"""The text that models are measured on: read, tokenized document by document, cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isobit.bundled import HELDOUT_NAME, heldout_path
from isobit.checkpoint.files import is_file, is_folder, read_file
from isobit.errors import CheckpointError, UsageError
from isobit.evaluation.windows import Window, spread, windows

MIN_TOKENS = 64
LARGEST_TEXT = 1 << 30  # bytes of one file


class Encoder(Protocol):
    """What is needed of a tokenizer; :class:`isobit.engine.tokenizer.Tokenizer` has it."""

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class Corpus:
    """A text to measure on.

    Attributes:
        name: what to call it.
        documents: its parts; no window reaches from one into the next.
    """

    name: str
    documents: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Its size in UTF-8."""
        return sum(len(document.encode()) for document in self.documents)


@dataclass(frozen=True)
class Sample:
    """The windows that were chosen from a text.

    Attributes:
        windows: what the models read.
        text_tokens: tokens of the whole text.
        bytes_per_token: UTF-8 bytes of the text per token of it, special tokens not counted.
        ctx: tokens per window.
        stride: how far apart windows begin.
    """

    windows: tuple[Window, ...]
    text_tokens: int
    bytes_per_token: float
    ctx: int
    stride: int


def read_corpus(path: Path) -> Corpus:
    """A text file as one document, or a folder's files as one each, in the order of their names.

    Raises:
        UsageError: it can't be read, is not UTF-8, or is empty; names the file.
    """
    if is_folder(path):
        files = sorted(file for file in path.rglob("*") if is_file(file))
        if not files:
            raise UsageError(f"{path}: the folder has no files to read")
        return Corpus(str(path), tuple(_read(file) for file in files))
    return Corpus(path.name, (_read(path),))


def heldout() -> Corpus:
    """The text that comes with isobit and that the bundled model never saw."""
    return Corpus(HELDOUT_NAME, (_read(heldout_path()),))


def _read(path: Path) -> str:
    try:
        data = read_file(path, LARGEST_TEXT)
    except CheckpointError as error:
        raise UsageError(f"the text cannot be used: {error}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: the text is not UTF-8 (byte {error.start} is {data[error.start]:#04x}); "
            "convert it, for example with iconv"
        ) from error
    if not text.strip():
        raise UsageError(f"{path}: the text is empty")
    return text


def sample(
    corpus: Corpus, tokenizer: Encoder, ctx: int, *, stride: int | None = None, tokens: int | None = None
) -> Sample:
    """Tokenize a text and choose its windows.

    Args:
        corpus: the text.
        tokenizer: the model's.
        ctx: tokens per window.
        stride: how far apart windows begin; ``ctx`` if None.
        tokens: about how many tokens to score, in windows spread evenly over the text; all if None.

    Raises:
        UsageError: the text is too short, or ``ctx``, ``stride`` or ``tokens`` is out of range.
    """
    if tokens is not None and tokens < 1:
        raise UsageError(f"{tokens} tokens to score; give at least 1, or 0 on the command line for the whole text")
    encoded = [tokenizer.encode(document) for document in corpus.documents]
    plain = sum(len(tokenizer.encode(document, add_special=False)) for document in corpus.documents)
    total = sum(map(len, encoded))
    if plain < MIN_TOKENS:
        raise UsageError(
            f"{corpus.name} has {plain} tokens; at least {MIN_TOKENS} are needed, and some thousands for narrow "
            "intervals. Give a longer file with --text"
        )
    every = [window for ids in encoded if len(ids) > 1 for window in windows(ids, ctx, stride)]
    if not every:
        raise UsageError(
            f"{corpus.name}: none of its files has two tokens; a token is scored by what stands before it in its file"
        )
    return Sample(tuple(spread(every, tokens)), total, corpus.num_bytes / plain, ctx, stride or ctx)


def require_same_tokens(corpus: Corpus, one: Encoder, other: Encoder, names: Sequence[str]) -> None:
    """Check that two tokenizers split a text alike.

    Raises:
        UsageError: they don't, so that next-token distributions can't be compared.
    """
    for document in corpus.documents:
        if one.encode(document) != other.encode(document):
            raise UsageError(
                f"{names[0]} and {names[1]} split {corpus.name} into different tokens; fidelity compares next-token "
                "distributions, so both must have the same tokenizer. Is this the source it was quantized from?"
            )
