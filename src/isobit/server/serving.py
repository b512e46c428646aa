"""What all routes share: the model behind its engine, what it may be asked, and how busy it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from isobit.engine.answer import Completion, Piece
from isobit.engine.grammar import Grammar
from isobit.engine.llm import LLM
from isobit.engine.params import SamplingParams
from isobit.engine.prepare import Prompt
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import IsobitError, UsageError
from isobit.server import logs
from isobit.server.errors import Refusal, refusal, wrong
from isobit.server.media import Media
from isobit.server.metrics import Metrics
from isobit.server.settings import Settings

if TYPE_CHECKING:
    from isobit.server.speaking import Speaking

T = TypeVar("T")
INLINE = 4096  # characters that are encoded at once; longer texts go to a thread


@dataclass
class Serving:
    """A model that is served.

    Attributes:
        llm: it.
        settings: how.
        about: what people may read of it: its plan, formats, certificate.
        state: "ready", or why not: "starting", "restarting", "draining", "failed".
        sequences: that are being answered or wait for it.
        metrics: what is counted.
        speaking: what speaks, where a pipeline of speech is served; ``llm`` is its language model then.
        media: what becomes of pictures, videos and sounds in requests.
        on_failure: called, by any thread, when the engine is lost for good.
        started: when, in seconds since 1970.
    """

    llm: LLM
    settings: Settings
    about: dict[str, Any] = field(default_factory=dict)
    state: str = "ready"
    sequences: int = 0
    started: float = field(default_factory=time.time)
    metrics: Metrics = field(init=False)
    media: Media = field(init=False)
    speaking: Speaking | None = None
    on_failure: Callable[[], object] = lambda: None
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "isobit-text"))

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.name, lambda: self.llm.engine)
        tower = self.llm.tower
        self.media = Media(
            self.llm.why_no_media if tower is None else tower, self.settings.media, self.metrics, self.settings.remote
        )
        self.llm.on_fault, self.llm.on_recovery = self._fault, self._recovered

    def _fault(self, error: Exception) -> None:
        """A step of the engine has failed; called by its thread."""
        logs.failure("engine fault", error)
        self.metrics.restarts.inc()
        if self.state == "ready":
            self.state = "restarting"

    def _recovered(self) -> None:
        """The others go on; or nothing does, where there is no engine any more."""
        if self.llm.broken is not None:
            logs.failure("engine lost", self.llm.broken)
            self.state = "failed"
            self.on_failure()
        elif self.state == "restarting":
            logs.line("engine restarted", waiting=self.sequences)
            self.state = "ready"

    @property
    def name(self) -> str:
        """Of the model, as replies give it."""
        return self.settings.names[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return self.llm.tokenizer

    @property
    def capacity(self) -> int:
        """The most tokens that prompt and answer can have together."""
        longest = self.llm.engine.longest
        return self.llm.context_length if longest is None else min(self.llm.context_length, longest)

    def require_model(self, name: str | None) -> None:
        """Raises a Refusal if another model is asked for."""
        if name is not None and name not in self.settings.names:
            offered = ", ".join(repr(one) for one in self.settings.names)
            raise Refusal(404, f"there is no model {name!r} here, but {offered}", param="model", code="model_not_found")

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """A request of ``count`` sequences takes part.

        Raises:
            Refusal: the server ends, or so many wait already that it would be in vain.
        """
        if self.state == "draining":
            raise Refusal(503, "the server is shutting down", headers={"retry-after": "5", "connection": "close"})
        if self.state == "failed":
            raise Refusal(503, "the engine has failed", headers={"retry-after": "5"})
        most = self.llm.engine.scheduler.sequences + self.settings.limits.waiting
        if count > most:
            raise wrong(f"the request has {count} sequences (prompts times n); this server takes {most} at once")
        if self.sequences + count > most:
            self.metrics.rejected.inc()
            busy = f"the queue is full: {self.sequences} sequences are answered or wait, and {most} may; try again"
            raise Refusal(503, busy, code="queue_full", headers={"retry-after": "1"})
        self.sequences += count
        try:
            yield
        finally:
            self.sequences -= count

    async def follow(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        *,
        priority: int = 0,
        grammar: Grammar | None = None,
    ) -> AsyncGenerator[list[tuple[int, Piece]], None]:
        """Answers to prompts beside each other: pieces as they come, each with the place of its prompt.

        With hundreds of streams more may come than can be sent one by one: what came meanwhile is given out at once, to
        be sent at once.

        Closing the generator ends the answers within one step of the engine.

        Raises:
            Refusal: there is no room for so many; before the first piece.
            IsobitError: as :meth:`isobit.engine.llm.LLM.generate` raises it.
        """
        with self.admitted(len(prompts)):
            watches = [self.metrics.watch(time.perf_counter()) for _ in prompts]
            left = len(prompts)
            try:
                every = self.llm.stream_batches_async(prompts, params, priority=priority, constraint=grammar)
                async with aclosing(every) as batches:
                    async for batch in batches:
                        for place, piece in batch:
                            watches[place].see(piece)
                            left -= piece.completion is not None
                        yield batch
            finally:
                self.metrics.aborted.inc(left)

    async def whole(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        *,
        priority: int = 0,
        grammar: Grammar | None = None,
        see: Callable[[int, Piece], object] = lambda place, piece: None,
    ) -> list[Completion]:
        """The same as whole answers, in the order of the prompts; ``see`` is called with every piece."""
        found: dict[int, Completion] = {}
        try:
            async with aclosing(self.follow(prompts, params, priority=priority, grammar=grammar)) as batches:
                async for batch in batches:
                    for place, piece in batch:
                        see(place, piece)
                        if piece.completion is not None:
                            found[place] = piece.completion
        except UsageError as error:
            raise refusal(error) from error
        except IsobitError as error:
            raise refusal(error, asked=False) from error
        return [found[place] for place in range(len(prompts))]

    async def aside(self, work: Callable[..., T], *args: Any) -> T:
        """Do something that takes a while in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *args)

    async def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text; takes and raises what the tokenizer does."""
        if len(text) <= INLINE:
            return self.tokenizer.encode(text, add_special)
        return await self.aside(self.tokenizer.encode, text, add_special)

    def require_room(self, tokens: int, asked: int | None) -> None:
        """Raises a Refusal if a prompt and what is asked for are longer than the context."""
        if tokens + (asked or 0) <= self.capacity and tokens < self.capacity + (asked == 0):
            return
        answer = "" if asked is None else f" and asks for {asked} of answer"
        raise wrong(
            f"the prompt has {tokens} tokens{answer}, and the context holds {self.capacity} in all: shorten "
            + ("the prompt" if asked is None else "one of them"),
            "max_tokens" if asked is not None and tokens < self.capacity else "prompt",
            "context_length_exceeded",
        )
