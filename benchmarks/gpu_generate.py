"""What generating takes on a GPU, beside what `isobit plan` says: loading, prompts by chunk size, one token at a time.

    python benchmarks/gpu_generate.py --work /dev/shm/isobit [--schemes bf16,fp8,int4] [--shape 7b]

Makes a checkpoint of random weights, quantizes it, loads it on the card and runs it through ``engine.generate``, as
``isobit generate --device cuda`` does. A step of decoding is measured three ways: as the engine does it; how long
Python takes to start its kernels (the queue not waited for); and its kernels alone, replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, provenance, save
from shapes import SHAPES, Recipe, make

from isobit.engine.generate import Generator, load_generator
from isobit.engine.sampling import SamplingParams
from isobit.models.planning import plans

CHUNKS = (256, 512, 1024, 2048, 4096)
PROMPT, ANSWER = 128, 128


def main() -> None:
    """Measure and append to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints, which are left there")
    parser.add_argument("--shape", default="7b", choices=tuple(SHAPES))
    parser.add_argument("--schemes", default="bf16,fp8,int4")
    parser.add_argument("--chunks", default=",".join(map(str, CHUNKS)), help="tokens of a prompt run at once")
    parser.add_argument("--make", action="store_true", help="make the checkpoints and measure nothing")
    parser.add_argument("--csv", type=Path, default=RESULTS / "gpu_generate.csv")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chunks = [int(part) for part in options.chunks.split(",")]
    for scheme in options.schemes.split(","):
        folder = make(options.work, Recipe(options.shape, scheme))
        write_tokenizer(folder, SHAPES[options.shape].vocab)
        if options.make:
            continue
        rows = measure(folder, options.shape, scheme, chunks)
        for row in rows:
            print(*row.values(), flush=True)
        save([provenance() | row for row in rows], options.csv)
        gc.collect()
        torch.cuda.empty_cache()


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer of as many words: only ids matter here."""
    words = {f"w{index}": index for index in range(vocab)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    body = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
            "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(body))


class Rows(list[dict[str, object]]):
    """Figures of one checkpoint."""

    def __init__(self, **fixed: object) -> None:
        super().__init__()
        self.fixed = fixed

    def put(self, what: str, value: float, unit: str, predicted: float | None = None) -> None:
        said = "" if predicted is None else f"{predicted:.6g}"
        self.append({**self.fixed, "what": what, "value": f"{value:.6g}", "unit": unit, "predicted": said})


@torch.inference_mode()
def measure(folder: Path, shape: str, scheme: str, chunks: list[int]) -> Rows:
    """Figures of one checkpoint; bytes are those of PyTorch's allocator."""
    device = torch.cuda.get_device_name()
    rows = Rows(device=device, shape=shape, scheme=scheme)
    context = SHAPES[shape].context
    plan = plans(folder, targets=["here"], context=context)[1][0][0]
    before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    generator = load_generator(folder, device="cuda")
    torch.cuda.synchronize()
    rows.put("loading", time.perf_counter() - begin, "s")
    rows.put("weights", (torch.cuda.memory_allocated() - before) / 2**20, "MiB", plan.memory.weights / 2**20)
    ids = [(7 * i) % 31999 + 1 if SHAPES[shape].vocab > 31999 else i % 1000 + 1 for i in range(context)]
    usual = generator.chunk
    for chunk in chunks:
        generator.chunk = chunk
        prompts(rows, generator, ids, f"prompt of {context}, {chunk} at once",
                plan if chunk == usual else None)  # fmt: skip
    generator.chunk = usual
    answer = generator.generate(ids[:PROMPT], SamplingParams(max_tokens=ANSWER, ignore_eos=True))
    answer = generator.generate(ids[:PROMPT], SamplingParams(max_tokens=ANSWER, ignore_eos=True))
    speed = answer.timings.tokens_per_second
    assert speed is not None
    near = plans(folder, targets=["here"], context=PROMPT + ANSWER)[1][0][0]
    rows.put(f"decode behind {PROMPT}", speed, "tokens/s", near.cost.decode if near.cost else None)
    for past, cost in ((PROMPT + ANSWER // 2, near.cost), (context - 64, plan.cost)):
        steps(rows, generator, ids, past, cost)
    free, total = torch.cuda.mem_get_info()
    rows.put("all of the card that is taken, at the end", (total - free) / 2**20, "MiB", plan.memory.total / 2**20)
    return rows


def prompts(rows: Rows, generator: Generator, ids: list[int], what: str, plan: Any) -> None:
    """Tokens per second of a prompt, and what it takes beside weights and cache."""
    times = []
    for _ in range(4):
        cache = generator.model.new_cache(1, len(ids))
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        generator.prefill(ids, cache).cpu()
        times.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() - held
        del cache
    cost = plan.cost if plan else None
    rows.put(what, len(ids) / statistics.median(times[1:]), "tokens/s", cost.prefill if cost else None)
    rows.put(
        f"{what}: beside weights and cache", peak / 2**20, "MiB", plan.memory.activations / 2**20 if plan else None
    )


def steps(rows: Rows, generator: Generator, ids: list[int], past: int, cost: Any) -> None:
    """One token behind ``past`` others: started by Python, and its kernels alone."""
    model = generator.model
    cache = model.new_cache(1, len(ids))
    generator.prefill(ids[:past], cache)
    token = torch.tensor([[7]], device="cuda")
    starting, whole = [], []
    for _ in range(20):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model.forward(token, cache, last_only=True)
        starting.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
        whole.append(time.perf_counter() - begin)
        cache.length = past
    rows.put(f"step behind {past}: Python starts it in", 1e3 * statistics.median(starting), "ms")
    rows.put(f"step behind {past}: until it is done", 1e3 * statistics.median(whole), "ms")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.forward(token, cache, last_only=True)
    times = []
    for _ in range(20):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    predicted = getattr(cost, "kernels", None) or getattr(cost, "decode", None)
    rows.put(f"step behind {past}: its kernels as a CUDA graph", statistics.median(times), "ms",
             1e3 / predicted if predicted else None)  # fmt: skip


if __name__ == "__main__":
    main()
