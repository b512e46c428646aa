"""The server as a process: plans, loads, listens, and ends in order when a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from isobit import api, arguments
from isobit.engine.generate import require_room
from isobit.engine.llm import LLM
from isobit.errors import CapacityError, Unsupported, UsageError
from isobit.evaluation import certificate
from isobit.formats.caches import BLOCK
from isobit.legalize import text
from isobit.legalize.ops import Refusal
from isobit.legalize.plan import AS_STORED, Plan
from isobit.legalize.workload import as_loaded
from isobit.models.place import place
from isobit.models.planning import DEFAULT_CONTEXT
from isobit.server import logs
from isobit.server.app import create_app
from isobit.server.serving import Serving
from isobit.server.settings import Settings

if TYPE_CHECKING:
    from isobit.server.speaking import Speaking

LOST = 70  # exit status, as of a bug
KEEP_ALIVE = 75  # seconds that a connection may be idle: longer than proxies keep theirs


def planned(
    folder: Path,
    device: str,
    kv: str | None = None,
    memory: int | str | None = None,
    context: int | None = None,
    cache_tokens: int | None = None,
    sequences: int = 1,
) -> dict[str, Any]:
    """What will happen to a model on this machine; needs its configuration alone.

    Args:
        folder, device, kv, memory, context, cache_tokens, sequences: what it will be loaded with.

    Returns:
        ``text``, lines for people; ``title`` of the model and ``plan``, for programs.

    Raises:
        Unsupported: nothing here runs it; with all reasons.
        CapacityError: it does not fit the memory.
    """
    if device != "cpu":
        place(device, None)
    work, machines = api.plan(str(folder), targets=["here"], kv=kv, memory=memory)
    here = next((found[0].target for found in machines if found[0].target.is_gpu == (device != "cpu")), None)
    own = None if here is None else as_loaded(work, here)
    longest = min(context or work.max_context, work.max_context)
    held = cache_tokens if cache_tokens is not None else _held(folder, device, kv, memory, context, sequences)
    held = longest if held is None else max(BLOCK, held // BLOCK * BLOCK)
    less = f", which is what the cache holds (the model reads {work.max_context})" if held < longest else ""
    longest = min(longest, held)
    work, machines = api.plan(
        str(folder), targets=["here"], schemes=[AS_STORED if own is None else own.name], kv=kv, memory=memory,
        context=min(longest, DEFAULT_CONTEXT),
    )  # fmt: skip
    kept = [found for found in machines if found and found[0].target.is_gpu == (device != "cpu")]
    lines = [f"{work.title}, context up to {longest} tokens{less}"]
    for plans in kept:
        lines += text.describe(plans)
    for plan in kept[0] if kept else []:
        _require(plan)
    shown = [text.as_data(plan) for plans in kept for plan in plans]
    for one in shown:
        del one["ops"]
    return {"text": lines, "title": work.title, "plan": shown}


def _held(
    folder: Path, device: str, kv: str | None, memory: int | str | None, context: int | None, sequences: int
) -> int | None:
    """Tokens that a cache will hold which is made at once of what the weights leave; None where that is not known."""
    most = arguments.optional_memory("memory", memory)
    if most is None:
        return None
    try:
        left = require_room(folder, device, most, kv or "auto", sequences, context=context)
    except CapacityError:
        return None  # loading says so, behind the plan
    return None if left is None else left.cache_tokens(sequences)


def _require(plan: Plan) -> None:
    """Raises an error if a plan says that the model cannot run.

    Attention over a rounded cache may be refused by the plan, which is about kernels, and still run, slowly.
    """
    where = f"{plan.board.name} ({plan.target.name})"
    if any(isinstance(decision, Refusal) and op.kind == "linear" for op, decision in plan.ops):
        raise Unsupported(f"this model ({plan.scheme}) on {where}", plan.reasons, plan.instead or None)
    weights = plan.memory.weights + plan.memory.tower
    if weights > plan.memory.capacity:
        need, have = (f"{size / 2**30:.2f} GiB" for size in (weights, plan.memory.capacity))
        raise CapacityError(
            f"the weights of this model take {need} and {where} has {have}: quantize it further (`isobit plan` shows "
            "what fits), or take a larger machine"
        )


def described(folder: Path) -> dict[str, Any]:
    """What clients may read of a checkpoint: its formats, and how much it is."""
    info, (certified, _) = api.info(folder), certificate.valid(folder)
    schemes = [{"kind": use.kind, "scheme": use.scheme, "modules": use.modules} for use in info.schemes]
    return {
        "formats": schemes,
        "parameters": info.parameters,
        "file_bytes": info.file_bytes,
        "bits_per_weight": info.linear_bits_per_weight,
        "certificate": None if certified is None else certificate.shown(certified),
    }


def listener(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet.

    Raises:
        UsageError: it cannot be had, as where another program has the port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot listen on {host} port {port}: {reason}; choose others with --host and --port"
        ) from None
    return sock


class Server(uvicorn.Server):
    """Uvicorn, whose end is ours: answers under way are finished first, and a second signal does not wait."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving
        self.lost = False
        serving.on_failure = self._lose

    def _lose(self) -> None:
        """The engine is lost: whoever started this process is to start another."""
        self.lost = self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it serves, signals end it in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.end, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def end(self, number: int) -> None:
        """No new requests; answers under way get the time that the settings give them."""
        if self.should_exit:
            self.force_exit = True
        self._serving.state = "draining"
        logs.line("ending", signal=signal.Signals(number).name, answers=self._serving.sequences)
        self.should_exit = True


def serve(
    llm: LLM, settings: Settings, about: dict[str, Any], sock: socket.socket, speaking: Speaking | None = None
) -> int:
    """Serve a model until a signal comes; returns the exit status: 0, or 70 if the engine was lost."""
    serving = Serving(llm, settings, about, speaking=speaking)
    root = logging.getLogger()
    root.addHandler(logs.ToLines())
    root.setLevel(logging.WARNING)
    config = uvicorn.Config(
        create_app(serving),
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=settings.limits.header,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=settings.drain,  # type: ignore[arg-type]
    )
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"isobit: {serving.name} is served at http://{shown}:{port}", file=sys.stderr, flush=True)
    server = Server(config, serving)
    asyncio.run(server.serve(sockets=[sock]))
    for threads in (serving.threads, *([speaking.threads] if speaking is not None else [])):
        threads.shutdown(wait=False, cancel_futures=True)
    serving.media.close()
    return LOST if server.lost else 0
