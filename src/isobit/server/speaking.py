"""A pipeline of speech that is served: its voices, learned when somebody first asks for them, and speech in threads."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isobit.speech import voices
from isobit.speech.talker import Talker, Voice

THREADS = 4  # speeches at once; the others wait
_KEPT = 64  # voices in memory


@dataclass
class Speaking:
    """What speaks.

    Attributes:
        talker: the pipeline.
        recordings: of the voices, by name.
    """

    talker: Talker
    recordings: Mapping[str, Path]
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "isobit-speech"))
    _known: OrderedDict[str, Voice] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def voice(self, name: str) -> Voice:
        """A voice of :attr:`recordings`; takes a while when it is asked for first.

        Raises:
            IsobitError: its recording cannot be used.
        """
        with self._lock:
            found = self._known.get(name)
            if found is None:
                path = self.recordings[name]
                found = self.talker.voice(voices.recording(path), voices.said_in(voices.text_beside(path)))
            self._known[name] = found
            self._known.move_to_end(name)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return found

    async def speak(
        self, said: str, name: str, seed: int | None, stream: bool
    ) -> AsyncGenerator[NDArray[np.float32], None]:
        """Samples of a text in chunks. Closing the generator ends the speech at the next sound."""
        loop = asyncio.get_running_loop()
        stopped = threading.Event()
        voice = await loop.run_in_executor(self.threads, self.voice, name)
        spoken = self.talker.speak(said, voice, seed=seed, stream=stream, stopped=stopped)
        try:
            while True:
                chunk = await loop.run_in_executor(self.threads, next, spoken, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            stopped.set()
