"""DeepSeek-LLM-7B and Llama 2 from their originals' files to answers, by commands: plan, quantize, eval, bench, serve.

    python benchmarks/gpu_end_to_end.py --work /dev/shm/isobit                # both, four schemes, on a GPU; 60 GB
    python benchmarks/gpu_end_to_end.py --work DIR --models llama-2-7b --schemes fp8
    python benchmarks/gpu_end_to_end.py --work DIR --steps plan,quantize      # no GPU is used
    python benchmarks/gpu_end_to_end.py --quick                               # tiny, on the CPU, not recorded

Weights are random, at the published shapes, in `pytorch_model-0000x-of-0000y.bin` as the originals were published.
Every step is a command of isobit's in a process of its own, as a user runs it; a row for each: its seconds, its exit
status and what it said. What `eval` compares is two models of random weights: its figures say that the path is whole,
and no more. Rows go to benchmarks/results/gpu_end_to_end.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, provenance, save, stop
from gpu_generate import write_tokenizer
from shapes import SHAPES, Shape

MODELS: dict[str, tuple[Shape, torch.dtype]] = {
    "llama-2-7b": (SHAPES["7b"], torch.float16),
    "deepseek-llm-7b": (replace(SHAPES["7b"], title="DeepSeek-LLM-7B", layers=30, vocab=102400), torch.bfloat16),
    "tiny": (SHAPES["tiny"], torch.float16),
}
SCHEMES = "fp8,fp8-e5m2,int8,int4"
STEPS = ("plan", "quantize", "eval", "bench", "serve")
SHARD_LAYERS = 16  # layers of a file
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for checkpoints, which are left there")
    parser.add_argument("--models", default="llama-2-7b,deepseek-llm-7b")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--batch", default="1,64", help="of `isobit bench`")
    parser.add_argument("--memory", help="that eval and serve may take of the GPU, where several run at once")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {', '.join(STEPS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny, on the CPU; nothing is recorded")
    parser.add_argument("--csv", type=Path, default=RESULTS / "gpu_end_to_end.csv")
    args = parser.parse_args()
    args.steps = args.steps.split(",")
    if unknown := sorted(set(args.steps) - set(STEPS)):
        parser.error(f"--steps {', '.join(unknown)}: there are {', '.join(STEPS)}")
    return args


# ---------------------------------------------------------------------- the original


def make_bin(folder: Path, shape: Shape, dtype: torch.dtype) -> None:
    """A random checkpoint in PyTorch's files, config.json last; norms are ones."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    pool = (torch.randn(1 << 24, generator=generator) * 0.02).to(dtype)
    parts: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, size in shape.tensors().items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
        last = name in ("model.norm.weight", "lm_head.weight")
        part = (shape.layers - 1 if last else layer) // SHARD_LAYERS
        parts.setdefault(part, {})[name] = size
    index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": {}}
    for part, sizes in parts.items():
        file = f"pytorch_model-{part + 1:05d}-of-{len(parts):05d}.bin"
        tensors = {name: weight(pool, size, number) for number, (name, size) in enumerate(sizes.items(), start=part)}
        torch.save(tensors, folder / file)
        index["weight_map"] |= dict.fromkeys(tensors, file)
        index["metadata"]["total_size"] += sum(t.nbytes for t in tensors.values())
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    write_tokenizer(folder, shape.vocab)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT}))
    config = shape.config() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def weight(pool: torch.Tensor, size: tuple[int, ...], number: int) -> torch.Tensor:
    """The random numbers over and over, begun at another place for every tensor of a file."""
    if len(size) == 1:
        return torch.ones(size, dtype=pool.dtype)
    made = torch.empty(size, dtype=pool.dtype)
    into, place, at = made.view(-1), number * 7919 % pool.numel(), 0
    while at < into.numel():
        part = pool[place : place + into.numel() - at]
        into[at : at + part.numel()] = part
        place, at = 0, at + part.numel()
    return made


