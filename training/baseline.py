"""Held-out perplexity of the model beside an interpolated Kneser-Ney trigram over the same tokens.

    python baseline.py --data corpus --model ../src/isobit/bundled/model --text corpus/heldout.txt

Prints a table and writes ``results.csv``. Each row of it names the tokens that model or trigram was trained on, scores
the same held-out tokens, and gives bits per byte of the held-out text as well, which no tokenizer can flatter.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

import numpy as np
import torch
from model import load, nll
from ngram import BITS, VOCAB, Floats, Ids, Trigram


def check_normalised(trigram: Trigram, contexts: Ids) -> None:
    """Refuse to report a baseline whose distributions do not sum to one."""
    for context in contexts:
        total = trigram.probabilities((int(context) << BITS) | np.arange(VOCAB)).sum()
        if not math.isclose(total, 1.0, rel_tol=1e-9):
            raise SystemExit(f"trigram probabilities after context {int(context)} sum to {total}")


def read(path: Path) -> Ids:
    return np.fromfile(path, dtype="<u2").astype(np.int64)


def measure(data: list[Path], folder: Path, run: Path, text_bytes: int, context: int) -> list[tuple[object, ...]]:
    heldout = read(data[0] / "heldout.bin")
    rows = []
    for source in data:
        train = read(source / "train.bin")
        trigram = Trigram(train)
        check_normalised(trigram, np.random.default_rng(0).integers(0, VOCAB * VOCAB, 20))
        check_normalised(trigram, trigram.third.contexts[:: len(trigram.third.contexts) // 20])
        name = "Kneser-Ney trigram" + (f" ({source.name})" if len(data) > 1 else "")
        rows.append(row(name, len(train), trigram.nll(heldout), text_bytes))
    with torch.inference_mode():
        losses = nll(load(folder), torch.from_numpy(heldout), context).double().numpy()
    seen = json.loads(run.read_text())["train_tokens"]
    return [*rows, row("bundled model", seen, losses, text_bytes)]


def row(name: str, trained_on: int, losses: Floats, text_bytes: int) -> tuple[object, ...]:
    mean = float(losses.mean())
    bits = float(losses.sum()) / math.log(2) / text_bytes
    return name, trained_on, len(losses), f"{mean:.4f}", f"{math.exp(mean):.3f}", f"{bits:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of token files; may repeat")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path(__file__).with_name("run.json"))
    parser.add_argument("--text", type=Path, required=True, help="the held-out text, for its size in bytes")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.csv"))
    given = parser.parse_args()
    rows = measure(given.data, given.model, given.run, given.text.stat().st_size, given.context)
    with given.out.open("w", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("model", "training_tokens", "scored_tokens", "nll", "perplexity", "bits_per_byte"))
        writer.writerows(rows)
    print(given.out.read_text())


if __name__ == "__main__":
    main()
