"""What the language model of a pipeline may write: sounds, and, when there are enough of them, that it has ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.engine.tokenizer import Tokenizer
from isobit.errors import CheckpointError

BEGIN, END, FIRST = "<|begin_of_audio|>", "<|user|>", "<|audio_0|>"
LEAST, MOST = 2, 20  # sounds for a token of text


@dataclass(frozen=True)
class Marks:
    """Token ids of a pipeline.

    Attributes:
        begin: stands between text and sounds.
        end: ends an answer.
        first: the first sound; the others follow.
        count: sounds.
    """

    begin: int
    end: int
    first: int
    count: int


def marks(tokenizer: Tokenizer, count: int, vocabulary: int) -> Marks:
    """The ids, looked up in the tokenizer and held to it.

    Args:
        count: sounds that there must be.
        vocabulary: tokens of the language model.

    Raises:
        CheckpointError: one is missing, or the sounds do not stand one behind the other.
    """
    names = {id: text for id, text in tokenizer.added()}
    ids = {text: id for id, text in names.items()}
    missing = [name for name in (BEGIN, END, FIRST) if name not in ids]
    if missing:
        raise CheckpointError(f"the tokenizer has no {', '.join(missing)}")
    found = Marks(ids[BEGIN], ids[END], ids[FIRST], count)
    wrong = next((at for at in range(count) if names.get(found.first + at) != f"<|audio_{at}|>"), None)
    if wrong is not None:
        raise CheckpointError(
            f"the tokenizer has no <|audio_{wrong}|> behind <|audio_{wrong - 1}|>, and there are {count} sounds"
        )
    if max(found.begin, found.end, found.first + count - 1) >= vocabulary:
        raise CheckpointError(
            f"the language model has {vocabulary} tokens, and the sounds end at {found.first + count - 1}"
        )
    return found


class OnlySounds:
    """The state of one answer (:class:`isobit.engine.constraint.Constraint`).

    Args:
        marks: of the pipeline.
        least: sounds before it may end.
    """

    def __init__(self, marks: Marks, least: int) -> None:
        self._end, self._least, self._count = marks.end, least, 0
        self.finished = False
        bits = np.zeros((max(marks.end, marks.first + marks.count) // 32 + 1) * 32, np.uint8)
        bits[marks.first : marks.first + marks.count] = 1
        self._sounds = np.packbits(bits, bitorder="little").view("<u4")
        bits[marks.end] = 1
        self._all = np.packbits(bits, bitorder="little").view("<u4")

    def allowed(self) -> NDArray[np.uint32]:
        """Sounds; the end when there are enough."""
        return self._all if self._count >= self._least else self._sounds

    def accept(self, token: int) -> None:
        """This token was chosen."""
        self.finished = token == self._end
        self._count += 1
