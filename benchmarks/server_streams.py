"""What a server gives to many streams at once, beside a device whose steps take a given time and nothing of the host.

    python benchmarks/server_streams.py [--streams 1,64,256] [--step 11] [--tokens 128] [--path /v1/completions]

The engine decodes on the runner of GPUs, on which nothing is computed: a step is there after so many milliseconds, as
11 are for 256 sequences of a 7B on an H200. The server runs as `isobit serve` has it, in this process; its clients, in
another, have a connection each and count the tokens of the usage that ends their streams. ``share`` is tokens a second
over streams / step, the time in which requests arrive included; ``loop_us`` the processor time of the event loop's
thread for a token and ``process_us`` that of all threads, in microseconds; ``events`` is how many a stream had for each
of its tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, provenance, save
from engine_host import Instant, chosen, engine

from isobit.engine.llm import LLM
from isobit.engine.request import Schedule
from isobit.engine.sampler import Chooser
from isobit.server.run import listener, serve
from isobit.server.settings import Settings


class Paced:
    """What a device chooses: there when its time has come."""

    def __init__(self, pending: Any, end: float) -> None:
        self._pending, self._end = pending, end

    def wait(self) -> None:
        """As the real one does: the host does nothing else."""
        time.sleep(max(0.0, self._end - time.perf_counter()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pending, name)


class Device(Instant):
    """A device whose steps come one after the other, of so many seconds each."""

    def __init__(self, model: Any, sequences: int, steps: torch.Tensor, seconds: float) -> None:
        super().__init__(model, sequences, steps)
        self._seconds, self._free = seconds, 0.0

    def start(self, schedule: Schedule, choosers: Sequence[Chooser]) -> Any:
        """As ever; it is done behind the steps before it."""
        pending = super().start(schedule, choosers)
        self._free = max(self._free, time.perf_counter()) + self._seconds
        return Paced(pending, self._free)


def paced(sequences: int, seconds: float) -> LLM:
    """An engine with such a device."""
    tokenizer, tokens = chosen("words", sequences)
    tokenizer.chat_templates = {"default": "{% for one in messages %}{{ one.content }}{% endfor %}"}
    return engine(sequences, tokenizer, lambda model: Device(model, sequences, tokens, seconds))[0]


# ---------------------------------------------------------------------- clients, in a process of their own


async def client(port: int, path: str, number: int, tokens: int) -> tuple[int, int, float, float]:
    """Events and tokens of a stream, and when its first and last event came."""
    body: dict[str, Any] = {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"ignore_eos": True, "prompt": [number % 200 + 3] * 64}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": f"w{body.pop('prompt')[0]}"}]
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(data)}\r\n"
    writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + data)
    events, first, last, end = 0, 0.0, 0.0, b""
    while chunk := await reader.read(1 << 16):
        last = time.perf_counter()
        first = first or last
        events += chunk.count(b"data: {")
        end = (end + chunk)[-2000:]
    writer.close()
    usage = end.rfind(b'"completion_tokens":')
    if usage < 0:
        raise SystemExit(f"no answer: {end[-300:]!r}")
    return events, int(end[usage + 20 :].split(b",")[0].split(b"}")[0]), first, last


async def clients(port: int, path: str, streams: int, tokens: int) -> None:
    """All at once; prints what came as JSON."""
    found = await asyncio.gather(*(client(port, path, number, tokens) for number in range(streams)))
    events, given, first, last = zip(*found, strict=True)
    print(json.dumps({"events": sum(events), "tokens": sum(given), "seconds": max(last) - min(first)}))


# ---------------------------------------------------------------------- measuring


def busy() -> dict[str, float]:
    """Seconds of processor time of each thread."""
    found = {}
    for thread in threading.enumerate():
        assert thread.ident is not None
        found[thread.name] = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return found


def measure(port: int, path: str, streams: int, tokens: int, step: float) -> dict[str, object]:
    """One row."""
    before, all_before = busy(), time.process_time()
    command = [sys.executable, __file__, "--client", str(port), "--path", path, "--streams", str(streams)]
    told = subprocess.run([*command, "--tokens", str(tokens)], capture_output=True, text=True, check=True).stdout
    found, after, all_after = json.loads(told), busy(), time.process_time()
    spent = {name: 1e6 * (seconds - before.get(name, 0.0)) / found["tokens"] for name, seconds in after.items()}
    rate = found["tokens"] / found["seconds"]
    return {
        "path": path, "streams": streams, "step_ms": 1e3 * step, "tok_s": round(rate, 1),
        "share": round(rate * step / streams, 3), "loop_us": round(spent.pop("MainThread"), 1),
        "process_us": round(1e6 * (all_after - all_before) / found["tokens"], 1),
        "events": round(found["events"] / found["tokens"], 3),
    }  # fmt: skip


def main() -> None:
    """Measure and append to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,64,256")
    parser.add_argument("--step", type=float, default=11.0, help="milliseconds that the device takes (default: 11)")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--path", default="/v1/completions,/v1/chat/completions")
    parser.add_argument("--csv", type=Path, default=RESULTS / "server_streams.csv")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    counts = [int(part) for part in options.streams.split(",")]
    if options.client is not None:
        asyncio.run(clients(options.client, options.path, counts[0], options.tokens))
        return
    sock, rows, step = listener("127.0.0.1", 0), [], options.step / 1e3
    port = sock.getsockname()[1]

    def ask() -> None:
        try:
            time.sleep(1)  # until it listens
            for path in options.path.split(","):
                measure(port, path, max(counts), 8, step)  # what a server meets first is behind it
                for streams in counts:
                    rows.append(measure(port, path, streams, options.tokens, step))
                    print(*(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask, name="asking")
    asking.start()
    serve(paced(max(counts), step), Settings(names=("words",)), {}, sock)
    asking.join()
    save([provenance() | row for row in rows], options.csv)


if __name__ == "__main__":
    main()
