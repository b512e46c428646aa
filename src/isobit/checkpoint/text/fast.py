"""tokenizer.json with the tokens of the files beside it: the library's tokenizer, and what a person should know."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from isobit.checkpoint.files import is_folder, is_there, read_file
from isobit.checkpoint.jsonfile import LARGEST_JSON, short
from isobit.checkpoint.occupant import require_finished
from isobit.checkpoint.text.classes import SETTINGS, disagreement, splits_into_bytes, tokenizer_class
from isobit.checkpoint.text.ranks import ranks_file, read_ranks
from isobit.checkpoint.text.tokens import CONFIG, FLAGS, Token, TokenFiles, optional_json, read_tokens
from isobit.errors import CheckpointError
from isobit.shortage import require_headroom

OTHER_TOKENIZERS = ("tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")
# Memory that the library takes, measured: it ends the process where that lacks.
READING_BYTES, ENCODING_BYTES, SPARE_BYTES = 20, 200, 4 << 20  # per byte of tokenizer.json, per character of text
_RANKS_BYTES = 256 << 20  # of a file of ranks: what 164 thousand tokens and their merges take while they are made
_REASON = 300  # characters of the library's own words in a message
_SHOWN = 4  # tokens named in a note

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fast:
    """A tokenizer as the files of a folder describe it.

    Attributes:
        tokenizer: the library's object, without truncation and padding.
        files: what the small files say.
        special: ids that decoding leaves out. A token stays special once a file said so.
        notes: what a person should know, as sentences.
    """

    tokenizer: FastTokenizer
    files: TokenFiles
    special: frozenset[int]
    notes: tuple[str, ...]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer that isobit reads: tokenizer.json, or tokens by their ranks."""
    return is_there(folder / "tokenizer.json") or ranks_file(folder, optional_json(folder / CONFIG)) is not None


def read_fast(folder: Path) -> Fast:
    """Reads tokenizer.json, or tokens by their ranks where there is none, and the small files beside it.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    config = optional_json(folder / CONFIG)
    path, fast = _vocabulary(folder, config)
    own = {id: _own(token) for id, token in fast.get_added_tokens_decoder().items()}
    padding = fast.padding
    normalizer, pre_tokenizer = _as_json(fast.normalizer), _as_json(fast.pre_tokenizer)
    found = tokenizer_class(config, optional_json(folder / "config.json"), splits_into_bytes(pre_tokenizer))
    brought = dict(found.named)
    if padding and "pad_token" in padding:
        brought["pad_token"] = padding["pad_token"]
    files = read_tokens(folder, config, own, brought)
    fast.no_truncation()
    fast.no_padding()
    if files.added:
        guarded(
            path,
            "this tokenizer does not take the tokens listed beside it",
            fast.add_tokens,
            [_added(t) for t in files.added],
        )
    special = {id for id, token in own.items() if token.special}
    special |= {id for token in files.added if token.special and (id := fast.token_to_id(token.text)) is not None}
    split = flag(folder, files.config, "split_special_tokens")
    if split:
        fast.encode_special_tokens = True
    parts = {"model": _model(fast), "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    unlike = disagreement(found, parts, own, files, fast.model.token_to_id)
    notes = (*([unlike] if unlike else []), *_notes(fast, files, split))
    return Fast(fast, files, frozenset(special), notes)


def _vocabulary(folder: Path, config: Mapping[str, Any]) -> tuple[Path, FastTokenizer]:
    """The file that holds the vocabulary, and the library's tokenizer of it."""
    path = ranks_file(folder, config)
    if path is not None:
        require_headroom(_RANKS_BYTES, f"reading {path}")
        with _quiet():
            return path, guarded(path, "this is not a tokenizer that can be read", read_ranks, path, config)
    path = folder / "tokenizer.json"
    if not is_there(path):
        require_finished(folder)
        raise CheckpointError(_missing(folder), file=folder)
    data = read_file(path, LARGEST_JSON)
    require_headroom(READING_BYTES * len(data) + SPARE_BYTES, f"reading {path}")
    with _quiet():
        return path, guarded(path, "this is not a tokenizer that can be read", _tried, data)


