"""`isobit eval` and calibration on the GPU kernels in Triton's interpreter: prints one JSON document.

Run with TRITON_INTERPRET=1, a source, a checkpoint made of it, a text and a folder to write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import isobit
from isobit import api
from isobit.checkpoint.linear import read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.cli.main import main as command_line

PLACE = {"device": "cuda", "target": "sm_86"}


def scale_of(folder: Path) -> float:
    """The static activation scale of the last linear of the first layer."""
    found = read_linear(Checkpoint.open(folder), "model.layers.0.mlp.down_proj").input_scale
    assert found is not None
    return float(found)


def main(source: Path, quantized: Path, text: Path, out: Path) -> None:
    found = {}
    for name, place in (("cpu", {}), ("cuda", PLACE)):
        report = api.quantize(source, out / name, "fp8-static", calibration=text, progress=False, **place)  # type: ignore[arg-type]
        measured = isobit.evaluate(quantized, source, text=text, ctx=16, tokens=15, **place)
        assert measured.fidelity is not None
        found[name] = {
            "scale": scale_of(out / name),
            "notes": [note for note in report.notes if "calibrated" in note],
            "perplexity": measured.fidelity.perplexity.value,
            "kl": measured.fidelity.kl_mean.value,
            "hardware": measured.method.hardware,
            "versions": [package for package, _ in measured.method.versions],
            "said": str(measured),
        }
    print(json.dumps(found), flush=True)
    words = ["eval", source, "--text", text, "--ctx", 8, "--tokens", 7, "--device", "cuda", "--target", "sm_86"]
    assert command_line([*map(str, words), "-q", "--json"]) == 0


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
