"""Train the bundled model for a given number of minutes on token files of ``tokenizer.py encode``.

    python train.py --data corpus --minutes 9 --out out

On a GPU the whole token file sits in device memory and the step is compiled. The learning rate follows the clock, not a
step count, so that the run always ends in time with the rate decayed to zero. Writes ``model.safetensors``,
``config.json``, ``loss.csv`` and ``run.json`` (what was run, tokens seen, held-out perplexity) into ``--out``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import Llama, Shape, load, nll, save
from torch import Tensor


def read_tokens(path: Path, device: str) -> Tensor:
    """Token ids of a file as int16 (length,): ids stay below 4096, and int16 is what every device indexes."""
    return torch.from_numpy(np.fromfile(path, dtype="<u2").astype(np.int16)).to(device)


class Batches:
    """Packed sequences in a random order without repetition; a new offset and order in each epoch."""

    def __init__(self, tokens: Tensor, length: int, batch: int, seed: int) -> None:
        self.tokens, self.length, self.batch = tokens, length, batch
        self.random = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.epochs = 0

    def next(self) -> tuple[Tensor, Tensor]:
        if len(self.order) < self.batch:
            offset = int(torch.randint(self.length, (1,), generator=self.random))
            starts = torch.arange(offset, len(self.tokens) - self.length - 1, self.length)
            self.order = starts[torch.randperm(len(starts), generator=self.random)]
            self.epochs += 1
        starts, self.order = self.order[: self.batch], self.order[self.batch :]
        columns = torch.arange(self.length + 1)
        rows = self.tokens[(starts[:, None] + columns).to(self.tokens.device)].long()
        return rows[:, :-1], rows[:, 1:]


def optimizer_of(model: Llama, lr: float, decay: float) -> torch.optim.Optimizer:
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean in float32 over all positions: logits (batch, length, vocabulary), targets (positions,)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets)


def rate(step: int, elapsed: float, warmup: int, decay_from: float) -> float:
    """Share of the peak learning rate: linear warm-up by steps, then constant, then linear to zero by the clock."""
    return min(1.0, (step + 1) / warmup, max(0.0, (1 - elapsed) / (1 - decay_from)))


def train(given: argparse.Namespace) -> None:
    device = given.device
    torch.manual_seed(given.seed)
    torch.set_float32_matmul_precision("high")
    model = load(given.init) if given.init else Llama(Shape())
    model = model.to(device)
    run, loss_of = (torch.compile(f) if given.compile else f for f in (model, cross_entropy))
    batches = Batches(read_tokens(given.data / "train.bin", device), given.length, given.batch, given.seed)
    optimizer = optimizer_of(model, given.lr, given.weight_decay)
    given.out.mkdir(parents=True, exist_ok=True)
    curve: list[tuple[int, int, float, float]] = []
    recent, step, start = torch.zeros((), device=device), 0, time.perf_counter()
    while (elapsed := (time.perf_counter() - start) / (60 * given.minutes)) < 1 and step < given.steps:
        lr = given.lr * rate(step, elapsed, given.warmup, given.decay_from)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for _ in range(given.accumulate):
            ids, targets = batches.next()
            with torch.autocast(device, dtype=torch.bfloat16):
                logits = run(ids)
            loss = loss_of(logits, targets.flatten()) / given.accumulate
            recent += loss.detach()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % given.log_every == 0:
            tokens = step * given.accumulate * given.batch * given.length
            curve.append((step, tokens, lr, float(recent) / given.log_every))
            recent.zero_()
            speed = tokens / (time.perf_counter() - start)
            print(f"step {step} tokens {tokens} lr {lr:.2e} loss {curve[-1][3]:.4f} tok/s {speed:.0f}", flush=True)
    save(model, given.out)
    write_results(given, model, curve, step, batches.epochs, time.perf_counter() - start)


def write_results(
    given: argparse.Namespace,
    model: Llama,
    curve: list[tuple[int, int, float, float]],
    steps: int,
    epochs: int,
    seconds: float,
) -> None:
    with (given.out / "loss.csv").open("w", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("step", "tokens", "learning_rate", "loss"))
        writer.writerows((s, t, f"{lr:.3e}", f"{loss:.4f}") for s, t, lr, loss in curve)
    heldout = read_tokens(given.data / "heldout.bin", given.device).long()[: given.eval_tokens]
    with torch.inference_mode():
        mean = float(nll(model, heldout).mean())
    record = {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "seconds": round(seconds),
        "steps": steps,
        "tokens_seen": steps * given.accumulate * given.batch * given.length,
        "train_tokens": (given.data / "train.bin").stat().st_size // 2,
        "epochs_begun": epochs,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items() if k != "out"},
        "heldout_tokens": len(heldout),
        "heldout_nll": mean,
        "heldout_perplexity": math.exp(mean),
    }
    (given.out / "run.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder of train.bin and heldout.bin")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="continue from this checkpoint folder")
    parser.add_argument("--minutes", type=float, default=9.0, help="training time; compilation counts")
    parser.add_argument("--steps", type=int, default=1_000_000, help="end earlier, after this many steps")
    parser.add_argument("--length", type=int, default=1024, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=64, help="sequences per micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches per step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--decay-from", type=float, default=0.5, help="share of the time at which the rate starts down")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-tokens", type=int, help="held-out tokens measured at the end; all unless given")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    train(parser.parse_args())


if __name__ == "__main__":
    main()