def _tried(data: bytes) -> FastTokenizer:
    """The library's tokenizer, once used: some that are read end in a panic whatever they are given."""
    fast = FastTokenizer.from_buffer(data)
    for text in ("", "a b"):
        try:
            fast.decode(fast.encode(text).ids, skip_special_tokens=False)
        except Exception:  # it may just not know these letters
            continue
    return fast


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops what is written on standard error: a panic says where it happened there before it is an exception here."""
    try:
        kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # no standard error, or no room for two more files: nothing to drop, or no way to
        yield
        return
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def flag(folder: Path, config: Mapping[str, Any], key: str) -> bool:
    """A setting of tokenizer_config.json that is true or false (the default).

    Raises:
        CheckpointError: it is something else.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        reason = f"{key} must be true or false, not {short(value)}"
        raise CheckpointError(reason, file=folder / "tokenizer_config.json")
    return bool(value)


def guarded(path: Path | None, what: str, call: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Calls the tokenizers library, which raises bare exceptions, and panics, for every kind of damage.

    Raises:
        CheckpointError: it failed; ``what`` says what that means, and the library's own reason follows.
    """
    try:
        return call(*args, **kwargs)
    except (CheckpointError, OverflowError, TypeError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {_reason(error)}", file=path) from None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Cannot instantiate Tokenizer from buffer: ")[:_REASON]


def _missing(folder: Path) -> str:
    if not is_folder(folder):  # a GGUF file, which holds its own
        return "there is no tokenizer in this file: use one with tokenizer.ggml.model and its vocabulary"
    others = [name for name in OTHER_TOKENIZERS if is_there(folder / name)]
    if not others:
        return (
            "there is no tokenizer file at all: copy tokenizer.json, and tokenizer_config.json where there is one, from"
            " the model that this one was made of into this folder"
        )
    return (
        f"there is no tokenizer.json but only {', '.join(others)}. Convert once with transformers: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
    )


def _as_json(part: Any) -> Any:
    """A part of a tokenizer as JSON has it; None for none."""
    return None if part is None else json.loads(part.__getstate__())


def _model(fast: FastTokenizer) -> dict[str, Any]:
    """The settings of a tokenizer's model as JSON has them, without vocabulary and merges."""
    model = fast.model
    return {"type": type(model).__name__} | {key: getattr(model, key, None) for key in SETTINGS}


def _own(token: AddedToken) -> Token:
    return Token(token.content, file="tokenizer.json", **{name: bool(getattr(token, name)) for name in FLAGS})


def _added(token: Token) -> AddedToken:
    flags = {name: value for name in FLAGS if (value := getattr(token, name)) is not None}
    return AddedToken(token.text, **flags)


def _notes(fast: FastTokenizer, files: TokenFiles, split: bool) -> Iterator[str]:
    moved = [
        f"{token.text!r} is listed as {token.listed_id} and is {fast.token_to_id(token.text)}"
        for token in files.added
        if token.listed_id is not None and fast.token_to_id(token.text) != token.listed_id
    ]
    if moved:
        yield f"token ids that the tokenizer's files do not agree on, taken as transformers takes them: {some(moved)}"
    unknown = {token.text: token.file for token in files.unasked if token.text and fast.token_to_id(token.text) is None}
    if unknown:
        yield (
            f"tokens that only {', '.join(sorted(set(unknown.values())))} names are not used, as in transformers "
            f"(tokenizer_config.json lists the added tokens itself): {some(map(repr, unknown))}"
        )
    if split:
        yield "split_special_tokens is true in tokenizer_config.json: special tokens written in a prompt are plain text"


def some(items: Iterable[str]) -> str:
    """The first few of a list, and how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(item[:120] for item in listed[:_SHOWN]) + more
