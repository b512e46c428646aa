"""Log-probabilities in the two forms that OpenAI has for them: of completions, and of chats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from isobit.engine.detokenizer import DecodeStream
from isobit.engine.params import TokenLogprob
from isobit.engine.tokenizer import Tokenizer

LOWEST = -9999.0  # stands for minus infinity, which JSON does not have


def finite(logprob: float) -> float:
    """The log-probability as JSON can hold it; the same object where it can."""
    return logprob if logprob >= LOWEST else LOWEST


class Legacy:
    """Those of completions: four lists. ``text_offset`` counts characters of prompt and answer.

    Args:
        tokenizer: of the model.
        offset: characters before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer, self._offset = tokenizer, offset
        self._stream = DecodeStream(tokenizer)

    def add(self, ids: Iterable[int], entries: Iterable[TokenLogprob | None]) -> dict[str, Any]:
        """The lists for further tokens; None is for one that nothing comes before."""
        text = self._tokenizer.token_text
        tokens: list[str] = []
        offsets: list[int] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        for id, entry in zip(ids, entries, strict=True):
            tokens.append(text(id))
            offsets.append(self._offset)
            self._offset += len(self._stream.push(id))
            values.append(None if entry is None else finite(entry.logprob))
            tops.append(None if entry is None else self._top(entry))
        return {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """By text. Where tokens look alike the most probable one counts, so that the best stays the best."""
        found: dict[str, float] = {}
        for id, logprob in (*entry.top, (entry.id, entry.logprob)):
            text, value = self._tokenizer.token_text(id), finite(logprob)
            if value > found.get(text, float("-inf")):
                found[text] = value
        return found


def chat(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], top: int) -> list[dict[str, Any]]:
    """Those of chats, an object a token, with the ``top`` most probable ones in its place."""
    return [
        _token(tokenizer, entry.id, entry.logprob)
        | {"top_logprobs": [_token(tokenizer, id, logprob) for id, logprob in entry.top[:top]]}
        for entry in entries
    ]


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(id),
        "logprob": finite(logprob),
        "bytes": list(bytes_of(tokenizer, id)),
    }


def bytes_of(tokenizer: Tokenizer, id: int) -> bytes:
    """The bytes that a token stands for, also where they are no whole characters."""
    name = tokenizer.name_of(id)
    if name is not None and tokenizer.is_byte(id):
        return bytes([int(name[3:5], 16)])
    text = tokenizer.token_text(id)
    if name is not None and "\N{REPLACEMENT CHARACTER}" in text:
        table = _byte_letters()
        if all(letter in table for letter in name):
            return bytes(table[letter] for letter in name)
    return text.encode()


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes: printable ones stand for themselves, others begin at 256."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
