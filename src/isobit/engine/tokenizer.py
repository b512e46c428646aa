"""Text to token ids and back, from the tokenizer files of a checkpoint folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from isobit.checkpoint.gguf.wording import in_its_words
from isobit.checkpoint.text.fast import ENCODING_BYTES, SPARE_BYTES, Fast, flag, guarded, read_fast, some
from isobit.checkpoint.text.generation import Defaults, eos_ids, read_defaults
from isobit.checkpoint.text.templates import chat_templates
from isobit.checkpoint.text.tokens import optional_json
from isobit.errors import UsageError
from isobit.shortage import require_headroom

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# What clean_up_tokenization_spaces replaces, in this order.
_CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
UNSETTLED = 4 * len(_CLEANED)  # characters at the end that what follows may still change: 4 for each replacement
_CLEANS_ANYWAY = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


class Tokenizer:
    """The tokenizer of a model.

    Attributes:
        special_tokens: ``bos_token``, ``eos_token``, ... as text: the variables chat templates read.
        bos_id: id of the token that begins a text, if there is one.
        eos_ids: ids that end an answer: of generation_config.json, config.json and the tokenizer together.
        chat_templates: chat templates by name; the usual one is ``default``.
        vocab_size: the number of tokens, added ones included.
        defaults: what generation_config.json asks for.
        notes: what a person should know about these files, as sentences.
        id_notes: those of them that are about which ids a text has, which matter to measurements, too.
        cleans_up: whether spaces before punctuation go when text is decoded (``clean_up_tokenization_spaces``).
        kept: what others make of its tokens, by their own keys, for as long as there is this tokenizer.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        defaults: Defaults | None = None,
        special_ids: frozenset[int] | None = None,
        cleans_up: bool = False,
        file: Path | None = None,
    ) -> None:
        self._fast = fast
        self._file = file
        self.special_tokens = dict(special_tokens or {})
        self.bos_id: int | None = self._id_of("bos_token")
        own_eos = self._id_of("eos_token")
        self.eos_ids = frozenset(eos_ids) | (frozenset() if own_eos is None else {own_eos})
        self.chat_templates = dict(chat_templates or {})
        self.defaults = defaults or Defaults()
        self.notes: tuple[str, ...] = ()
        self.id_notes: tuple[str, ...] = ()
        self.cleans_up = cleans_up
        self.vocab_size: int = fast.get_vocab_size(with_added_tokens=True)
        self._special_ids = _special_ids(fast) if special_ids is None else special_ids
        self._alone: dict[tuple[int, bool], str] = {}  # texts of single tokens, as they were asked for
        self._behind = {skip: _Kept(partial(self._added_by, skip_special=skip)) for skip in (True, False)}
        self.kept: dict[Any, Any] = {}
        self._byte_ids = frozenset(id for token, id in fast.get_vocab().items() if BYTE_TOKEN.fullmatch(token))

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json and the small files beside it.

        As in transformers 5, tokenizer.json alone says whether encoding adds a bos or eos token
        (``add_bos_token`` in tokenizer_config.json is not asked), and chat_template.jinja wins over a template in
        tokenizer_config.json. Which tokens join is told in :mod:`isobit.checkpoint.text.tokens`.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        with in_its_words(Path(path)):
            return cls._read(Path(path))

    @classmethod
    def _read(cls, folder: Path) -> Tokenizer:
        read = read_fast(folder)
        defaults = read_defaults(folder)
        config = optional_json(folder / "config.json")
        inner = config.get("text_config")  # of a model with a decoder inside: its keys stand there
        inner = inner if isinstance(inner, Mapping) else {}
        tokenizer = cls(
            read.tokenizer,
            special_tokens=read.files.named,
            eos_ids=defaults.eos_ids | eos_ids(folder / "config.json", config) | eos_ids(folder / "config.json", inner),
            chat_templates=chat_templates(folder, read.files.config),
            defaults=defaults,
            special_ids=read.special,
            cleans_up=_cleans_up(folder, read),
            file=folder / "tokenizer.json",
        )
        tokenizer.id_notes = read.notes
        tokenizer.notes = (*read.notes, *_notes(tokenizer, _vocabulary({**config, **inner})), *defaults.notes)
        return tokenizer

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

        Raises:
            UsageError: the text has a lone surrogate.
            CheckpointError: the tokenizer has no token for a part of the text.
        """
        require_headroom(ENCODING_BYTES * len(text) + SPARE_BYTES, "splitting this text into tokens")
        place = _lone_surrogate(text)
        if place is not None:
            raise UsageError(
                f"this text has a lone surrogate (U+{ord(text[place]):04X}, character {place + 1}), which is no "
                "character: it comes from bytes that are not UTF-8, or from a JSON or Jinja escape"
            )
        encoded = guarded(
            self._file, "the tokenizer cannot encode this text", self._fast.encode, text, add_special_tokens=add_special
        )
        ids: list[int] = encoded.ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; special tokens are left out unless ``skip_special`` is False.

        Raises:
            UsageError: an id is negative or too large for any vocabulary.
        """
        try:
            text: str = guarded(
                self._file,
                "the tokenizer cannot decode these tokens",
                self._fast.decode,
                list(ids),
                skip_special_tokens=skip_special,
            )
        except (OverflowError, TypeError):
            raise UsageError(f"token ids must be integers between 0 and {self.vocab_size - 1}") from None
        return cleaned_up(text) if self.cleans_up else text

    def decode_one(self, id: int, skip_special: bool = True) -> str:
        """:meth:`decode` of a single token, which is kept: streams ask for it again and again."""
        text = self._alone.get((id, skip_special))
        if text is None:
            text = self._alone[id, skip_special] = self.decode((id,), skip_special)
        return text

    def behind(self, id: int, skip_special: bool = True) -> str:
        """What a token adds to a text that is complete, whatever text it is; empty where that depends on the text.

        It is kept. Of most tokenizers it is the token's own text but for spaces at the begin of it.
        """
        return self._behind[skip_special][id] or ""

    def all_behind(self, skip_special: bool = True) -> Mapping[int, str | None]:
        """:meth:`behind` of every id; None for one that may begin a character which others complete."""
        return self._behind[skip_special]

    def _added_by(self, id: int, skip_special: bool) -> str | None:
        front = self._front
        if front is None or self.cleans_up or self.is_byte(id) or self.is_special(id) or self.name_of(id) is None:
            return ""
        before, text = self.decode([front], skip_special), self.decode([front, id], skip_special)
        if text.endswith(REPLACEMENT):
            return None
        return text[len(before) :] if text.startswith(before) else ""

    @cached_property
    def _front(self) -> int | None:
        """A token that others are decoded behind; None where what a token adds depends on which."""
        if not by_itself(self._fast.decoder):
            return None
        letters = (id for token in "aeinost" if (id := self._fast.token_to_id(token)) is not None)
        found = (id for id in chain(letters, range(self.vocab_size)) if not (self.is_byte(id) or self.is_special(id)))
        return next((id for id in found if self.decode_one(id).isalnum()), None)

    def as_json(self) -> str:
        """The whole tokenizer in the form of tokenizer.json."""
        text: str = self._fast.to_str()
        return text

    def added(self) -> list[tuple[int, str]]:
        """The tokens that were added to the vocabulary, by id."""
        return [(id, token.content) for id, token in sorted(self._fast.get_added_tokens_decoder().items())]

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """The texts of the special tokens: written in a text that is encoded, they become those tokens."""
        return tuple(text for id, text in self.added() if text and id in self._special_ids)

    def name_of(self, id: int) -> str | None:
        """What a token is called in the vocabulary; None for an id that it lacks."""
        try:
            name: str | None = self._fast.id_to_token(id)
        except (OverflowError, TypeError):
            return None
        return name

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


