"""The tokenizer classes of transformers 5 that build their own splitting: which one a folder gets, and what it brings.

Such a class takes vocabulary and merges from tokenizer.json and nothing else. isobit follows the file; the names of
special tokens that the class brings count here too, for they change the ids of tokens that are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """

    name: str = ""
    named: Mapping[str, str] = field(default_factory=dict)
    splits: str | None = None
    patterns: tuple[str, ...] = ()
    normalizer: str = ""


GENERIC = TokenizerClass()
# Contractions, words with one other character before them, single digits, signs, line ends, spaces.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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
            "Qwen2Tokenizer", {"eos_token": _TEXT, "unk_token": _TEXT, "pad_token": _TEXT}, "bytes", (_QWEN,), "NFC"
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


def disagreement(found: TokenizerClass, config: Mapping[str, Any], normalizer: Any, pre_tokenizer: Any) -> str | None:
    """What to say where the class would split otherwise than tokenizer.json, as a sentence.

    Args:
        found: the class.
        config: tokenizer_config.json.
        normalizer, pre_tokenizer: those of tokenizer.json, as its JSON has them; None for none.
    """
    if found.splits is None or not _unlike(found, config, _parts(normalizer), _parts(pre_tokenizer)):
        return None
    return (
        f"transformers loads this tokenizer as {found.name}, which splits texts otherwise than tokenizer.json says; "
        "isobit follows the file, so token ids may differ"
    )


def _unlike(found: TokenizerClass, config: Mapping[str, Any], normal: list[Any], split: list[Any]) -> bool:
    types = [part.get("type") for part in split]
    if found.splits == "bytes":
        patterns = tuple(part.get("pattern", {}).get("Regex") for part in split if part.get("type") == "Split")
        names = [part.get("type") for part in normal]
        wanted = [found.normalizer] if found.normalizer else []
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
