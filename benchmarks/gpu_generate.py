"""What generating takes on a GPU, beside what `isobit plan` says: loading, prompts by chunk size, one token at a time.

    python benchmarks/gpu_generate.py --work /dev/shm/isobit [--schemes bf16,fp8,int4] [--shape 7b]

Makes a checkpoint of random weights, quantizes it, loads it on the card and runs it through the engine, as
``isobit generate --device cuda`` does; each scheme in a process of its own. The profile says how much of the time on
the card goes to linears (with rounding and widening), to attention, and to all that is beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, provenance, save, stop
from shapes import SHAPES, Recipe, make

from isobit.engine.blocks import blocks_for
from isobit.engine.generate import load_llm
from isobit.engine.gpu_runner import runner_for
from isobit.engine.params import SamplingParams
from isobit.engine.request import Part, Schedule
from isobit.engine.runner import ModelRunner
from isobit.models.batch import lay_out
from isobit.models.cache.paged import BLOCK
from isobit.models.planning import plans
from isobit.targets.prefill import prefill_chunk

CHUNKS = (512, 1024, 2048, 4096)
PROMPT, ANSWER = 128, 128
_KINDS = (("attention", "fmha|flash|attention|sdpa"), ("linears", "^linear_|^quantize_|^widen_|^fold_|^narrow_|gemm|"
          "cutlass|nvjet|xmma|gemv|splitK"))  # fmt: skip


def main() -> None:
    """Measure and append to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints, which are left there")
    parser.add_argument("--shape", default="7b", choices=tuple(SHAPES))
    parser.add_argument("--schemes", default="bf16,fp8,int4")
    parser.add_argument("--chunks", default=",".join(map(str, CHUNKS)), help="tokens of a prompt run at once")
    parser.add_argument("--make", action="store_true", help="make the checkpoints and measure nothing")
    parser.add_argument("--csv", type=Path, default=RESULTS / "gpu_generate.csv")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        chunks = [int(part) for part in options.chunks.split(",")]
        print(json.dumps(measure(options.child, options.shape, options.schemes, chunks)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    for scheme in options.schemes.split(","):
        folder = make(options.work, Recipe(options.shape, scheme))
        write_tokenizer(folder, SHAPES[options.shape].vocab)
        if options.make:
            continue
        command = [sys.executable, __file__, "--work", str(options.work), "--child", str(folder), "--shape",
                   options.shape, "--schemes", scheme, "--chunks", options.chunks]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            stop(f"{folder.name} failed with exit status {done.returncode}")
        rows = json.loads(done.stdout.splitlines()[-1])
        for row in rows:
            print(*row.values(), flush=True)
        save([provenance() | row for row in rows], options.csv)


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A tokenizer of as many words: ids alone matter here, and that they become text as those of models do."""
    words = {f"\u2581w{index}": index for index in range(vocab)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "\u2581w0"}
    spaces = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    body = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": spaces, "post_processor": None, "decoder": spaces, "model": model}  # fmt: skip
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
    """Figures of one checkpoint; bytes are those of PyTorch's allocator unless it says otherwise."""
    before = in_use()
    rows = Rows(device=torch.cuda.get_device_name(), shape=shape, scheme=scheme)
    context, vocab = SHAPES[shape].context, SHAPES[shape].vocab
    plan = planned(folder, scheme, context)
    begin = time.perf_counter()
    llm = load_llm(folder, device="cuda", prefix_cache=False)
    torch.cuda.synchronize()
    rows.put("loading", time.perf_counter() - begin, "s")
    rows.put("weights", torch.cuda.memory_allocated() / 2**20, "MiB", plan.memory.weights / 2**20)
    ids = [(7 * i) % (vocab - 1) + 1 for i in range(context)]
    llm.generate([ids[: context - 16]], SamplingParams(max_tokens=16, ignore_eos=True))
    rows.put("the whole process on the card", (taken() - before) / 2**20, "MiB", plan.memory.total / 2**20)
    near = planned(folder, scheme, PROMPT + ANSWER)
    answer = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    answers = [llm.generate([ids[:PROMPT]], answer)[0] for _ in range(4)]
    speed = statistics.median(answer.timings.tokens_per_second or 0.0 for answer in answers[1:])
    rows.put(f"decoding {ANSWER} tokens behind {PROMPT}", speed, "tokens/s", near.cost.decode)
    runner = runner_for(llm.model, 1)
    runner.reserve(*[blocks_for(context, BLOCK)] * 2)
    usual = prefill_chunk(llm.model.place.target, llm.model.config.hidden_size)
    for chunk in chunks:
        prompts(rows, runner, ids, chunk, plan if chunk == usual else None)
    for past, cost in ((PROMPT + ANSWER // 2, near.cost), (context - 64, plan.cost)):
        steps(rows, runner, ids, past, cost)
    profile(rows, f"prompt of {context}", lambda: feed(runner, ids, usual))
    return rows


def planned(folder: Path, scheme: str, context: int) -> Any:
    names = (scheme,) if scheme in ("bf16", "f16") else ()
    return plans(folder, targets=["here"], scheme_names=names, context=context)[1][0][0]


def in_use() -> int:
    """Bytes of the card that others use; asks nothing of this process, which has no context there yet."""
    line = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(line, capture_output=True, text=True, check=True).stdout) << 20


def taken() -> int:
    """Bytes of the card that are not free."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def part(ids: Sequence[int], first: int, count: int) -> Part:
    """Tokens of a sequence that has the first blocks of the cache."""
    end = first + count
    return Part(1, first, tuple(ids[first:end]), tuple(range(blocks_for(end, BLOCK))), chooses=end == len(ids))


def feed(runner: ModelRunner, ids: Sequence[int], chunk: int) -> torch.Tensor:
    """Logits behind a prompt that is fed in pieces."""
    logits = None
    for first in range(0, len(ids), chunk):
        logits = runner.run(Schedule((part(ids, first, min(chunk, len(ids) - first)),), BLOCK))
    assert logits is not None
    return logits


def prompts(rows: Rows, runner: ModelRunner, ids: list[int], chunk: int, plan: Any) -> None:
    """Tokens per second of a prompt, and what it takes beside weights and cache."""
    what, times = f"prompt of {len(ids)}, {chunk} at once", []
    for _ in range(4):
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        feed(runner, ids, chunk).cpu()
        times.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() - held
    speed = len(ids) / statistics.median(times[1:])
    rows.put(what, speed, "tokens/s", plan.cost.prefill if plan else None)
    rows.put(
        f"{what}: beside weights and cache", peak / 2**20, "MiB", plan.memory.activations / 2**20 if plan else None
    )


def steps(rows: Rows, runner: ModelRunner, ids: list[int], past: int, cost: Any) -> None:
    """One token behind ``past`` others: as a graph, and with Python starting each kernel."""
    feed(runner, ids[:past], prefill_chunk(runner.model.place.target, runner.model.config.hidden_size))
    step = Schedule((part(ids[: past + 1], past, 1),), BLOCK)
    plain, cache = step.parts[0], runner._cache
    single, times = [], []
    for _ in range(12):
        begin = time.perf_counter()
        batch = lay_out([plain.tokens], [past], [plain.blocks], BLOCK, wanted="last", device=runner.model.place.tensors)
        runner.model.forward(batch, cache).cpu()
        single.append(time.perf_counter() - begin)
    for _ in range(24):
        begin = time.perf_counter()
        runner.run(step).cpu()
        times.append(time.perf_counter() - begin)
    predicted = 1e3 / cost.decode if cost else None
    rows.put(f"step behind {past}, as a graph", 1e3 * statistics.median(times[2:]), "ms", predicted)
    rows.put(f"step behind {past}, kernel by kernel", 1e3 * statistics.median(single[2:]), "ms")
    profile(rows, f"step behind {past}", lambda: runner.run(step))


def profile(rows: Rows, what: str, run: Any) -> None:
    """Milliseconds on the card by kind of kernel, and how many kernels."""
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as found:
        run()
        torch.cuda.synchronize()
    spent, count, others = {"linears": 0.0, "attention": 0.0, "beside": 0.0}, 0, {}
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kind = next((kind for kind, names in _KINDS if re.search(names, event.name)), "beside")
            spent[kind] += event.device_time / 1e3
            count += 1
            if kind == "beside":
                others[event.name[:70]] = others.get(event.name[:70], 0.0) + event.device_time / 1e3
    for kind, ms in spent.items():
        rows.put(f"{what}: {kind}, on the card", ms, "ms")
    rows.put(f"{what}: kernels", count, "")
    print(what, sorted(((round(ms, 2), name) for name, ms in others.items()), reverse=True)[:8], file=sys.stderr)


if __name__ == "__main__":
    main()
