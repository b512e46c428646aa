"""Running a checkpoint and timing it: what cpu_decode.py and cpu_peers.py have in common.

    python benchmarks/runs.py FOLDER '{"rounds": 3}'     # measures one checkpoint, prints one line of JSON

A run is a process of its own, so that its memory is that of one checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import MatrixRate, ReadBandwidth, median, memory, seconds, settle, stop

from isobit.cli import openmp
from isobit.targets.cores import cores

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.models.cache.contiguous import ContiguousCache
    from isobit.models.decoder import Decoder


@dataclass(frozen=True)
class RunSettings:
    """How much is measured.

    Attributes:
        rounds: repetitions; figures are medians of them.
        prompt: tokens before decoding begins.
        tokens: tokens decoded, one at a time.
        prefill: tokens of the prompt whose processing is timed.
        buffer_bytes: what the read bandwidth is measured on.
        warm_up: run the prefill once untimed before, as llama-bench does.
    """

    rounds: int = 3
    prompt: int = 16
    tokens: int = 64
    prefill: int = 512
    buffer_bytes: int = 1 << 30
    warm_up: bool = False


PIECE = 16  # tokens between two measurements of the read bandwidth
QUICK = RunSettings(rounds=2, prompt=4, tokens=8, prefill=32, buffer_bytes=1 << 27)


def instruction_set(kernel: str) -> str:
    """Which instruction set a kernel uses on this machine; empty where it is not isobit's to choose."""
    if kernel != "cpu":
        return ""
    from isobit.kernels.cpu import library as cpu_library

    return cpu_library.isa()


def run(folder: Path, settings: RunSettings) -> dict[str, object]:
    """Measures a checkpoint in a process of its own; see :func:`measure` for what comes back."""
    command = [sys.executable, __file__, str(folder), json.dumps(asdict(settings))]
    environment = os.environ | openmp.settings(os.environ, cores())  # as isobit's commands run
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        stop(f"the run of {folder.name} failed with exit status {done.returncode}; what it said stands above")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, settings: RunSettings) -> dict[str, object]:
    """Loads a checkpoint and times it: seconds, bytes, tokens per second, shares of what the machine can do.

    The memory is taken before the read bandwidth gets its buffer. Each round of decoding is divided by the mean of
    measurements of the read bandwidth around and within it; each round of prefill is followed by three of
    PyTorch's float32 matrix product of the widest layer and is divided by the best of them.
    """
    import torch

    from isobit.checkpoint.reader import Checkpoint
    from isobit.models.weights import load_model

    torch.set_grad_enabled(False)
    ck = Checkpoint.open(folder)
    base = memory()
    begin = time.perf_counter()
    model = load_model(ck)
    loaded = time.perf_counter() - begin
    read(model, [0], model.new_cache(1, 1))
    ready = time.perf_counter() - begin
    kernels = sorted({linear.kernel.name for _, linear in model.linears()})
    found: dict[str, object] = {
        "kernel": "+".join(kernels),
        "isa": "".join(instruction_set(name) for name in kernels),
        "threads": torch.get_num_threads(),
        "checkpoint_bytes": ck.nbytes,
        "read_bytes": bytes_per_token(ck),
        "load_seconds": loaded,
        "ready_seconds": ready,
        "base_rss": base["rss"],
        "steady_rss": memory()["rss"],
        "cache_bytes": cache_bytes(model, settings.prefill),
    }
    found |= time_prefill(model, settings)
    return found | time_decode(model, settings, bytes_per_token(ck))


def bytes_per_token(ck: object) -> int:
    """Bytes of the checkpoint that decoding one token reads: everything but an embedding table of its own."""
    tied = ck.config.get("tie_word_embeddings", False)  # type: ignore[attr-defined]
    tensors = ck.tensors  # type: ignore[attr-defined]
    return sum(info.nbytes for name, info in tensors.items() if tied or not name.startswith("model.embed_tokens."))


