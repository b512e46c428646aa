"""Tokens as they come, to text that is final."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.engine.tokenizer import REPLACEMENT, UNSETTLED, Tokenizer


class DecodeStream:
    """Decodes tokens one by one into text that is final: characters are given out only when they are complete.

    The pieces, with that of :meth:`finish`, concatenate to exactly ``tokenizer.decode(ids)``. A decoder may treat the
    begin of its input specially (SentencePiece strips a space), so every window that is decoded begins with tokens
    whose text is out already. A run of byte-fallback tokens is decoded as a whole, and so held until it ends.

    Args:
        tokenizer: of the model.
        skip_special: whether special tokens are left out.
        kept: those that are not.

    Attributes:
        complete: whether all that was pushed is out, and is not empty: then a token adds what
            :meth:`Tokenizer.all_behind` says, if that says anything.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, kept: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._kept = kept if skip_special else frozenset[int]()
        self._skip_special = skip_special
        self._skips = skip_special and not self._kept  # what the tokenizer is asked to leave out
        self._behind = tokenizer.all_behind(self._skips)
        self._ids: list[int] = []
        # While it is complete, this is where it became so: what has come since is counted when it no longer is.
        self._window = 0  # where the decoded window begins
        self._done = 0  # tokens before this one are given out
        self._emitted = 0  # characters
        self.complete = False

    def push(self, id: int) -> str:
        """Add a token; returns the text that has become final, often that token's, sometimes nothing."""
        if self.complete:
            text = self._behind[id]
            if text:
                self._ids.append(id)
                return text
            self._count()
            if text is None:
                self._ids.append(id)
                return ""
        if self._tokenizer.name_of(id) is None:
            return ""  # of a vocabulary that is padded beyond the tokenizer's: nothing, wherever it stands
        hidden = self._skip_special and self._tokenizer.is_special(id) and id not in self._kept
        if hidden and self._kept:
            return ""
        self._ids.append(id)
        if hidden or self._tokenizer.is_byte(id):
            return ""  # a special token that is left out does not end a run of bytes
        if self._tokenizer.cleans_up:
            return self._settled()
        before = self._decode(self._ids[self._window : self._done])
        text = self._decode(self._ids[self._window :])
        if text.endswith(REPLACEMENT) or not text.startswith(before) or len(text) == len(before):
            return ""
        self._window, self._done = self._done, len(self._ids)
        self._emitted += len(text) - len(before)
        self.complete = True
        return text[len(before) :]

    def push_all(self, ids: Sequence[int]) -> str:
        """:meth:`push` of each; returns their texts as one."""
        if self.complete:
            texts = [text for id in ids if (text := self._behind[id])]
            if len(texts) == len(ids):
                self._ids += ids
                return "".join(texts)
        return "".join([self.push(id) for id in ids])

    def _count(self) -> None:
        """A token comes that is not decoded by itself: tokens and characters that are out are counted up to it."""
        since = self._ids[self._done :]
        if since:
            self._emitted += sum([len(self._behind[id] or "") for id in since])
            self._window, self._done = len(self._ids) - 1, len(self._ids)
        self.complete = False

    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD. Call once, at the end."""
        if self.complete:
            return ""
        rest = self._decode(self._ids)[self._emitted :]
        self._emitted += len(rest)
        return rest

    def _settled(self) -> str:
        """With spaces cleaned up: what no later token can change."""
        text = self._decode(self._ids)
        final = "" if text.endswith(REPLACEMENT) else text[self._emitted : -UNSETTLED]
        self._emitted += len(final)
        return final

    def _decode(self, ids: Sequence[int]) -> str:
        if len(ids) == 1:
            return self._tokenizer.decode_one(ids[0], self._skips)
        return self._tokenizer.decode(ids, self._skips) if ids else ""
