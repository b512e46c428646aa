"""Checkpoints with damaged tensors, seeded: they run, or are refused by an error of isobit's; never anything else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import walked
from running import run
from safetensors.torch import load_file, save_file
from torch import Tensor

from isobit.errors import IsobitError
from isobit.evaluation import info
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.models.archs import ARCHS, family, model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.planning import plans
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

ROUNDS = 25  # of each family; thousands were run when this was written, also under AddressSanitizer
SCHEMES = ("int4-g32", "int4-asym-g8", "fp8", "int3-g32", "int8-w8a16")
DTYPES = (torch.float64, torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
PARTS = ("bias", "weight_scale", "weight_shape", "weight_zero_point", "weight_packed", "input_scale", "k_scale")


def bases(folder: Path, architecture: str) -> list[Path]:
    """A small model, plain and in some schemes."""
    sizes = family(ARCHS[architecture]).tiny()
    by_layer = {
        key for key, value in sizes.items() if isinstance(value, list) and key.endswith(("layer_types", "_layers"))
    }
    sizes |= {key: sizes[key][:1] for key in by_layer}
    heads = {} if "kv_lora_rank" in sizes else {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = sizes | heads | {
        "architectures": [architecture], "hidden_size": 64, "intermediate_size": 96, "vocab_size": 40,
        "num_hidden_layers": 1, "dtype": "bfloat16",
    }  # fmt: skip
    if "rotary_dim" in config:
        config["rotary_dim"] = 8
    rope = config.get("rope_parameters", {})
    for name in ("short_factor", "long_factor"):  # one for each pair of these narrower heads
        if name in rope:
            rope[name] = rope[name][: int(16 * rope.get("partial_rotary_factor", 1.0)) // 2]
    (folder / "plain").mkdir()
    (folder / "plain/config.json").write_text(json.dumps(config))
    shapes = expected_tensors(model_config(config))
    tensors = {name: (torch.rand(shape) - 0.4).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, folder / "plain/model.safetensors", {"format": "pt"})
    for name in SCHEMES:
        quantize(folder / "plain", folder / name, Policy(scheme(name)), progress=False)
    return [folder / name for name in ("plain", *SCHEMES)]


def damaged(tensor: Tensor, chance: random.Random) -> Tensor:
    """Another shape, another dtype, other numbers or other bits."""
    what, found = chance.choice(("dtype", "flat", "cut", "longer", "scalar", "axis", "number", "bits")), tensor.clone()
    if what == "dtype":
        return found.to(chance.choice(DTYPES))
    if what in ("flat", "scalar", "axis") or not found.dim() or not found.numel():
        return {"flat": found.reshape(-1), "axis": found[None]}.get(what, found.reshape(-1)[:1].reshape(-1))
    if what in ("cut", "longer"):
        return found[:-1].clone() if what == "cut" else torch.cat([found, found[:1]])
    if what == "number" and found.dtype in (torch.bfloat16, torch.float32):
        found.view(-1)[chance.randrange(found.numel())] = chance.choice((float("nan"), float("inf"), -3.0, 0.0))
        return found
    data = found.view(-1).view(torch.uint8)
    data[chance.randrange(data.numel())] = chance.randrange(256)
    return found


def spoiled(tensors: dict[str, Tensor], config: dict[str, Any], chance: random.Random) -> None:
    """One thing wrong with a checkpoint."""
    name, kind = chance.choice(list(tensors)), chance.random()
    if kind < 0.75:
        tensors[name] = damaged(tensors[name], chance)
    elif kind < 0.85:
        del tensors[name]
    elif kind < 0.95:
        other = chance.choice((f"{name.rpartition('.')[0]}.{chance.choice(PARTS)}", "lm_head.weight", f"model.{name}"))
        tensors[other] = damaged(tensors[chance.choice(list(tensors))], chance)
    else:
        config["tie_word_embeddings"] = chance.random() < 0.5


@pytest.mark.parametrize("architecture", walked())
@torch.inference_mode()
def test_damaged_tensors_are_run_or_refused(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    chance, folders, outcomes = random.Random(architecture), bases(tmp_path, architecture), set()
    for number in range(ROUNDS):
        base, folder = chance.choice(folders), tmp_path / f"damaged{number}"
        tensors, config = load_file(base / "model.safetensors"), json.loads((base / "config.json").read_text())
        for _ in range(chance.choice((1, 1, 2, 4))):
            spoiled(tensors, config, chance)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        if number % 2:
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        acts: tuple[Callable[[], object], ...] = (
            lambda folder=folder: run(load_model(folder), torch.tensor([[1, 2, 3]])),
            lambda folder=folder: info.text(info.describe(folder), tensors=True),
            lambda folder=folder: plans(folder, targets=["cpu-avx2"]),
            lambda folder=folder: quantize(
                folder, tmp_path / folder.name / "out", Policy(scheme("int8")), progress=False
            ),
        )
        for act in acts:
            try:
                act()
                outcomes.add("ran")
            except IsobitError as error:
                assert len(str(error)) < 4000
                outcomes.add("refused")
    assert outcomes == {"ran", "refused"}