def cache_bytes(model: Decoder, tokens: int) -> int:
    """Size of a key-value cache of so many tokens."""
    config = model.config
    return 2 * sum(one.attention.kv_heads * one.attention.dim for one in config.layers) * tokens * model.dtype.itemsize


def read(model: Decoder, tokens: Any, cache: ContiguousCache) -> Tensor:
    """Logits ``[vocab]`` behind more tokens of the sequence that a cache holds."""
    return model.forward(cache.next([tokens], wanted="last"), cache)[0]


def time_prefill(model: Decoder, settings: RunSettings) -> dict[str, object]:
    """Processes a prompt ``rounds`` times; also the peak of the memory so far."""
    import torch

    config = model.config
    ids = torch.randint(config.vocab_size, (settings.prefill,), generator=torch.Generator().manual_seed(1))
    head = config.vocab_size * config.hidden_size
    body = sum(linear.weight.shape[0] * linear.weight.shape[1] for _, linear in model.linears()) - head
    operations = 2.0 * (settings.prefill * body + head)
    times, shares, rates = [], [], []
    matrix, peak = None, 0
    if settings.warm_up:
        read(model, ids, model.new_cache(1, settings.prefill))
    for _ in range(settings.rounds):
        cache = model.new_cache(1, settings.prefill)
        times.append(seconds(lambda cache=cache: read(model, ids, cache)))  # type: ignore[misc]
        if matrix is None:
            peak = memory()["peak"]
            matrix = MatrixRate(settings.prefill, config.layers[0].mlp.size, config.hidden_size)
        rates.append(max(matrix() for _ in range(3)))
        shares.append(operations / times[-1] / rates[-1])
    return {
        "peak_rss": peak,
        "prefill_tok_s": settings.prefill / median(times),
        "prefill_flop_s": operations / median(times),
        "matrix_flop_s": median(rates),
        "share_of_matrix": median(shares),
    }


def time_decode(model: Decoder, settings: RunSettings, read_bytes: int) -> dict[str, object]:
    """Decodes greedily behind a short prompt, ``rounds`` times.

    The read bandwidth changes from second to second where others use the memory too, so a round is cut into pieces with
    a measurement of it before, between and behind them; the round's ceiling is their mean.
    """
    read = ReadBandwidth(settings.buffer_bytes)
    rates, shares, ceilings = [], [], []
    for _ in range(settings.rounds):
        found = [read()]
        spent = 0.0
        for took in decode_pieces(model, settings):
            spent += took
            found.append(read())
        rates.append(settings.tokens / spent)
        ceilings.append(sum(found) / len(found))
        shares.append(rates[-1] * read_bytes / ceilings[-1])
    return {
        "decode_tok_s": median(rates),
        "decode_gb_s": median(rates) * read_bytes / 1e9,
        "read_gb_s": median(ceilings) / 1e9,
        "share_of_read": median(shares),
    }


def decode_pieces(model: Decoder, settings: RunSettings) -> Iterator[float]:
    """Seconds of each piece of a round: steps of one token and the choice of the next, as ``generate`` makes it."""
    from isobit.engine.params import SamplingParams
    from isobit.engine.sampler import Chooser, sample

    choosers = [Chooser(SamplingParams(temperature=0))]
    cache = model.new_cache(1, settings.prompt + settings.tokens)
    prompt = [at % model.config.vocab_size for at in range(settings.prompt)]
    token = sample(choosers, read(model, prompt, cache)[None])[0].token
    for done in range(0, settings.tokens, PIECE):
        settle()
        begin = time.perf_counter()
        for _ in range(min(PIECE, settings.tokens - done)):
            token = sample(choosers, read(model, [token], cache)[None])[0].token
        yield time.perf_counter() - begin


if __name__ == "__main__":
    if len(sys.argv) != 3:
        stop("is run by cpu_decode.py and cpu_peers.py, as runs.py FOLDER SETTINGS")
    print(json.dumps(measure(Path(sys.argv[1]), RunSettings(**json.loads(sys.argv[2])))))