def write_text(path: Path, shape: Shape, words: int) -> None:
    """A text of the tokenizer's words."""
    draw = random.Random(0)
    path.write_text(" ".join(f"w{draw.randrange(3, shape.vocab)}" for _ in range(words)))


# ---------------------------------------------------------------------- commands


def command(*words: str | Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Runs `isobit` with these words: seconds, and what it said."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "isobit", *map(str, words)], capture_output=True, text=True)
    return time.perf_counter() - begin, done


def row(step: str, seconds: float, status: int, said: str) -> dict[str, object]:
    return {"step": step, "seconds": round(seconds, 2), "status": status, "said": said}


def tail(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a command that failed."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:200] if lines else ""


def planned(source: Path, schemes: list[str]) -> dict[str, object]:
    """What `isobit plan` says of this machine."""
    seconds, done = command("plan", source, "--target", "here", "--scheme", ",".join(schemes), "--json")
    said = tail(done) if done.returncode else f"{len(done.stdout)} bytes of plan"
    return row("plan", seconds, done.returncode, said)


def quantized(source: Path, out: Path, name: str) -> dict[str, object]:
    seconds, done = command("quantize", source, "-s", name, "-o", out, "--search", "absmax", "--overwrite", "-q")
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return row("quantize", seconds, done.returncode, tail(done) if done.returncode else f"{size / 1e9:.2f} GB")


def evaluated(source: Path, out: Path, text: Path, device: str, more: list[str]) -> dict[str, object]:
    words: list[str | Path] = [
        "eval",
        out,
        "--against",
        source,
        "--text",
        text,
        "--tokens",
        "2048",
        "--device",
        device,
        "--json",
        "-q",
    ]
    seconds, done = command(*words, *more)
    return row("eval", seconds, done.returncode, tail(done) if done.returncode else divergence(done.stdout))


def divergence(text: str) -> str:
    """What eval's JSON says of the model beside its source."""
    found = json.loads(text)["fidelity"]
    return " ".join(f"{name} {found[name]['value']:.4g}" for name in ("kl_mean", "top1", "perplexity_ratio"))


def benched(out: Path, batch: str, device: str, new: int) -> dict[str, object]:
    words: list[str | Path] = [
        "bench",
        out,
        "--device",
        device,
        "--batch",
        batch,
        "--new",
        str(new),
        "--rounds",
        "2",
        "--no-store",
        "-q",
    ]
    seconds, done = command(*words)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return row("bench", seconds, done.returncode, tail(done) if done.returncode else " | ".join(lines)[-600:])


# ---------------------------------------------------------------------- serving


def served(out: Path, device: str, more: list[str]) -> dict[str, object]:
    """Starts a server, asks for its health, for completions and for a streamed chat, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.perf_counter()
    words = ["serve", str(out), "--device", device, "--port", str(port), *more]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen([sys.executable, "-m", "isobit", *words], stdout=log, stderr=log)
        try:
            name = waited(port, server)
            said = [f"ready after {time.perf_counter() - begin:.1f} s, health {healthy(port)}"]
            for count in (1, 8, 64):
                seconds, tokens = asked(port, name, count)
                said.append(f"{count} at once: {tokens} tokens in {seconds:.2f} s")
            said.append(chatted(port, name))
            status = 0
        except (OSError, RuntimeError, ValueError) as error:
            log.seek(0)
            said, status = [str(error)[:200], *log.read().strip().splitlines()[-1:]], 1
        finally:
            server.terminate()
            ended = server.wait()
    said.append(f"ended with {ended}")
    return row("serve", time.perf_counter() - begin, status, "; ".join(said))


def waited(port: int, server: subprocess.Popen[bytes]) -> str:
    """The model's name, once there is a server."""
    for _ in range(1200):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
                return str(json.load(answer)["data"][0]["id"])
        except urllib.error.URLError:
            time.sleep(0.1)
    raise RuntimeError("no server after two minutes")


def healthy(port: int) -> int:
    """The status of /health."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        return int(answer.status)


def post(port: int, route: str, body: dict[str, object]) -> Any:
    """The open answer of a request."""
    url, kind = f"http://127.0.0.1:{port}/v1/{route}", {"Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), kind), timeout=300)


def asked(port: int, name: str, count: int) -> tuple[float, int]:
    """Seconds and tokens of as many completions as one request asks for."""
    prompt = " ".join(f"w{number}" for number in range(3, 67))
    body = {"model": name, "prompt": [prompt] * count, "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    begin = time.perf_counter()
    with post(port, "completions", body) as answer:
        found = json.load(answer)
    return time.perf_counter() - begin, int(found["usage"]["completion_tokens"])


def chatted(port: int, name: str) -> str:
    """What came of a chat whose answer is streamed."""
    messages = [{"role": "user", "content": "w5 w6 w7 w8"}]
    body = {"model": name, "messages": messages, "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    begin, first, pieces, last = time.perf_counter(), 0.0, 0, ""
    with post(port, "chat/completions", body | {"stream": True}) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                first, pieces, last = first or time.perf_counter() - begin, pieces + 1, line.decode().strip()
    if last != "data: [DONE]":
        raise RuntimeError(f"the streamed chat ended with {last[:100]!r}")
    return f"chat: first piece after {1e3 * first:.0f} ms, {pieces} in {time.perf_counter() - begin:.2f} s"


# ---------------------------------------------------------------------- all of it


def steps(args: argparse.Namespace, work: Path, model: str) -> Iterator[dict[str, object]]:
    """The rows of one model."""
    shape, dtype = MODELS[model]
    source, schemes = work / model, args.schemes.split(",")
    device = "cpu" if args.quick else "cuda"
    if not (source / "config.json").exists():
        begin = time.perf_counter()
        make_bin(source, shape, dtype)
        yield {"scheme": ""} | row("make", time.perf_counter() - begin, 0, f"{dtype}, .bin")
    if "plan" in args.steps:
        yield {"scheme": ""} | planned(source, schemes)
    text = work / f"{model}.txt"
    write_text(text, shape, 4096)
    for name in schemes:
        out = work / f"{model}-{name}"
        if "quantize" in args.steps or not (out / "config.json").exists():
            yield {"scheme": name} | quantized(source, out, name)
    more = ["--memory", args.memory] if args.memory else []
    for name in schemes:
        out = work / f"{model}-{name}"
        if "eval" in args.steps:
            yield {"scheme": name} | evaluated(source, out, text, device, more)
        if "bench" in args.steps:
            yield {"scheme": name} | benched(out, "1,2" if args.quick else args.batch, device, 8 if args.quick else 64)
        if "serve" in args.steps:
            yield {"scheme": name} | served(out, device, more)


def main() -> None:
    args = parse()
    models = ["tiny"] if args.quick else args.models.split(",")
    if unknown := [name for name in models if name not in MODELS]:
        stop(f"--models {', '.join(unknown)}: there are {', '.join(MODELS)}")
    if args.work is None and not args.quick:
        stop("--work names a folder for checkpoints: 60 GB for both models in four schemes")
    on_gpu = not args.quick and bool({"eval", "bench", "serve"} & set(args.steps))
    if on_gpu and not torch.cuda.is_available():
        stop("there is no GPU: --steps plan,quantize makes the checkpoints, --quick tries the script on the CPU")
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for model in models:
            for found in steps(args, work, model):
                named = {"model": model, **found}
                print(*named.values(), flush=True)
                failed += found["status"] != 0
                if not args.quick:
                    name = torch.cuda.get_device_name() if on_gpu else ""
                    save([{**provenance(), "device": name, **named}], args.csv)
    if failed:
        stop(f"{failed} steps failed")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
