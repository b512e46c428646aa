"""A thread that takes the engine's steps as long as there is something to do."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Driver:
    """Starts a thread when it is asked to, which ends when there is nothing left.

    Args:
        step: takes one.
        busy: whether one has something to do.
        failed: told of what a step raises; whoever waits for it must get to know.

    Attributes:
        thread: that takes the steps; None while there is none.
    """

    def __init__(self, step: Callable[[], None], busy: Callable[[], bool], failed: Callable[[Exception], None]) -> None:
        self._step, self._busy, self._failed = step, busy, failed
        self._lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def drive(self) -> None:
        """Somebody takes steps from now on."""
        with self._lock:
            if self.thread is None or not self.thread.is_alive():
                thread = threading.Thread(target=self._steps, name="isobit-engine")
                thread.start()
                self.thread = thread

    def _steps(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._busy():
                        self.thread = None
                        return
                try:
                    self._step()
                except Exception as error:  # nobody would see it here
                    self._failed(error)
        finally:
            with self._lock:
                if self.thread is threading.current_thread():
                    self.thread = None
