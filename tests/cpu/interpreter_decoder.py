"""A whole decoder on the GPU kernels in Triton's interpreter, beside the CPU's: prints one result a line.

Run with TRITON_INTERPRET=1 and a folder that holds checkpoints named after their schemes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from running import run

from isobit.models.decoder import Decoder
from isobit.models.weights import load_model

LOWERING = "sm_86"
DTYPES = {"int4": "float16", "fp8": "float32"}  # what is fast in the interpreter


@torch.inference_mode()
def logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Of a prefill and of one token behind it."""
    cache = model.new_cache(1, ids.shape[1])
    return torch.cat([run(model, ids[:, :-1], cache), run(model, ids[:, -1:], cache)], 1)


def main(folder: Path) -> None:
    ids = torch.tensor([[5, 17, 250]])
    for checkpoint in sorted(folder.iterdir()):
        wanted = logits(load_model(checkpoint), ids)
        model = load_model(checkpoint, device="cuda", lowering=LOWERING, dtype=DTYPES[checkpoint.name])
        kernels = sorted({linear.kernel.name for _, linear in model.linears()})
        apart = float((logits(model, ids) - wanted).norm() / wanted.norm())
        print(json.dumps([checkpoint.name, apart, kernels]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
