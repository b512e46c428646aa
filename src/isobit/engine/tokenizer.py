"""Text to token ids and back, from the tokenizer files of a checkpoint folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from isobit.checkpoint.jsonfile import read_json
from isobit.errors import CheckpointError, UsageError

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LARGEST_TEMPLATE = 16 << 20  # bytes
TOKEN_OPTIONS = ("lstrip", "rstrip", "single_word", "normalized")
OTHER_TOKENIZERS = ("tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json", "vocab.txt")


class Tokenizer:
    """The tokenizer of a model.

    Attributes:
        special_tokens: ``bos_token``, ``eos_token``, ... as text: the variables chat templates read.
        bos_id: id of the token that begins a text, if there is one.
        eos_ids: ids that end an answer: of generation_config.json, config.json and the tokenizer together.
        chat_templates: chat templates by name; the usual one is ``default``.
        vocab_size: the number of tokens, added ones included.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        self._fast = fast
        self.special_tokens = dict(special_tokens or {})
        self.bos_id: int | None = self._id_of("bos_token")
        own_eos = self._id_of("eos_token")
        self.eos_ids = frozenset(eos_ids) | (frozenset() if own_eos is None else {own_eos})
        self.chat_templates = dict(chat_templates or {})
        self.vocab_size: int = fast.get_vocab_size(with_added_tokens=True)
        self._special_ids = frozenset(id for id, token in fast.get_added_tokens_decoder().items() if token.special)
        self._byte_ids = frozenset(id for token, id in fast.get_vocab().items() if BYTE_TOKEN.fullmatch(token))

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json and the small files beside it.

        As in transformers 5, tokenizer.json alone says whether encoding adds a bos or eos token
        (``add_bos_token`` in tokenizer_config.json is not asked), and chat_template.jinja wins over a template in
        tokenizer_config.json.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        folder = Path(path)
        fast = _read_fast(folder)
        config = _read_optional(folder / "tokenizer_config.json")
        _add_listed_tokens(fast, config)
        eos_ids: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            eos_ids |= _eos_ids(folder / name)
        return cls(
            fast,
            special_tokens=_special_tokens(folder, config),
            eos_ids=eos_ids,
            chat_templates=_chat_templates(folder, config),
        )

    @property
    def chat_template(self) -> str | None:
        """The usual chat template; None for a model without one."""
        return self.chat_templates.get("default")

    def template_for(self, tools: Sequence[Any] | None = None) -> str | None:
        """The chat template for a conversation: the one named ``tool_use`` if there are tools and there is one."""
        named = self.chat_templates.get("tool_use") if tools else None
        return named if named is not None else self.chat_template

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: special tokens written in it become those tokens.
            add_special: let the tokenizer add what it puts around a text (usually bos). False for rendered chat
                templates, which contain it already.
        """
        ids: list[int] = self._fast.encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; special tokens are left out unless ``skip_special`` is False.

        Raises:
            UsageError: an id is negative or too large for any vocabulary.
        """
        try:
            text: str = self._fast.decode(list(ids), skip_special_tokens=skip_special)
        except OverflowError:
            raise UsageError(f"token ids must lie between 0 and {self.vocab_size - 1}") from None
        return text

    def token_text(self, id: int) -> str:
        """The text of one token by itself, special tokens included, for showing logprobs."""
        return self.decode([id], skip_special=False)

    def is_byte(self, id: int) -> bool:
        """Whether the token is one raw byte of a byte-fallback vocabulary, like ``<0x0A>``."""
        return id in self._byte_ids

    def is_special(self, id: int) -> bool:
        """Whether the token is one that ``decode`` leaves out, like bos."""
        return id in self._special_ids

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        id: int | None = None if token is None else self._fast.token_to_id(token)
        return id


class DecodeStream:
    """Decodes tokens one by one into text that is final: characters are given out only when they are complete.

    The pieces, with that of :meth:`finish`, concatenate to exactly ``tokenizer.decode(ids)``. A decoder may treat the
    begin of its input specially (SentencePiece strips a space), so every window that is decoded begins with tokens
    whose text is out already. A run of byte-fallback tokens is decoded as a whole, and so held until it ends.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._window = 0  # where the decoded window begins
        self._done = 0  # tokens before this one are given out
        self._emitted = 0  # characters

    def push(self, id: int) -> str:
        """Add a token; returns the text that has become final, often that token's, sometimes nothing."""
        self._ids.append(id)
        if self._tokenizer.is_byte(id) or (self._skip_special and self._tokenizer.is_special(id)):
            return ""  # a special token that is left out does not end a run of bytes
        before = self._decode(self._ids[self._window : self._done])
        text = self._decode(self._ids[self._window :])
        if text.endswith(REPLACEMENT) or not text.startswith(before) or len(text) == len(before):
            return ""
        self._window, self._done = self._done, len(self._ids)
        self._emitted += len(text) - len(before)
        return text[len(before) :]

    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD. Call once, at the end."""
        rest = self._decode(self._ids)[self._emitted :]
        self._emitted += len(rest)
        return rest

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special) if ids else ""


def _read_fast(folder: Path) -> FastTokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        others = [name for name in OTHER_TOKENIZERS if (folder / name).is_file()]
        found = f"only {', '.join(others)}" if others else "no tokenizer file at all"
        raise CheckpointError(
            f"there is no tokenizer.json but {found}. Convert once with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it",
            file=folder,
        )
    try:
        fast = FastTokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every kind of damage
        raise CheckpointError(f"this is not a tokenizer that can be read: {error}", file=path) from None
    fast.no_truncation()
    fast.no_padding()
    return fast


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _add_listed_tokens(fast: FastTokenizer, config: Mapping[str, Any]) -> None:
    """Add tokens that tokenizer_config.json lists and tokenizer.json lacks, in the order of their ids."""
    listed = config.get("added_tokens_decoder") or {}
    for id in sorted(listed, key=int):
        token = listed[id]
        if isinstance(token, dict) and fast.token_to_id(token["content"]) is None:
            options = {key: bool(token[key]) for key in TOKEN_OPTIONS if key in token}
            added = AddedToken(token["content"], special=bool(token.get("special")), **options)
            (fast.add_special_tokens if token.get("special") else fast.add_tokens)([added])


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """``*_token`` entries as text; special_tokens_map.json counts where the config has no list of added tokens."""
    merged = dict(config)
    if "added_tokens_decoder" not in config:
        merged.update(_read_optional(folder / "special_tokens_map.json"))
    found: dict[str, str] = {}
    for key, value in merged.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _eos_ids(path: Path) -> set[int]:
    value = _read_optional(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise CheckpointError(f"eos_token_id must be an integer or a list of integers, not {value!r}", file=path)
    return set(ids)


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: files win over tokenizer_config.json, where a template is a string or a list of named ones."""
    files = {"default": folder / "chat_template.jinja"}
    files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
    found = {name: _read_template(path) for name, path in files.items() if path.is_file()}
    if found:
        return found
    where = folder / "tokenizer_config.json"
    value = config.get("chat_template")
    if value is None and (legacy := folder / "chat_template.json").is_file():
        where, value = legacy, read_json(legacy).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return dict(value)
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError):
        raise CheckpointError("chat_template must be a text or a list of {name, template}", file=where) from None


def _read_template(path: Path) -> str:
    if path.stat().st_size > LARGEST_TEMPLATE:
        raise CheckpointError(f"this chat template is larger than {LARGEST_TEMPLATE} bytes", file=path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CheckpointError("this chat template is not UTF-8 text", file=path) from None
