"""A tiny checkpoint in every layout of safetensors that is read, as parts by module: for walks over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from foreign_files import awq_gemm, awq_gemv, gptq, random_codes
from hf_checkpoints import CONFIG, linears, tiny_model, write
from test_bitsandbytes import EIGHT, FOUR, four_bits
from test_gptq_awq import section
from test_hqq_quanto import hqq, quanto
from test_modelopt import grouped
from test_modelopt import parts_of as modelopt
from test_torchao import KINDS
from test_torchao import parts_of as torchao
from torch import Tensor

from isobit.checkpoint import ctrender, linear
from isobit.formats.schemes import scheme
from isobit.quantizer.grid import quantize_weight

Parts = dict[str, Tensor]
MODULE = "model.layers.0.mlp.up_proj"  # [256, 128]
HALF = {"dtype": "float16"}


@dataclass(frozen=True)
class Tool:
    """A layout.

    Attributes:
        make: parts of a module, of N, K and a seed.
        config: what config.json has besides.
    """

    make: Callable[[int, int, int], Parts]
    config: dict[str, Any] = field(default_factory=dict)


def _said(method: dict[str, Any]) -> dict[str, Any]:
    return {"quantization_config": method}


def _int8(n: int, k: int, seed: int) -> Parts:
    made = torch.Generator().manual_seed(seed)
    return {"weight": torch.randint(-127, 128, (n, k), generator=made).to(torch.int8), "SCB": torch.full((n,), 0.1),
            "weight_format": torch.zeros((), dtype=torch.uint8)}  # fmt: skip


def _blocks(n: int, k: int, seed: int) -> Parts:
    made = torch.Generator().manual_seed(seed)
    scale = torch.rand(-(-n // 128), -(-k // 128), generator=made) * 1e-3
    return {"weight": torch.randn(n, k, generator=made).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def _rows(n: int, k: int, seed: int) -> Parts:
    made = torch.Generator().manual_seed(seed)
    scale = torch.rand(n, 1, generator=made) * 1e-3
    return {"weight": torch.randn(n, k, generator=made).to(torch.float8_e4m3fn), "weight_scale": scale}


def _ours(name: str) -> Tool:
    """What isobit and llm-compressor write."""
    row = scheme(name)
    spec = row.weights
    assert spec is not None

    def make(n: int, k: int, seed: int) -> Parts:
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
        dtype = torch.bfloat16 if spec.scale is None else torch.float32
        held = quantize_weight(weight, spec, search="absmax", scale_dtype=dtype)
        given = torch.tensor([0.03125]) if row.activations is not None and row.activations.calibrated else None
        found = linear.module_tensors("m", held, activations=row.activations, input_scale=given)
        return {name.removeprefix("m."): tensor for name, tensor in found.items()}

    modules = {module: row for module in linears()} | {"lm_head": None, "model.embed_tokens": None}
    return Tool(make, _said(ctrender.render(modules)))


def _modelopt(algorithm: str) -> Tool:
    said = _said(grouped(algorithm) | {"ignore": ["lm_h*"]})
    return Tool(lambda n, k, seed: modelopt(algorithm, n, k, seed)[0], said)


TOOLS: dict[str, Tool] = {
    "GPTQ": Tool(lambda n, k, seed: gptq(random_codes(n, k, 4, 32, symmetric=True, seed=seed), 4),
                 HALF | _said(section("gptq", sym=True))),
    "GPTQ 3 bits, act-order": Tool(
        lambda n, k, seed: gptq(random_codes(n, k, 3, 32, shuffled=True, seed=seed), 3, version=2),
        HALF | _said(section("gptq", bits=3, desc_act=True, checkpoint_format="gptq_v2"))),
    "AutoRound": Tool(
        lambda n, k, seed: gptq(random_codes(n, k, 8, 64, symmetric=True, seed=seed), 8, version=2, index=False),
        HALF | _said(section("auto-round", bits=8, group=64, sym=True, packing_format="auto_round"))),
    "AWQ": Tool(lambda n, k, seed: awq_gemm(random_codes(n, k, 4, 32, seed=seed)), HALF | _said(section("awq"))),
    "AWQ, gemv": Tool(lambda n, k, seed: awq_gemv(random_codes(n, k, 4, 32, seed=seed)),
                      HALF | _said(section("awq", version="gemv"))),
    "bitsandbytes, NF4": Tool(lambda n, k, seed: four_bits(n, k, seed=seed)[0], _said(FOUR)),
    "bitsandbytes, nested": Tool(lambda n, k, seed: four_bits(n, k, nested=True, seed=seed)[0], _said(FOUR)),
    "bitsandbytes, 8 bits": Tool(_int8, _said(EIGHT)),
    "HQQ": Tool(lambda n, k, seed: hqq(n, k, seed=seed)[0]),
    "HQQ, 3 bits by columns": Tool(lambda n, k, seed: hqq(n, k, 3, axis=0, seed=seed)[0]),
    "quanto, 8 bits": Tool(lambda n, k, seed: quanto(n, k, "qint8", seed=seed)[0]),
    "quanto, 4 bits": Tool(lambda n, k, seed: quanto(n, k, "qint4", seed=seed)[0]),
    "quanto, 2 bits": Tool(lambda n, k, seed: quanto(n, k, "qint2", seed=seed)[0]),
    **{f"torchao, {kind}": Tool(lambda n, k, seed, kind=kind: torchao(kind, n, k, seed)[0], _said(KINDS[kind][0]))
       for kind in ("int8wo", "float8dyn", "intx4")},
    **{f"ModelOpt, {name}": _modelopt(name) for name in (
        "FP8", "fp8_pb_wo", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ", "NVFP4", "MXFP4", "MXFP8")},
    "fp8 in blocks": Tool(_blocks, _said({"quant_method": "fp8", "weight_block_size": [128, 128],
                                          "modules_to_not_convert": ["lm_head"]})),
    "fbgemm": Tool(_rows, _said({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]})),
    **{f"compressed-tensors, {name}": _ours(name) for name in (
        "int4-g32", "int4-asym-g32", "int8", "fp8-static", "mxfp4-w16", "mxfp8", "nvfp4")},
}  # fmt: skip


@lru_cache
def made(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a model in a layout."""
    tool = TOOLS[name]
    dtype = torch.float16 if "dtype" in tool.config else torch.bfloat16
    config = CONFIG | {"num_hidden_layers": 1} | tool.config
    state = {name: tensor.to(dtype) for name, tensor in tiny_model(dtype, num_hidden_layers=1).state_dict().items()}
    for seed, module in enumerate(linears(config)):
        parts = tool.make(*state.pop(f"{module}.weight").shape, seed)
        state |= {f"{module}.{part}": tensor.clone().contiguous() for part, tensor in parts.items()}
    return config, state


def store(folder: Path, name: str, changes: Mapping[str, Tensor | None], **config: Any) -> Path:
    """A model in a layout, some of its tensors others, or none."""
    usual, tensors = made(name)
    found = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    return write(folder, usual | config, found)
