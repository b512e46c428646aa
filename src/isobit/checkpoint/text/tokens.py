"""Which tokens the small files beside tokenizer.json name, and in which order they join the vocabulary.

The law is that of transformers 5, whose ids and flags are the model's: ``tokenizer_config.json`` counts, and
``special_tokens_map.json`` and ``added_tokens.json`` do where it has no ``added_tokens_decoder``. Listed tokens join in
the order of their ids, then bos, eos and the other named ones, then the extra ones; a token that the vocabulary lacks
gets the next free id, whatever id the file gives. What tokenizer.json knows already takes over the flags listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from isobit.checkpoint.files import is_there
from isobit.checkpoint.jsonfile import read_json, short
from isobit.errors import CheckpointError

CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_LISTED, _EXTRA, _OLD_EXTRA = "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"
_ID = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True)
class Token:
    """A token that a file names.

    Attributes:
        text: what it is written as.
        special: whether decoding leaves it out.
        normalized: whether it is looked for in normalized text; None is the library's rule (those not special).
        plain: the file gives its text alone.
        listed_id: the id the file gives it, which it need not get.
        file: the name of the file.
    """

    text: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None
    plain: bool = False
    listed_id: int | None = None
    file: str = ""


@dataclass(frozen=True)
class TokenFiles:
    """What the small files say about tokens.

    Attributes:
        config: tokenizer_config.json.
        added: the tokens that join the vocabulary, in this order.
        named: ``bos_token``, ``eos_token``, ... and a model's own names as text: the variables of chat templates.
        unasked: tokens of files that do not count beside ``added_tokens_decoder``.
        asked: what is named, and what is listed as extra tokens: all that is special to transformers.
    """

    config: Mapping[str, Any]
    added: tuple[Token, ...]
    named: Mapping[str, str]
    unasked: tuple[Token, ...]
    asked: frozenset[str]


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is none of this name (a link to nothing is an error).

    Raises:
        CheckpointError: the file cannot be used.
    """
    return read_json(path) if is_there(path) else {}


def read_tokens(
    folder: Path, config: Mapping[str, Any], own: Mapping[int, Token], brought: Mapping[str, str]
) -> TokenFiles:
    """Reads what the small files of a folder say.

    Args:
        folder: the model's folder.
        config: its tokenizer_config.json.
        own: the added tokens of tokenizer.json by id.
        brought: named tokens where no file says otherwise, a file's null included.

    Raises:
        CheckpointError: a file is damaged, or an entry has the wrong type; names file and key.
    """
    reader = _Reader(folder, config)
    listed = reader.listed()
    if listed is None:
        reader.take_map(optional_json(folder / MAP))
        listed = {**reader.legacy(optional_json(folder / ADDED)), **own}
        unasked: tuple[Token, ...] = ()
    else:
        unasked = tuple(_unasked(folder))
    reader.bring(brought)
    named = reader.ordered()
    known = {token.text for token in own.values()} | {token.text for token in listed.values()}
    added = [listed[id] for id in sorted(listed)]
    for token in (*named.values(), *reader.extra):
        again = token.plain and any(other.plain and other.text == token.text for other in added)
        if token.text not in known and not again:  # an object given twice joins twice: the last flags stay
            added.append(replace(token, special=True) if token.plain else token)
    names = {token.text for token in named.values()}
    return TokenFiles(
        config,
        tuple(replace(token, special=True) if token.text in names else token for token in added if token.text),
        {key: token.text for key, token in named.items()},
        unasked,
        frozenset(names | {token.text for token in reader.extra}),
    )


