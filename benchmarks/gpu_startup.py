"""How long a quantized model's kernels take to start on a GPU: compiling them, from Triton's cache, from a kernel pack.

    python benchmarks/gpu_startup.py [--schemes fp8,int4] [--out benchmarks/results/gpu_startup.csv]

Quantizes the bundled model and, in a fresh process per row, binds every linear layer on the card and runs each with 1,
8 and 64 tokens, which together need every kernel that generating needs. A row counts what Triton compiled and which
programs the process started (assemblers, C compilers); with a pack both must be 0. The process with the pack has an
empty cache and an empty PATH. Exits with 1 if a pack compiled, or if the numbers differ from those of other starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, provenance, save

TOKENS = (1, 8, 64)
REPEATS = 2


def child(checkpoint: str) -> None:
    """One start: prints what it took as JSON. Runs in a process of its own."""
    begin = time.monotonic()
    started: list[str] = []
    sys.addaudithook(lambda event, args: started.append(os.fsdecode(args[0])) if event == "subprocess.Popen" else None)
    import torch
    import triton

    from isobit.checkpoint.linear import read_linear
    from isobit.checkpoint.reader import Checkpoint
    from isobit.formats.qtensor import QTensor
    from isobit.kernels.gpu.bind import bind
    from isobit.models.archs import model_config
    from isobit.models.blueprint import expected_tensors

    compiled: list[str] = []

    def listen(**event: Any) -> None:
        if not event["cache_hit"]:
            compiled.append(event["metadata"]["name"])

    triton.knobs.compilation.listener = listen
    torch.zeros(1, device="cuda")
    imported = time.monotonic()
    ck = Checkpoint.open(Path(checkpoint))
    shapes = expected_tensors(model_config(ck.config))
    linears = []
    for name, shape in shapes.items():
        if len(shape) == 2:
            read = read_linear(ck, name.rpartition(".")[0])
            weight = read.weight
            weight = on_card(weight) if isinstance(weight, QTensor) else weight.to("cuda", torch.bfloat16)
            linears.append(bind(weight, read.activations, read.input_scale, read.bias))
    torch.cuda.synchronize()
    loaded, digest = time.monotonic(), 0.0
    for tokens in TOKENS:
        for linear in linears:
            x = torch.linspace(-2, 2, tokens * linear.held.k, device="cuda").view(tokens, linear.held.k).bfloat16()
            digest += float(linear(x).double().abs().sum())
    torch.cuda.synchronize()
    done = time.monotonic()
    print(json.dumps({
        "imports_s": imported - begin, "weights_s": loaded - imported, "first_calls_s": done - loaded,
        "compiled": len(compiled), "programs": sorted({Path(one).name for one in started}),
        "programs_started": len(started), "digest": digest, "linears": len(linears),
    }))  # fmt: skip


def on_card(weight: Any) -> Any:
    """A quantized weight in the card's memory."""
    from dataclasses import replace

    zero = None if weight.zero is None else weight.zero.cuda()
    return replace(weight, codes=weight.codes.cuda(), scale=weight.scale.cuda(), zero=zero)


def start(checkpoint: Path, cache: Path, pack: Path | None) -> dict[str, Any]:
    """The measurements of one fresh process, the whole of it from outside included."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("ISOBIT_PACK", None)
    if pack is not None:
        environment |= {"ISOBIT_PACK": str(pack), "PATH": ""}
    begin = time.monotonic()
    command = [sys.executable, __file__, "--child", str(checkpoint)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_s": time.monotonic() - begin}


def measure(scheme: str, work: Path, target: str) -> tuple[list[dict[str, object]], bool]:
    """Rows of one scheme, and whether the pack compiled nothing and computed the same."""
    from isobit import api
    from isobit.cli.main import main

    checkpoint, pack = work / scheme, work / f"{scheme}-pack"
    api.quantize("bundled", checkpoint, scheme, progress=False)
    begin = time.monotonic()
    if main(["compile", str(checkpoint), "--target", target, "-o", str(pack)]):
        raise SystemExit("making the pack failed")
    made = time.monotonic() - begin
    rows: list[dict[str, object]] = []
    digests = set()
    for how in ("compiling", "triton cache", "kernel pack"):
        for _ in range(REPEATS):
            cold = how != "triton cache"
            cache = Path(tempfile.mkdtemp(dir=work)) if cold else work / f"{scheme}-cache"
            if not cold and not cache.exists():
                start(checkpoint, cache, None)
            found = start(checkpoint, cache, pack if how == "kernel pack" else None)
            digests.add(found.pop("digest"))
            programs = " ".join(found.pop("programs"))
            seconds = {name: round(value, 3) for name, value in found.items() if name.endswith("_s")}
            rows.append({"scheme": scheme, "target": target, "start": how, **found, **seconds, "programs": programs})
            print(rows[-1], flush=True)
    rows[-1]["pack_made_s"] = round(made, 2)
    packs = [row for row in rows if row["start"] == "kernel pack"]
    clean = all(row["compiled"] == 0 and row["programs_started"] == 0 for row in packs)
    if len(digests) != 1:
        print(f"{scheme}: the results differ between starts: {digests}")
    return rows, clean and len(digests) == 1


def run() -> int:
    """Measures every scheme."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--schemes", default="fp8,int4")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_startup.csv")
    parser.add_argument("--child", metavar="CHECKPOINT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return 0
    import torch
    import triton

    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU")
    major, minor = torch.cuda.get_device_capability()
    about = {**provenance(), "gpu": torch.cuda.get_device_name(), "triton": triton.__version__}
    rows, good = [], True
    with tempfile.TemporaryDirectory(prefix="isobit-startup-") as folder:
        for scheme in args.schemes.split(","):
            found, clean = measure(scheme, Path(folder), f"sm_{major}{minor}")
            rows += [{**about, "pack_made_s": "", **row} for row in found]
            good = good and clean
    save(rows, args.out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(run())
