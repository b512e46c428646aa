"""Media of requests, decoded and prepared in threads of their own: of a few requests at once, which bounds memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from isobit.errors import UsageError
from isobit.media import Kind, Limits, Medium
from isobit.media.values import PLURALS
from isobit.models.media import MediaPrompt, Tower
from isobit.server import parts
from isobit.server.errors import Refusal, wrong
from isobit.server.metrics import Metrics
from isobit.server.parts import Given

T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("image", "video", "audio")
THREADS = 2
WAITING = 32  # requests with media that wait for a thread; each holds its body


class Media:
    """What becomes of the media of requests.

    Args:
        tower: of the model; where it has none, why.
        limits: what they may cost.
        metrics: that count them.
        remote: fetch what is elsewhere.

    Attributes:
        modalities: what the model reads, text first.
    """

    def __init__(self, tower: Tower | str, limits: Limits, metrics: Metrics, remote: bool) -> None:
        self._limits, self._metrics, self._remote = limits, metrics, remote
        kinds = frozenset[Kind]() if isinstance(tower, str) else tower.kinds
        self._none = tower if isinstance(tower, str) else None
        self.modalities = ["text", *(kind for kind in KINDS if kind in kinds)]
        self._threads = ThreadPoolExecutor(THREADS, "isobit-media")
        self._waiting = 0

    async def prompt(self, given: Sequence[Given], make: Callable[[list[Medium]], MediaPrompt]) -> MediaPrompt:
        """The prompt of a conversation with media.

        Args:
            given: the media, as they came.
            make: makes the prompt out of the media, decoded.

        Raises:
            Refusal: the model does not take them, one cannot be decoded, there are too many, or so many requests wait
                that it would be in vain.
            CapacityError: memory does not suffice.
        """
        self._require(given)
        made = await self.aside(self._made, given, make)
        self.count([made])
        return made

    async def aside(self, work: Callable[..., T], *args: Any) -> T:
        """Decode and prepare media in a thread.

        Raises:
            Refusal: the work raises it, or so many requests wait that it would be in vain.
        """
        if self._waiting >= THREADS + WAITING:
            self._metrics.rejected.inc()
            busy = f"{self._waiting} requests with media are prepared or wait for it, and no more may; try again"
            raise Refusal(503, busy, code="queue_full", headers={"retry-after": "1"})
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, work, *args)
        except Refusal:
            self._metrics.media_refused.inc()
            raise
        finally:
            self._waiting -= 1

    def count(self, prompts: Sequence[MediaPrompt]) -> None:
        """The media of prompts, for the metrics."""
        for placed in (one for prompt in prompts for one in prompt.placed):
            self._metrics.media(placed.piece.kind, placed.piece.tokens)

    def _require(self, given: Sequence[Given]) -> None:
        """Raises a Refusal if the model does not take these."""
        for one in given:
            if self._none is not None:
                raise wrong(f"{one.where}: {self._none}", one.where)
            if one.kind not in self.modalities:
                also = ", ".join(["text", *(PLURALS[kind] for kind in KINDS if kind in self.modalities)])
                raise wrong(f"{one.where}: this model reads no {PLURALS[one.kind]}; it reads {also}", one.where)
            if not self._remote and any(isinstance(text, parts.Address) for text in one.data):
                raise wrong(
                    f"{one.where}: this server fetches nothing from elsewhere (it would if it had been started with "
                    "--allow-remote-media): send a data: URL with the bytes",
                    one.where,
                )
        if len(given) > self._limits.count:
            where = given[self._limits.count].where
            raise wrong(f"{where}: {len(given)} media; the limit of one request is {self._limits.count}", where)

    def _made(self, given: Sequence[Given], make: Callable[[list[Medium]], MediaPrompt]) -> MediaPrompt:
        media = parts.decoded(given, self._limits)
        try:
            return make(media)
        except UsageError as error:
            raise wrong(str(error), given[0].where if len(given) == 1 else "messages") from error

    def close(self) -> None:
        """What waits is not begun any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
