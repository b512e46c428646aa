"""The tokenizer classes of transformers 5 that build their own splitting: which one a folder gets, and what it brings.

Such a class takes vocabulary and merges from tokenizer.json and nothing else. isobit follows the file; the names of
special tokens that the class brings count here too, for they change the ids of tokens that are new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from isobit.checkpoint.text.tokens import FLAGS, Token, TokenFiles

_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TokenizerClass:
    """What a class brings.

    Attributes:
        name: the class.
        named: special tokens where no file says otherwise (a file's null does).
        splits: ``"bytes"`` for byte-level splitting, ``"spaces"`` for that of SentencePiece; None is that of the file.
        patterns: the patterns that it splits at before the bytes.
        normalizer: the type of its normalizer; empty for none.
        resets: whether it drops the flags of special tokens (spaces beside them, normalized text) at the end.
    """

    name: str = ""
    named: Mapping[str, str] = field(default_factory=dict)
    splits: str | None = None
    patterns: tuple[str, ...] = ()
    normalizer: str = ""
    resets: bool = False


GENERIC = TokenizerClass()
# Contractions, words with one other character before them, single digits, signs, line ends, spaces.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What a class sets of its model whatever tokenizer.json says; all of it off, but for byte_fallback.
SETTINGS = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_CODE = {"prefix": "▁<PRE>", "middle": "▁<MID>", "suffix": "▁<SUF>", "eot": "▁<EOT>", "fill": "<FILL_ME>"}
CLASSES = {
    row.name: row
    for row in (
        TokenizerClass("LlamaTokenizer", _LLAMA, "spaces"),
        TokenizerClass(
            "CodeLlamaTokenizer", _LLAMA | {f"{name}_token": text for name, text in _CODE.items()}, "spaces"
        ),
        TokenizerClass(
            "Qwen2Tokenizer",
            {"eos_token": _TEXT, "unk_token": _TEXT, "pad_token": _TEXT},
            "bytes",
            (_QWEN,),
            "NFC",
            True,
        ),
        TokenizerClass("GPT2Tokenizer", {"bos_token": _TEXT, "eos_token": _TEXT, "unk_token": _TEXT}, "bytes"),
    )
}
# model_type -> the class that transformers has registered for it, and whether it wins over the one a folder names.
_REGISTERED = {"qwen2": ("Qwen2Tokenizer", True), "qwen3": ("Qwen2Tokenizer", False), "mistral": ("", False)}


def tokenizer_class(config: Mapping[str, Any], model: Mapping[str, Any], byte_level: bool) -> TokenizerClass:
    """The class that transformers' AutoTokenizer takes.

    Args:
        config: tokenizer_config.json.
        model: config.json.
        byte_level: whether tokenizer.json splits into bytes.
    """
    given = config.get("tokenizer_class") or model.get("tokenizer_class")
    named = given.removesuffix("Fast") if isinstance(given, str) else None
    kind = model.get("model_type")
    registered, wins = _REGISTERED.get(kind, (None, False)) if isinstance(kind, str) else (None, False)
    if named == "LlamaTokenizer" and byte_level and not wins:
        return GENERIC  # Llama 3 says this of itself
    if named is None or (registered is not None and wins):
        named = registered
    elif registered == "" and named != registered:
        return GENERIC
    return CLASSES.get(named or "", GENERIC)


def disagreement(
    found: TokenizerClass,
    parts: Mapping[str, Any],
    own: Mapping[int, Token],
    files: TokenFiles,
    within: Callable[[str], int | None],
) -> str | None:
    """What to say where the class would split otherwise than tokenizer.json, as a sentence.

    Args:
        found: the class.
        parts: ``model`` (without its vocabulary), ``normalizer`` and ``pre_tokenizer`` of tokenizer.json, as its JSON
            has them; None for none.
        own: the added tokens of tokenizer.json by id.
        files: what the files beside it say.
        within: the id of a text that the vocabulary itself has, without added tokens.
    """
    if found.splits is None:
        return None
    normal, split = _parts(parts["normalizer"]), _parts(parts["pre_tokenizer"])
    alike = not _unlike(found, files.config, normal, split) and _merges(found, parts["model"])
    if alike and not _tokens_unlike(found, own, files, within):
        return None
    return (
        f"transformers loads this tokenizer as {found.name}, which splits texts otherwise than tokenizer.json says; "
        "isobit follows the file, so token ids may differ"
    )


def _merges(found: TokenizerClass, model: Mapping[str, Any]) -> bool:
    """Whether the model is the one that the class makes of vocabulary and merges."""
    plain = not any(model.get(key) for key in SETTINGS[:-1])
    return model.get("type") == "BPE" and plain and bool(model.get("byte_fallback")) == (found.splits == "spaces")


def _tokens_unlike(
    found: TokenizerClass, own: Mapping[int, Token], files: TokenFiles, within: Callable[[str], int | None]
) -> bool:
    """Whether the class knows other added tokens: it takes those of ``added_tokens_decoder``, where that is there."""
    texts = {token.text for token in own.values()}
    if files.config.get("added_tokens_decoder") is None:
        # All join in the order of their ids, those of tokenizer.json among them.
        new = (token.listed_id for token in files.added if token.text not in texts and token.listed_id is not None)
        if any(id < max(own, default=0) for id in new):
            return True
    else:
        listed = {token.listed_id: token for token in files.added if token.listed_id is not None}
        for id, token in own.items():
            named = Token(token.text, special=True)  # what becomes of a name alone
            again = named if token.text in files.asked and within(token.text) == id else None
            if (other := listed.get(id, again)) is None or _flags(other) != _flags(token):
                return True
    asked = (token for token in (*own.values(), *files.added) if token.text in files.asked)
    return found.resets and any(_flags(token) != _flags(Token(token.text, special=True)) for token in asked)


def _flags(token: Token) -> tuple[Any, ...]:
    """A token as the library has it."""
    normalized = not token.special if token.normalized is None else token.normalized
    return token.text, normalized, *(getattr(token, flag) for flag in FLAGS if flag != "normalized")


def _unlike(found: TokenizerClass, config: Mapping[str, Any], normal: list[Any], split: list[Any]) -> bool:
    types = [part.get("type") for part in split]
    if found.splits == "bytes":
        patterns = tuple(part.get("pattern", {}).get("Regex") for part in split if part.get("type") == "Split")
        names = [part.get("type") for part in normal]
        wanted = [found.normalizer] if found.normalizer else []
        prefixed = any(part.get("add_prefix_space") for part in split if part.get("type") == "ByteLevel")
        if prefixed != bool(config.get("add_prefix_space")):
            return True
        return "ByteLevel" not in types or patterns != found.patterns or names != wanted
    return "ByteLevel" in types or _prefixed(normal, split) != _prefix_of(config)


def _prefixed(normal: list[Any], split: list[Any]) -> str:
    """Where tokenizer.json puts a space: before the ``first`` text, ``always`` also after special tokens, ``never``.

    The two spellings of ``always`` count as one: they differ in texts that begin with spaces only.
    """
    if any(part.get("type") == "Prepend" for part in normal):
        return "always"
    schemes = (str(part.get("prepend_scheme", "always")) for part in split if part.get("type") == "Metaspace")
    return next(schemes, "never")


def _prefix_of(config: Mapping[str, Any]) -> str:
    """The same for transformers' Llama classes."""
    if config.get("add_prefix_space") is False:
        return "never"
    return "always" if config.get("legacy") else "first"


def _parts(part: Any) -> list[Any]:
    """The parts of a sequence, or the one part there is."""
    if not isinstance(part, dict):
        return []
    inner = part.get("normalizers", part.get("pretokenizers")) if part.get("type") == "Sequence" else None
    return [part] if inner is None else [leaf for one in inner for leaf in _parts(one)]


def splits_into_bytes(pre_tokenizer: Any) -> bool:
    """Whether tokenizer.json splits into bytes, from its pre_tokenizer."""
    return any(part.get("type") == "ByteLevel" for part in _parts(pre_tokenizer))
