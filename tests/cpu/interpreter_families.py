"""Tiny models of many families on the GPU kernels in Triton's interpreter, beside the CPU's: prints one result a line.

Run with TRITON_INTERPRET=1, a folder, and the architectures that are wanted. Dense ones are float32; mixtures of
experts have no kernels of plain float32 weights and are float16, rounded to that for both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from families import make_model, save
from running import run
from test_mxfp4_experts import SAID, tensors_and_model, write

from isobit.models.decoder import Decoder
from isobit.models.feed_forward import Experts
from isobit.models.weights import load_model

LOWERING = "sm_86"
MXFP4 = "gpt-oss in MXFP4"


def gpt_oss_in_mxfp4(folder: Path) -> Path:
    """As it is published, but what is not quantized in float16."""
    tensors, model = tensors_and_model()
    tensors = {name: part.half() if part.is_floating_point() else part for name, part in tensors.items()}
    config = {**model.config.to_dict(), "quantization_config": SAID, "dtype": "float16"}
    return write(folder, tensors, config)


@torch.inference_mode()
def logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Of a prefill and of one token behind it."""
    cache = model.new_cache(1, ids.shape[1])
    return torch.cat([run(model, ids[:, :-1], cache), run(model, ids[:, -1:], cache)], 1)


def main(folder: Path, architectures: list[str]) -> None:
    ids = torch.randint(0, 320, (1, 12), generator=torch.Generator().manual_seed(3))
    for name in architectures:
        where = gpt_oss_in_mxfp4(folder / name) if name == MXFP4 else save(make_model(name).half(), folder / name)
        law = load_model(where)
        mixed = any(isinstance(layer.mlp, Experts) for layer in law.config.layers)
        model = load_model(where, device="cuda", lowering=LOWERING, dtype="float16" if mixed else "float32")
        found, wanted = logits(model, ids), logits(law, ids)
        apart = float((found - wanted).norm() / wanted.norm())
        print(json.dumps([name, "float16" if mixed else "float32", model.layer_ops.name, apart]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
