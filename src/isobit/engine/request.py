"""A request as the scheduler knows it: token ids in, how far they are, why they ended. No torch, no text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from isobit.engine.sights import Sights

FinishReason = Literal["stop", "length", "abort"]

# Steps of the engine that one level of priority is worth. A request is overtaken by one of the next level for so many
# steps and no longer, so nobody waits for ever.
PATIENCE = 1024

UNKNOWN = -1  # stands for a token that a step under way will choose
ONE_UNKNOWN = (UNKNOWN,)  # what a part feeds that decodes ahead: always this one, so that many are compared at once

# Makes a named tuple of all its fields: every row of every step makes a few, and their own way takes twice the time.
made = tuple.__new__


class Request(NamedTuple):
    """What is asked for.

    Attributes:
        id: by which it is known until it ends.
        prompt: token ids, one or more.
        most: tokens that the answer may have at most; none where only the prompt is scored.
        priority: a smaller number goes first. Among equals the order of arrival decides; see :data:`PATIENCE`.
        reuses: whether it may read blocks that other requests have left in the cache, and leave its own.
        scored: the tokens of the prompt from this place on are scored, 1 or more; None for none of them. What is in
            front of the token before it may be read from the cache.
        sights: what tokens of the prompt stand for beside themselves; None for nothing.
    """

    id: int
    prompt: tuple[int, ...]
    most: int
    priority: int = 0
    reuses: bool = True
    scored: int | None = None
    sights: Sights | None = None

    @property
    def longest(self) -> int:
        """Most tokens that the cache may have to hold: the last one of an answer is not fed again."""
        return len(self.prompt) + max(self.most, 1) - 1


@dataclass(eq=False)
class Running:
    """A request between its arrival and its end.

    Attributes:
        request: what was asked for.
        rank: its place in the order of all requests, smallest first; it never changes.
        tokens: prompt and answer so far; :data:`UNKNOWN` at the end for what steps under way will choose.
        held: how many of ``tokens``, from the first on, have their keys and values in the cache, or will have them
            when the steps under way are computed: steps are computed in their order.
        blocks: of the cache, in order; position p is in ``blocks[p // size]``.
        passed: the first of them that it has given back: nothing that it may attend to is in them. Others may write
            there; the block behind them stands in their place.
        keys: of its full blocks, as far as they were needed; ``isobit.engine.blocks`` makes them.
        reused: tokens that were found in the cache and not computed when the request was first taken in.
        recomputed: how often its blocks were taken from it.
        unscored: place of the first token of the prompt that is still to be scored; the prompt's length where none is.
        unknown: tokens at the end of ``tokens`` that are not known yet.
        flying: steps under way that it takes part in.
        ending: whether it has ended and only waits for these steps.
        listed: ``blocks`` as the last part that was made of it has them.
        whole: tokens that it has when its answer is complete; without one, more than it will have.
    """

    request: Request
    rank: tuple[int, int]
    tokens: list[int]
    held: int = 0
    blocks: list[int] = field(default_factory=list)
    passed: int = 0
    keys: list[bytes] = field(default_factory=list)
    reused: int | None = None
    recomputed: int = 0
    unknown: int = 0
    flying: int = 0
    ending: bool = False
    unscored: int = field(init=False)
    listed: tuple[int, ...] = ()
    whole: int = field(init=False)

    def __post_init__(self) -> None:
        length, most = len(self.request.prompt), self.request.most
        self.unscored = length if self.request.scored is None else min(self.request.scored, length)
        self.whole = length + most if most else length + 1

    @property
    def left(self) -> int:
        """Tokens that are to be fed: 1 when it decodes; 0 when it has ended, or will with what is under way."""
        count = len(self.tokens)
        return 0 if count >= self.whole or self.ending else count - self.held

    @property
    def answered(self) -> int:
        """Tokens of the answer so far, those not known yet among them."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def complete(self) -> bool:
        """Whether the answer is as long as it may be; without one, whether the prompt has been fed."""
        return len(self.tokens) >= self.whole if self.request.most else self.held == len(self.tokens)

    @property
    def readable(self) -> int:
        """Tokens, from the first on, whose keys and values it may read instead of computing them.

        The last token is always computed, and so is every token whose logits score the next.
        """
        return (self.unscored if self.unscored < len(self.request.prompt) else len(self.tokens)) - 1


class Part(NamedTuple):
    """What one request feeds in one step.

    Attributes:
        id: of the request.
        first: position of its first new token.
        tokens: its new token ids; the last one may be :data:`UNKNOWN`: what the step before this one chooses for it.
        blocks: where its keys and values are, as many blocks as hold ``first + len(tokens)`` tokens.
        chooses: whether the last new token is the last one known, so that its logits choose the next.
        scored: places among its new tokens whose logits score the token that follows.
        targets: these tokens that follow.
        shift: what is added to the place of a token of the answer to get its position.
        looks: whether some of its new tokens are of a prompt with pieces in it.
    """

    id: int
    first: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    chooses: bool
    scored: range = range(0)
    targets: tuple[int, ...] = ()
    shift: int = 0
    looks: bool = False


@dataclass(frozen=True)
class Schedule:
    """One step of the engine.

    Attributes:
        parts: what each request feeds, in the order of the batch.
        block: tokens of a block.
        preempted: ids of requests whose blocks were taken from them just now.
    """

    parts: tuple[Part, ...]
    block: int
    preempted: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        """``[T]``: the new tokens of all requests, one after the other."""
        return [token for part in self.parts for token in part.tokens]

    @property
    def positions(self) -> list[int]:
        """``[T]``: where each of them stands in its sequence."""
        return [position for part in self.parts for position in self._places(part)]

    @property
    def starts(self) -> list[int]:
        """``[B + 1]``: where in the batch each request's tokens begin; the last is T."""
        found = [0]
        for part in self.parts:
            found.append(found[-1] + len(part.tokens))
        return found

    @property
    def lengths(self) -> list[int]:
        """``[B]``: tokens of each sequence, the new ones included."""
        return [part.first + len(part.tokens) for part in self.parts]

    @property
    def table(self) -> list[list[int]]:
        """``[B, P]``: the blocks of each sequence, short rows filled up with 0."""
        widest = max((len(part.blocks) for part in self.parts), default=0)
        return [[*part.blocks, *[0] * (widest - len(part.blocks))] for part in self.parts]

    @property
    def slots(self) -> list[int]:
        """``[T]``: where the keys and values of each new token go: number of the block * ``block`` + place in it."""
        size = self.block
        return [part.blocks[p // size] * size + p % size for part in self.parts for p in self._places(part)]

    @property
    def rows(self) -> list[int]:
        """Places in the batch whose logits choose a token, in the order of :attr:`choosers`."""
        return [end - 1 for part, end in zip(self.parts, self.starts[1:], strict=True) if part.chooses]

    @property
    def choosers(self) -> list[int]:
        """Ids of the requests that get a token in this step."""
        return [part.id for part in self.parts if part.chooses]

    @property
    def scored(self) -> list[int]:
        """Places in the batch whose logits score the tokens that follow, in the order of :attr:`targets`."""
        return [begin + at for part, begin in zip(self.parts, self.starts, strict=False) for at in part.scored]

    @property
    def targets(self) -> list[int]:
        """The tokens that are scored, of all requests, one after the other."""
        return [token for part in self.parts for token in part.targets]

    def _places(self, part: Part) -> Iterator[int]:
        return iter(range(part.first, part.first + len(part.tokens)))
