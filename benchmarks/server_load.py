"""Servers under load: many clients that stream, some of which go in the middle; what was lost, and how fast it was.

    python benchmarks/server_load.py                                          # 200 clients, two minutes
    python benchmarks/server_load.py --llama-server build/bin/llama-server    # and llama.cpp's, with the same model
    python benchmarks/server_load.py --quick                                  # a few seconds, not recorded

llama-server comes from the llama.cpp in llama-cpp-python's source distribution (benchmarks/cpu_peers.py says how;
--target llama-server). It gets the bundled model's weights in float16, isobit serves them in bfloat16 as they are.

A client asks (`/v1/completions`, stream: true, greedy, a connection for each request), reads to the end or goes after
a few tokens (one in five), and asks again at once. Before, every prompt was answered alone: answers must be the same.
Behind the load isobit's queue must be empty and no block of its cache held. Any status but 200 and 503 is a fault.
Clients run in this process, beside the server on the same cores; both servers get the same ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from common import RESULTS, provenance, save, stop, use_threads

import isobit
from isobit import api

GOES = 0.2  # of requests end early
TOKENS = (16, 96)  # of an answer
PROMPT = (40, 900)  # characters
JOBS = 40  # different requests


@dataclass(frozen=True)
class Job:
    """A request."""

    prompt: str
    tokens: int

    def body(self) -> bytes:
        """As servers read it."""
        options = {"temperature": 0, "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        return json.dumps({"prompt": self.prompt, "max_tokens": self.tokens, **options}).encode()


@dataclass
class Seen:
    """What all clients saw together."""

    statuses: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    different: int = 0
    whole: int = 0
    gone: int = 0


def jobs(seed: int) -> list[Job]:
    """Pieces of the held-out texts."""
    source = Path(isobit.__file__).parent / "bundled" / "heldout"
    text = "\n".join(path.read_text() for path in sorted(source.rglob("*")) if path.is_file())
    draw = random.Random(seed)
    found = []
    for _ in range(JOBS):
        begin, length = draw.randrange(len(text) - 2000), draw.randint(*PROMPT)
        found.append(Job(text[begin : begin + length], draw.randint(*TOKENS)))
    return found


async def ask(port: int, job: Job, seen: Seen, most: int | None = None) -> str | None:
    """Send a request and read the answer; None for one that was left after ``most`` pieces, or failed."""
    data = job.body()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    began = last = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        status = (await reader.readline()).split()[1].decode()
        seen.statuses[status] += 1
        if status != "200":
            return None
        while await reader.readline() not in (b"\r\n", b""):
            pass
        texts: list[str] = []
        async for event in events(reader):
            if "error" in event:
                seen.statuses["error in a stream"] += 1
                return None
            now = time.perf_counter()
            for choice in event["choices"]:
                if choice["text"] or not texts:
                    (seen.between if texts else seen.first).append(now - (last if texts else began))
                    last = now
                texts.append(choice["text"])
            if event.get("usage"):  # in one event, the last
                seen.tokens += event["usage"]["completion_tokens"]
            if most is not None and len(texts) >= most:
                seen.gone += 1
                seen.tokens += len(texts)
                return None
        return "".join(texts)
    finally:
        writer.close()


async def events(reader: asyncio.StreamReader) -> Any:
    """The events of a chunked stream."""
    rest = b""
    while True:
        size = int(await reader.readline(), 16)
        if size == 0:
            return
        rest += (await reader.readexactly(size + 2))[:-2]
        *whole, rest = rest.split(b"\n\n")
        for part in whole:
            if part.startswith(b"data: {"):
                yield json.loads(part[6:])


async def client(port: int, number: int, todo: list[Job], alone: dict[Job, str], seen: Seen, end: float) -> None:
    """Asks until the time is over."""
    draw = random.Random(number)
    while time.perf_counter() < end:
        job = draw.choice(todo)
        most = draw.randint(1, job.tokens - 2) if draw.random() < GOES else None
        try:
            text = await ask(port, job, seen, most)
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.statuses[type(error).__name__] += 1
            continue
        if text is not None:
            seen.whole += 1
            seen.different += text != alone.get(job, text)
        elif most is None:
            await asyncio.sleep(0.2)  # told to come again


async def load(
    port: int, clients: int, length: float, todo: list[Job], process: psutil.Process, checked: bool
) -> dict[str, Any]:
    """The load, and what was seen; answers are compared with those to requests alone if they are ``checked``."""
    alone: dict[Job, str] = {}
    quiet = Seen()
    for job in todo if checked else []:
        text = await ask(port, job, quiet)
        if text is None:
            stop(f"a request alone was not answered: {dict(quiet.statuses)}")
        alone[job] = text
    seen, sizes = Seen(), [process.memory_info().rss]
    began = time.perf_counter()
    busy = process.cpu_times()
    tasks = [asyncio.create_task(client(port, n, todo, alone, seen, began + length)) for n in range(clients)]
    while not all(task.done() for task in tasks):
        sizes.append(process.memory_info().rss)
        await asyncio.wait(tasks, timeout=1.0)
    for task in tasks:
        task.result()
    taken = time.perf_counter() - began
    used = process.cpu_times()
    return {
        "seconds": round(taken, 1),
        "requests": sum(seen.statuses.values()),
        "whole": seen.whole,
        "gone": seen.gone,
        "refused_503": seen.statuses["503"],
        "faults": sum(count for kind, count in seen.statuses.items() if kind not in ("200", "503")),
        "different": seen.different,
        "tokens_per_second": round(seen.tokens / taken, 1),
        "first_p50_ms": milliseconds(seen.first, 50),
        "first_p99_ms": milliseconds(seen.first, 99),
        "between_p50_ms": milliseconds(seen.between, 50),
        "between_p99_ms": milliseconds(seen.between, 99),
        "rss_before_mib": sizes[0] >> 20,
        "rss_most_mib": max(sizes) >> 20,
        "rss_after_mib": process.memory_info().rss >> 20,
        "server_cores": round((used.user + used.system - busy.user - busy.system) / taken, 2),
    }


def milliseconds(values: list[float], percent: int) -> float:
    """A percentile."""
    found = statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else sum(values)
    return round(1000 * found, 2)


def get(port: int, path: str) -> Any:
    """What a route says."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as reply:
        return json.loads(reply.read())


