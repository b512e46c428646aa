"""``tiktoken.model``, or GLM-4's ``tokenizer.model``: tokens by their ranks, as the tokenizers library's own kind.

Such a file has no expression that texts are cut at, and no names of special tokens: the code beside it has those. That
code is not run. What it says is a row here, found by the class that ``tokenizer_config.json`` names.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from isobit.checkpoint.files import is_there, read_file
from isobit.checkpoint.jsonfile import short
from isobit.errors import CheckpointError

RANKS, RANKS_OF_GLM = "tiktoken.model", "tokenizer.model"
_LARGEST = 64 << 20  # bytes; the published ones have 3 MB
_MOST_TOKENS, _LONGEST = 1 << 20, 1 << 10  # tokens, and bytes of one


@dataclass(frozen=True)
class Split:
    """What the code beside a file of ranks does.

    Attributes:
        classes: names of the classes that do it.
        pattern: the expression of the pieces that texts are cut into.
        reserved: ids behind the ranks that are special tokens, and have names of their own where no file names them.
        listed: ids behind the ranks that tokenizer_config.json may name.
        file: its name.
    """

    classes: tuple[str, ...]
    pattern: str
    reserved: int
    listed: int
    file: str = RANKS


# Runs of Han characters; words of other scripts with one other character in front and a contraction behind; up to three
# digits; signs; line ends; spaces.
_BEFORE, _ENDING = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = (rf"[{kinds}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for kinds in (r"\p{Lu}\p{Lt}", r"\p{Ll}"))
_KIMI = "|".join((
    r"[\p{Han}]+", rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDING}", rf"{_BEFORE}{_UPPER}+{_LOWER}*{_ENDING}", r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip
# Contractions; words with one other character in front; up to three digits; signs; line ends; spaces.
_GLM = "|".join((
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", rf"{_BEFORE}\p{{L}}+", r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip
SPLITS = (
    Split(("TikTokenTokenizer", "TikTokenTokenizerFast"), _KIMI, 256, 512),
    # GLM-TTS names its 32768 sounds and its phonemes there.
    Split(("ChatGLM4Tokenizer",), _GLM, 0, 1 << 17, RANKS_OF_GLM),
)


def ranks_file(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The file of tokens by their ranks that a folder's texts are split by; None where it has another tokenizer.

    Args:
        folder: the model's folder.
        config: its tokenizer_config.json.
    """
    if is_there(folder / "tokenizer.json"):
        return None
    named = next((row.file for row in SPLITS if config.get("tokenizer_class") in row.classes), RANKS)
    return folder / named if is_there(folder / named) else None


def read_ranks(path: Path, config: Mapping[str, Any]) -> FastTokenizer:
    """The tokenizer that a file of ranks makes.

    Args:
        path: the file (:func:`ranks_file`).
        config: its tokenizer_config.json, which names the special tokens (``added_tokens_decoder``).

    Raises:
        CheckpointError: the file is damaged, or nothing says how texts are cut.
    """
    row = _row(path, config)
    ranks = _ranks(path, read_file(path, _LARGEST))
    letters = _letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(names[left], names[right]) for left, right in _merges(ranks)]
    vocab = {names[token]: rank for token, rank in ranks.items()}
    made = FastTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))  # a piece that is a token is one
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(row.pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_tokens([*_special(config, len(ranks), row)])
    return made


def _row(path: Path, config: Mapping[str, Any]) -> Split:
    named = config.get("tokenizer_class")
    row = next((row for row in SPLITS if named in row.classes), None)
    if row is None:
        known = ", ".join(name for row in SPLITS for name in row.classes)
        raise CheckpointError(
            f"holds tokens, but not where texts are cut: the code of tokenizer_class = {short(named)} says that, and it"
            f" is not run. isobit knows {known}; for others put a tokenizer.json beside it",
            file=path,
        )
    return row


def _ranks(path: Path, data: bytes) -> dict[bytes, int]:
    """Token to rank; ranks are 0, 1, 2, ..."""
    found: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        if not line.strip():
            continue
        text, _, rank = line.strip().partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise CheckpointError(f"line {number + 1}: {short(line)} is no token in base64", file=path) from None
        if not 0 < len(token) <= _LONGEST or rank != str(len(found)).encode() or token in found:
            why = f"expected a new token of up to {_LONGEST} bytes with the rank {len(found)}"
            raise CheckpointError(f"line {number + 1}: {why}, found {short(line)}", file=path)
        found[token] = len(found)
        if len(found) > _MOST_TOKENS:
            raise CheckpointError(f"has more than {_MOST_TOKENS} tokens", file=path)
    missing = [byte for byte in range(256) if bytes([byte]) not in found]
    if missing:
        raise CheckpointError(f"has no token for {len(missing)} of 256 bytes, {missing[0]} the first", file=path)
    return found


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that make a token, by its rank: what two neighbours are joined by is what they make."""
    for token in ranks:
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in ranks and right in ranks:
                yield left, right


def _special(config: Mapping[str, Any], first: int, row: Split) -> Iterator[AddedToken]:
    """The tokens behind the ranks, each with its name; what no file names is called as the models' own code does."""
    listed = config.get("added_tokens_decoder")
    entries = listed if isinstance(listed, dict) else {}
    last = max((int(id) for id in entries if id.isdecimal() and int(id) < first + row.listed), default=0)
    for id in range(first, max(first + row.reserved, last + 1)):
        entry = entries.get(str(id))
        entry = entry if isinstance(entry, dict) else {}
        named = entry.get("content")
        if isinstance(named, str) and named:
            yield AddedToken(named, normalized=False, special=entry.get("special") is True)
        else:
            yield AddedToken(f"<|reserved_token_{id}|>", normalized=False, special=True)


def _letters() -> list[str]:
    """The letter that stands for each byte in the library's byte-level vocabularies: itself where it can be printed."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
