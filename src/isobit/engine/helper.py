"""Helper processes for strangers' programs: chat templates and grammars run where they can only end themselves.

A helper answers one line of JSON with one line, within its own limits on time and memory, or dies of them.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isobit.errors import IsobitError


class Helper:
    """One helper process: started at the first request, and again after a request broke it.

    Args:
        script: beside this file; it writes a line when it is ready, ends itself with SIGPROF or SIGALRM when a request
            takes too long, and answers a line with a line.
        arguments: of its command line.
        greeting: a line that it is told first, or None.
        failure: makes the error of a process that does not start, out of the reason.
    """

    def __init__(
        self,
        script: str,
        arguments: tuple[str, ...],
        failure: Callable[[str], IsobitError],
        greeting: str | None = None,
    ) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()
        self._script, self._arguments, self._failure, self._greeting = script, arguments, failure, greeting
        self._lock = threading.Lock()
        _helpers.add(self)

    def ask(self, request: str) -> dict[str, Any]:
        """Send one JSON request and wait for the reply. The process answers or dies within the time limit."""
        with self._lock:
            process = self._running()
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(request + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # Ctrl-C between request and reply: the next reply would answer the wrong request
                self.close()
                raise
            if line.endswith("\n"):
                reply: dict[str, Any] = json.loads(line)
                return reply
            return self._died(process)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        _collect(process)

    def __del__(self) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name(self._script)), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="ascii",
            start_new_session=True,  # Ctrl-C in a terminal is for us, not for it
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            if self._greeting is not None:
                process.stdin.write(self._greeting + "\n")
                process.stdin.flush()
            ready = process.stdout.readline()
        except BrokenPipeError:
            ready = ""
        except BaseException:
            process.kill()
            _collect(process)
            raise
        if not ready:
            reason = process.stderr.read().strip().rpartition("\n")[2]
            _collect(process)
            raise self._failure(reason)
        self._process = process
        return process

    def _died(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        self._process = None
        status = _collect(process)
        if status in (-signal.SIGPROF, -signal.SIGALRM):
            return {"error": "time"}
        return {"error": "crashed", "message": f"exit status {status}"}


def _collect(process: subprocess.Popen[str]) -> int:
    status = process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None and not stream.closed:
            try:
                stream.close()
            except BrokenPipeError:  # closing flushes what the dead process never read
                continue
    return status


_helpers: weakref.WeakSet[Helper] = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    """End all of them; those that are asked again start again."""
    for helper in list(_helpers):
        helper.close()