def cleaned_up(text: str) -> str:
    """The text without spaces before punctuation, as ``clean_up_tokenization_spaces`` asks."""
    for spaced, close in _CLEANED:
        text = text.replace(spaced, close)
    return text


def _cleans_up(folder: Path, read: Fast) -> bool:
    """As in transformers 5, the setting has no effect on BPE: there it would take spaces that the text has."""
    if not flag(folder, read.files.config, "clean_up_tokenization_spaces"):
        return False
    return type(read.tokenizer.model).__name__ != "BPE" or flag(folder, read.files.config, _CLEANS_ANYWAY)


class _Kept(dict[int, "str | None"]):
    """What tokens add to a text, each found out when it is asked for the first time."""

    def __init__(self, make: Callable[[int], str | None]) -> None:
        self._make = make

    def __missing__(self, id: int) -> str | None:
        text = self[id] = self._make(id)
        return text


def by_itself(decoder: Any) -> bool:
    """Whether a decoder of the tokenizers library makes a text of each token, whatever the others are.

    Bytes that are part of a character, and runs of byte-fallback tokens, are another matter. Where there is no decoder
    the library puts a space between the tokens.
    """
    if decoder is None:
        return True
    try:
        read = json.loads(decoder.__getstate__())
        listed = read["decoders"] if read["type"] == "Sequence" else [read]
        return [one["type"] for one in listed] == ["ByteLevel"] or all(_by_itself(one) for one in listed)
    except Exception:  # one that says nothing of itself
        return False


def _by_itself(decoder: Mapping[str, Any]) -> bool:
    if decoder["type"] == "Replace":  # a single character is never in two tokens
        return len(decoder["pattern"].get("String", "")) == 1
    return decoder["type"] in ("Metaspace", "ByteFallback", "Fuse") or (
        decoder["type"] == "Strip" and decoder["stop"] == 0
    )


def _lone_surrogate(text: str) -> int | None:
    """Where a text has a character that UTF-8 cannot hold; None if it has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _special_ids(fast: FastTokenizer) -> frozenset[int]:
    return frozenset(id for id, token in fast.get_added_tokens_decoder().items() if token.special)


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    """The model's number of tokens, where config.json says it."""
    size = config.get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def _notes(tokenizer: Tokenizer, vocabulary: int | None) -> Iterator[str]:
    """What of a tokenizer does not fit its model, as sentences."""
    if vocabulary is not None:
        beyond = [f"{token!r} ({id})" for id, token in tokenizer.added() if id >= vocabulary]
        if beyond:
            yield (
                f"the model has {vocabulary} tokens, so prompts with these added tokens are refused "
                f"(their ids lie beyond it): {some(beyond)}"
            )
    usable = [id for id in tokenizer.eos_ids if vocabulary is None or 0 <= id < vocabulary]
    if not usable:
        named = tokenizer.special_tokens.get("eos_token")
        reason = "no file names an end-of-text token"
        if tokenizer.eos_ids:
            ids = some(str(id) for id in sorted(tokenizer.eos_ids))
            reason = f"the model of {vocabulary} tokens cannot write its end-of-text token" + (
                f" {named!r} ({ids})" if named else f" ({ids})"
            )
        yield f"{reason}: answers end at their longest, or at a --stop text"
