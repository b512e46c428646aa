"""Draw loss.png from loss.csv."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", type=Path, default=HERE / "loss.csv")
    given = parser.parse_args()
    with given.curve.open() as table:
        rows = list(csv.DictReader(table))
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot([int(r["tokens"]) / 1e6 for r in rows], [float(r["loss"]) for r in rows], linewidth=1)
    axes.set(xlabel="training tokens (millions)", ylabel="training loss (nats per token)")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(given.curve.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
