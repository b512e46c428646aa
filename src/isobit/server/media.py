"""Media of requests, decoded and prepared in threads of their own: of a few requests at once, which bounds memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from isobit.errors import UsageError
from isobit.media import Kind, Limits
from isobit.models.media import MediaPrompt, Tower
from isobit.server import parts
from isobit.server.errors import Refusal, wrong
from isobit.server.metrics import Metrics
from isobit.server.parts import Given

T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("image", "video", "audio")
THREADS = 2
WAITING = 32  # requests with media that wait for a thread; each holds its body
_SAID = {"image": "images", "video": "videos", "audio": "sounds"}

Messages = Sequence[Mapping[str, Any]]


class Media:
    """What becomes of the media of requests.

    Args:
        tower: of the model; None for a model of text alone.
        limits: what they may cost.
        metrics: that count them.
    """

    def __init__(self, tower: Tower | None, limits: Limits, metrics: Metrics) -> None:
        self._tower, self._limits, self._metrics = tower, limits, metrics
        self._threads = ThreadPoolExecutor(THREADS, "isobit-media")
        self._waiting = 0

    @property
    def modalities(self) -> list[str]:
        """What the model reads."""
        kinds = frozenset[Kind]() if self._tower is None else self._tower.kinds
        return ["text", *(kind for kind in KINDS if kind in kinds)]

    async def prompt(
        self, given: Sequence[Given], messages: Messages, encode: Callable[[Messages], list[int]]
    ) -> MediaPrompt:
        """The prompt of a conversation with media.

        Args:
            given: the media, as they came.
            messages: in which parts stand for them.
            encode: makes token ids of such messages by the model's chat template.

        Raises:
            Refusal: the model does not take them, one cannot be decoded, there are too many, or so many requests wait
                that it would be in vain.
            CapacityError: memory does not suffice.
        """
        tower = self._require(given)
        made = await self.aside(self._made, tower, given, messages, encode)
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

    def _require(self, given: Sequence[Given]) -> Tower:
        """The tower, if it takes these; raises a Refusal if not."""
        takes = self.modalities
        for one in given:
            if self._tower is None or one.kind not in takes:
                also = ", ".join(_SAID.get(kind, kind) for kind in takes)
                raise wrong(f"{one.where}: this model reads no {_SAID[one.kind]}; it reads {also}", one.where)
        if len(given) > self._limits.count:
            where = given[self._limits.count].where
            raise wrong(f"{where}: {len(given)} media; the limit of one request is {self._limits.count}", where)
        assert self._tower is not None
        return self._tower

    def _made(
        self, tower: Tower, given: Sequence[Given], messages: Messages, encode: Callable[[Messages], list[int]]
    ) -> MediaPrompt:
        media = parts.decoded(given, self._limits)
        try:
            shaped = tower.messages(messages, media)
            return tower.prompt(encode(shaped), media)
        except Refusal:
            raise
        except UsageError as error:
            raise wrong(str(error), given[0].where if len(given) == 1 else "messages") from error

    def close(self) -> None:
        """What waits is not begun any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
