"""Answers as a conversation in a terminal shows and keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isobit.engine.answer import Piece
    from isobit.engine.tokenizer import Tokenizer


class Spoken:
    """One answer, piece by piece.

    A model that answers in channels (gpt-oss) has its thoughts shown, but not kept: its template wants the last channel
    alone. Of all others everything is shown and kept as it comes, marks of thoughts included.

    Args:
        template: the chat template.

    Attributes:
        said: what is kept.
    """

    def __init__(self, template: str) -> None:
        from isobit.server import channels

        self._reader = channels.Channels(calls=False) if channels.used_by({"chat": template}) else None
        self._thought = False
        self.said = ""

    def shown(self, piece: Piece) -> str:
        """What is new, as it is printed."""
        if self._reader is None:
            self.said += piece.text
            return piece.text
        found = [self._reader.push(piece.text), *([self._reader.finish()] if piece.completion is not None else [])]
        thought = "".join(one for one, _ in found)
        part = "".join(str(one) for _, parts in found for one in parts)
        between = "\n\n" if part and not self.said and (self._thought or thought) else ""
        self._thought = self._thought or bool(thought)
        self.said += part
        return thought + between + part


def kept_marks(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Special tokens whose text is needed to take an answer apart."""
    from isobit.server import channels

    if not channels.used_by({"chat": template}):
        return ()
    return tuple(id for id, text in tokenizer.added() if text in channels.MARKS and tokenizer.is_special(id))