@contextlib.contextmanager
def started(command: list[str], port: int, log: Path) -> Iterator[psutil.Process]:
    """A server, until it is left; it must end by SIGTERM."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for _ in range(600):
            if process.poll() is not None:
                stop(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
            with contextlib.suppress(OSError):
                if get(port, "/health"):
                    break
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def lost(port: int) -> dict[str, Any]:
    """What is still held behind the load; all of it must be nothing."""
    for _ in range(100):
        status = get(port, "/v1/isobit/status")
        held = status["queue"]["running"] + status["queue"]["waiting"] + status["queue"]["admitted"]
        if not held and not status["kv_cache"]["usage"]:
            break
        time.sleep(0.05)
    return {"held": held, "kv_usage": status["kv_cache"]["usage"], "preemptions": status["kv_cache"]["preemptions"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--sequences", type=int, default=64, help="answers at once, of both servers")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server, for the comparison")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="further options of `isobit serve`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=RESULTS / "server_load.csv")
    parser.add_argument("--quick", action="store_true", help="a few clients for a second, not recorded")
    args = parser.parse_args()
    if args.quick:
        args.clients, args.seconds = 8, 1.0
    threads = use_threads(None)
    todo = jobs(args.seed)
    own = [sys.executable, "-m", "isobit", "serve", "bundled", "--sequences", str(args.sequences), *args.serve]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        servers = {"isobit": own}
        if args.llama_server is not None:
            servers["llama.cpp"] = peer(args.llama_server, work, args.sequences, threads)
        for name, command in servers.items():
            port = free_port()
            with started([*command, "--port", str(port)], port, work / f"{name}.log") as process:
                found = asyncio.run(load(port, args.clients, args.seconds, todo, process, name == "isobit"))
                rest = lost(port) if name == "isobit" else {"held": "", "kv_usage": "", "preemptions": ""}
            shown = {"server": name, "clients": args.clients, "sequences": args.sequences, "threads": threads}
            rows.append(provenance() | shown | found | rest)
            print(json.dumps(shown | found | rest, indent=1), flush=True)
    if len(rows) == 2:
        ratio = rows[0]["tokens_per_second"] / rows[1]["tokens_per_second"]
        print(f"isobit writes {ratio:.2f} times as many tokens a second as llama.cpp's server")
    if not args.quick:
        save(rows, args.csv)
    mine = rows[0]
    if mine["faults"] or mine["different"] or mine["held"] or mine["kv_usage"]:
        stop("isobit: faults, answers that differ, or blocks that are held")


def peer(program: Path, work: Path, sequences: int, threads: int) -> list[str]:
    """llama.cpp's server with the same model: as many answers at once, each with the whole context."""
    import gguf_model

    path = work / "bundled.gguf"
    gguf_model.write(path, api.find("bundled"))
    size = ["-c", str(1024 * sequences), "-np", str(sequences), "-t", str(threads), "-tb", str(threads)]
    return [os.fspath(program), "-m", str(path), *size, "--host", "127.0.0.1", "--no-webui"]


if __name__ == "__main__":
    main()
