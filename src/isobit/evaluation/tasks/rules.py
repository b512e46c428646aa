"""How texts become tokens when a task is scored, and where they are cut: what figures of tasks depend on. Pure.

The rules are those of the harness's own model class for Hugging Face models, so that figures can be compared, but for
one: there a text whose perplexity is measured gets begin-of-text twice where the tokenizer adds it, here once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isobit.errors import CheckpointError


class Tokens(Protocol):
    """What is needed of a tokenizer; :class:`isobit.engine.tokenizer.Tokenizer` has it."""

    special_tokens: dict[str, str]
    bos_id: int | None
    eos_ids: frozenset[int]

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class BosRule:
    """Where begin-of-text stands.

    Attributes:
        adds: whether a context gets what the tokenizer puts around a text.
        token: begin-of-text as text; None if the tokenizer has none.
        prefix: the token that stands before a text without a context: begin-of-text, or else end-of-text.
        asked: whether ``adds`` was asked for; otherwise the tokenizer's files say it.
    """

    adds: bool
    token: str | None
    prefix: int
    asked: bool

    @classmethod
    def of(cls, tokenizer: Tokens, add_bos: bool | None = None) -> BosRule:
        """The rule of a tokenizer.

        Args:
            tokenizer: the model's.
            add_bos: whether a context begins with begin-of-text; None for what the tokenizer does by itself.

        Raises:
            CheckpointError: it has neither token, so that nothing can stand before a text.
        """
        token = tokenizer.special_tokens.get("bos_token")
        named_eos = tokenizer.special_tokens.get("eos_token")
        eos = None if named_eos is None else next(iter(tokenizer.encode(named_eos, add_special=False)), None)
        prefix = tokenizer.bos_id if tokenizer.bos_id is not None else eos
        if prefix is None:
            prefix = min(tokenizer.eos_ids, default=None)
        if prefix is None:
            raise CheckpointError(
                "the tokenizer names neither begin-of-text nor end-of-text: tasks need one to stand before a text"
            )
        own = tokenizer.encode("a") != tokenizer.encode("a", add_special=False)
        return cls(own if add_bos is None else add_bos, token, prefix, add_bos is not None)

    def encode(self, tokenizer: Tokens, text: str, special: bool | None = None) -> list[int]:
        """Tokens of a text; ``special`` says whether begin-of-text is added, None leaves it to the rule.

        A text that begins with begin-of-text, as a rendered conversation does, gets no other.
        """
        written = self.token is not None and text.startswith(self.token)
        adds = (self.adds and not written) if special is None else special
        ids = tokenizer.encode(text, add_special=adds)
        if adds and self.asked and special is None and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            return [tokenizer.bos_id, *ids]
        return ids

    def __str__(self) -> str:
        who = "as asked" if self.asked else "as the tokenizer does by itself"
        said = f"contexts begin with {self.token!r}" if self.adds else "contexts begin with no begin-of-text token"
        once = ", once, even where the text begins with it" if self.adds else ""
        return f"{said} ({who}{once}); a text without a context stands behind token {self.prefix}"


@dataclass(frozen=True)
class Cut:
    """What the model reads of a context and its continuation: at most ``longest`` tokens, the last ones."""

    ids: tuple[int, ...]
    first_scored: int
    lost: int


def cut(context: Sequence[int], continuation: Sequence[int], longest: int) -> Cut:
    """Context and continuation, cut on the left to what the model can read.

    The last token is predicted and never read, so that ``longest + 1`` tokens fit. At least one token stays in front
    of what is scored; a continuation that is longer alone loses its first tokens.

    Args:
        context: one token or more.
        continuation: the tokens to score.
        longest: tokens that the model can read.
    """
    whole = [*context, *continuation]
    kept = whole[-(longest + 1) :]
    lost = len(whole) - len(kept)
    return Cut(tuple(kept), max(len(context) - lost, 1), lost)