class _Reader:
    """Collects what the files name; every value is checked on the way."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._config = config
        self.named: dict[str, Token | None] = {}  # the standard names
        self._typed: dict[str, Token] = {}  # a model's own names, given as objects or in the map
        self._texts: dict[str, Token] = {}  # a model's own names, given as text or by extra_special_tokens
        self.extra: list[Token] = []
        self._listed_extra: tuple[Token, ...] = ()
        self._has_extra = False
        for key, value in config.items():
            if key in NAMED:
                self.named[key] = self._optional(CONFIG, key, value)
            elif key.endswith("_token") and isinstance(value, str):
                self._texts[key] = self._token(CONFIG, key, value)
            elif key.endswith("_token") and isinstance(value, dict) and value.get("__type") == "AddedToken":
                self._typed[key] = self._token(CONFIG, key, value)
        extra = config.get(_EXTRA)
        self._take_extra(CONFIG, _EXTRA, extra)
        # The old key counts where the new one is empty or an object; in the latter case the map may still replace it.
        self._old_extra: tuple[str, Any] = (CONFIG, config.get(_OLD_EXTRA))
        if _OLD_EXTRA in config and not extra:
            self._has_extra = False
            self._take_extra(CONFIG, _OLD_EXTRA, config[_OLD_EXTRA])

    def listed(self) -> dict[int, Token] | None:
        """``added_tokens_decoder``: id to token; None if the file has none."""
        entries = self._config.get(_LISTED)
        if entries is None:
            return None
        if not isinstance(entries, dict):
            self._wrong(CONFIG, _LISTED, "an object of ids and tokens", entries)
        found: dict[int, Token] = {}
        for id, value in entries.items():
            if not _ID.fullmatch(id):
                self._wrong(CONFIG, _LISTED, "an object whose keys are token ids", id)
            if not isinstance(value, dict):
                self._wrong(CONFIG, f"{_LISTED}[{id}]", "an object with content and flags", value)
            found[int(id)] = replace(self._token(CONFIG, f"{_LISTED}[{id}]", value), listed_id=int(id))
        return found

    def take_map(self, entries: Mapping[str, Any]) -> None:
        """special_tokens_map.json: wins over tokenizer_config.json."""
        for key, value in entries.items():
            if key in NAMED:
                self.named[key] = self._optional(MAP, key, value, special=True)
            elif key == _EXTRA:
                self._take_extra(MAP, key, value)
            elif key.endswith("_token") and isinstance(value, (str, dict)):
                self._typed[key] = self._token(MAP, key, value, special=True)
        self._listed_extra = tuple(self.extra)  # the old key comes too late to make tokens of added_tokens.json special
        if _OLD_EXTRA in entries:
            self._old_extra = (MAP, entries[_OLD_EXTRA])

    def legacy(self, entries: Mapping[str, Any]) -> dict[int, Token]:
        """added_tokens.json, token to id: id to token."""
        names = [token for token in (*self.named.values(), *self._listed_extra) if token is not None]
        special = {token.text for token in names if token.plain or token.file == MAP}  # objects are not looked into
        found: dict[int, Token] = {}
        for text, id in entries.items():
            if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < 10**10:
                self._wrong(ADDED, short(text), "a token id", id)
            is_special = text in special
            found[id] = Token(text, is_special, normalized=not is_special, listed_id=id, file=ADDED)
        return found

    def bring(self, named: Mapping[str, str]) -> None:
        """Named tokens where no file says otherwise."""
        for key, text in named.items():
            if key in NAMED:
                self.named.setdefault(key, Token(text, plain=True))
            elif key not in self._texts:
                self._typed.setdefault(key, Token(text, plain=True))

    def ordered(self) -> dict[str, Token]:
        """Every named token, in the order in which they join the vocabulary; ``extra`` is whole from then on."""
        if not self._has_extra:
            file, value = self._old_extra
            self._take_extra(file, _OLD_EXTRA, value)
        standard = {key: token for key in NAMED if (token := self.named.get(key)) is not None}
        return standard | self._typed | self._texts

    def _take_extra(self, file: str, key: str, value: Any) -> None:
        if value is None:
            return
        if isinstance(value, dict):
            self._texts |= {name: self._token(file, f"{key}[{short(name)}]", token) for name, token in value.items()}
        elif isinstance(value, list):
            self._has_extra = True
            for place, token in enumerate(value):
                # An object says itself whether it is special where it comes under the old key with its type.
                typed = key == _OLD_EXTRA and isinstance(token, dict) and token.get("__type") == "AddedToken"
                special = file == MAP and not typed
                self.extra.append(self._token(file, f"{key}[{place}]", token, special=special))
        else:
            self._wrong(file, key, "a list of tokens, or an object of names and tokens", value)

    def _optional(self, file: str, key: str, value: Any, special: bool = False) -> Token | None:
        return None if value is None else self._token(file, key, value, special)

    def _token(self, file: str, key: str, value: Any, special: bool = False) -> Token:
        """A token from its text or from an object with ``content`` and flags."""
        if isinstance(value, str):
            return Token(value, plain=True, file=file)
        if not isinstance(value, dict) or not isinstance(value.get("content"), str):
            self._wrong(file, key, "a text, or an object whose content is one", value)
        flags: dict[str, bool] = {}
        for flag in FLAGS:
            if flag in value and not isinstance(value[flag], bool):
                self._wrong(file, f"{key}: {flag}", "true or false", value[flag])
            if flag in value:
                flags[flag] = value[flag]
        return Token(value["content"], file=file, **{**flags, **({"special": True} if special else {})})

    def _wrong(self, file: str, key: str, rule: str, value: Any) -> NoReturn:
        raise CheckpointError(f"{key} must be {rule}, not {short(value)}", file=self._folder / file)


def _unasked(folder: Path) -> Iterator[Token]:
    """Tokens of the files that do not count; these files may be in any state."""
    for file in (MAP, ADDED):
        try:
            entries = optional_json(folder / file)
        except CheckpointError:
            continue
        for text in _texts(entries.keys() if file == ADDED else entries.values()):
            yield Token(text, file=file)


def _texts(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, dict) and isinstance(value.get("content"), str):
            yield value["content"]
