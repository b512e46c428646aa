"""The bundled model in every scheme on every path: how far their answers are apart (issue: KL at most 1e-4).

    python benchmarks/gpu_paths.py [--paths cpu,reference,sm_90,sm_89,sm_86,sm_75] [--schemes fp8,int4] [--tokens 2048]

A path is ``cpu`` (the C++ kernels), ``reference`` (plain PyTorch), or a GPU target, whose lowering runs on the card at
hand. Activations between layers are float32 on all (``--dtype`` for others), so that the paths differ in the order of
sums alone. Windows of 256 held-out tokens; KL is the mean over tokens of the divergence between two paths' next-token
distributions. Greedy tokens may differ only where the two best logits are nearer than ``--rounding``. Writes a CSV and
prints the table for docs/numerics.md; exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from pathlib import Path

import torch
from common import RESULTS, provenance, save

from isobit.bundled import heldout_path, model_path
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import IsobitError
from isobit.formats.rules import Policy
from isobit.formats.schemes import SCHEMES, scheme
from isobit.models.batch import Batch
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

WINDOW, BATCH = 256, 4
BAR = 1e-4  # mean KL in nats
PATHS = ("cpu", "reference", "sm_90", "sm_89", "sm_86", "sm_75")


def windows(tokens: int) -> torch.Tensor:
    """Held-out token ids ``[windows, WINDOW]``."""
    ids = Tokenizer.from_folder(model_path()).encode(Path(heldout_path()).read_text(encoding="utf-8"))
    count = max(1, tokens // WINDOW)
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


@torch.inference_mode()
def logits(folder: Path, path: str, ids: torch.Tensor, dtype: str) -> torch.Tensor:
    """float32 ``[windows * WINDOW, vocab]`` on the CPU."""
    os.environ.pop("ISOBIT_KERNEL", None)
    if path in ("cpu", "reference"):
        os.environ["ISOBIT_KERNEL"] = path
        model = load_model(folder, dtype=dtype)
    else:
        model = load_model(folder, dtype=dtype, device="cuda", lowering=path)
    os.environ.pop("ISOBIT_KERNEL", None)
    return torch.cat(
        [model.forward(Batch.of(list(part), device=model.place.tensors)).float().cpu() for part in ids.split(BATCH)]
    )


def compare(one: torch.Tensor, other: torch.Tensor, rounding: float) -> dict[str, float]:
    """Divergences of two paths, in nats, and how often their greedy tokens differ, with and without near ties."""
    p, q = (part.double().log_softmax(-1) for part in (one, other))
    kl = (p.exp() * (p - q)).sum(-1)
    best = one.topk(2, dim=-1).values
    differ = one.argmax(-1) != other.argmax(-1)
    clear = best[:, 0] - best[:, 1] > rounding
    return {
        "kl_mean": float(kl.mean()), "kl_max": float(kl.max()), "greedy_differ": int(differ.sum()),
        "greedy_differ_clearly": int((differ & clear).sum()), "tokens": len(kl),
        "logits_apart": float((one - other).norm() / one.norm()),
    }  # fmt: skip


def measure(name: str, paths: list[str], ids: torch.Tensor, dtype: str, rounding: float) -> list[dict[str, object]]:
    """Rows of every pair of paths under one scheme."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(model_path())
        if SCHEMES[name].quantized:
            folder = Path(work, name)
            quantize(Path(model_path()), folder, Policy(scheme(name)), progress=False)
        found: dict[str, torch.Tensor] = {}
        for path in paths:
            try:
                found[path] = logits(folder, path, ids, dtype)
            except IsobitError as refused:
                print(f"{name} on {path}: {str(refused).splitlines()[0]}", flush=True)
    rows: list[dict[str, object]] = []
    for one, other in itertools.combinations(found, 2):
        result = compare(found[one], found[other], rounding)
        rows.append({**provenance(), "device": card(), "scheme": name, "dtype": dtype, "one": one, "other": other}
                    | {key: f"{value:.4g}" for key, value in result.items()})  # fmt: skip
    return rows


def card() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def table(rows: list[dict[str, object]]) -> str:
    """The worst pair of each scheme, as Markdown."""
    lines = ["| scheme | paths | worst pair | mean KL | largest KL | greedy tokens that differ (clearly) |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in dict.fromkeys(row["scheme"] for row in rows):
        mine = [row for row in rows if row["scheme"] == name]
        worst = max(mine, key=lambda row: float(str(row["kl_mean"])))
        paths = ", ".join(dict.fromkeys(str(row[side]) for row in mine for side in ("one", "other")))
        greedy = max(int(float(str(row["greedy_differ"]))) for row in mine)
        clearly = max(int(float(str(row["greedy_differ_clearly"]))) for row in mine)
        lines.append(f"| {name} | {paths} | {worst['one']}, {worst['other']} | {worst['kl_mean']} | {worst['kl_max']} |"
                     f" {greedy} ({clearly}) of {worst['tokens']} |")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", default=",".join(PATHS))
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--rounding", type=float, default=0.05, help="nearness of logits within which tokens may differ"
    )
    parser.add_argument("--out", default=str(RESULTS / "gpu_paths.csv"))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    ids, rows = windows(options.tokens), []
    for name in options.schemes.split(","):
        rows += measure(name, options.paths.split(","), ids, options.dtype, options.rounding)
    save(rows, Path(options.out))
    print(table(rows))
    missed = [row for row in rows if float(str(row["kl_mean"])) > BAR or float(str(row["greedy_differ_clearly"])) > 0]
    print(f"{len(rows)} pairs, {len(missed)} beyond a mean KL of {BAR:g} or with tokens that differ clearly")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
