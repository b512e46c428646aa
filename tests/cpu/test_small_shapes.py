"""Whatever quantizes loads: every scheme on matrices of a few rows and columns, and on whole models of such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_checkpoints import CONFIG, write
from running import run
from safetensors.torch import save_file

from isobit.checkpoint import ctrender
from isobit.checkpoint.linear import module_tensors, read_linear
from isobit.checkpoint.reader import Checkpoint
from isobit.errors import SchemeError
from isobit.formats.fitting import check_shape
from isobit.formats.qtensor import QTensor
from isobit.formats.rules import Policy
from isobit.formats.schemes import GROUPED, SCHEMES, scheme
from isobit.kernels import backends, reference
from isobit.models.archs import model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize
from isobit.quantizer.grid import quantize_weight

NAMES = [name for name, row in SCHEMES.items() if row.quantized] + [f"{name}-g8" for name in GROUPED]
ROWS, COLUMNS = (1, 2, 7, 8, 9, 17), (1, 3, 8, 24, 31, 40, 128, 256)


def shapes(name: str) -> list[tuple[int, int]]:
    """The shapes that a scheme takes."""
    row, found = scheme(name), []
    assert row.weights is not None
    for n, k in ((n, k) for n in ROWS for k in COLUMNS):
        try:
            check_shape(row.weights, n, k, "m", row.activations)
            found.append((n, k))
        except SchemeError:
            continue
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_and_runs(tmp_path: Path, name: str) -> None:
    row, generator = scheme(name), torch.Generator().manual_seed(0)
    assert row.weights is not None
    held: dict[str, QTensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for number, (n, k) in enumerate(shapes(name)):
        module = f"model.layers.{number}.mlp.up_proj"
        weight = torch.randn(n, k, generator=generator)
        held[module] = quantize_weight(weight, row.weights, search="absmax", scale_dtype=torch.bfloat16)
        static = torch.tensor([0.0625]) if row.needs_calibration else None
        tensors |= module_tensors(module, held[module], activations=row.activations, input_scale=static)
    config = CONFIG | {"quantization_config": ctrender.render(dict.fromkeys(held, row))}
    ck = Checkpoint.open(write(tmp_path, config, tensors))
    for module, expected in held.items():
        found = read_linear(ck, module)
        assert isinstance(found.weight, QTensor) and found.activations == row.activations
        # A single row under one scale may be read as either of what it is.
        assert found.weight.spec == expected.spec or expected.shape[0] == 1, (module, expected.shape)
        assert torch.equal(found.weight.dequantize(), expected.dequantize()), expected.shape
        x = torch.randn(3, expected.shape[1], generator=generator)
        run = backends.bind(found.weight, found.activations, found.input_scale, None, device="cpu").run
        wanted = reference.linear(x, found.weight, found.activations, found.input_scale)
        assert float((run(x) - wanted).norm()) <= 1e-4 * float(wanted.norm()), expected.shape
    assert held


@pytest.mark.parametrize("name", [name for name in NAMES if not scheme(name).needs_calibration])
@torch.inference_mode()
def test_a_model_of_a_few_rows_is_quantized_and_loads(tmp_path: Path, name: str) -> None:
    k = {"fp8-block": 128, "int3": 40, "int2": 32, "int4-g32": 32}.get(name, 8 if name.endswith("-g8") else 128)
    config = CONFIG | {
        "hidden_size": k, "intermediate_size": k, "num_attention_heads": k // 2, "num_key_value_heads": 1,
        "head_dim": 2, "vocab_size": 3, "num_hidden_layers": 1,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    tensors = {
        tensor: torch.rand(shape, generator=generator).bfloat16()
        for tensor, shape in expected_tensors(model_config(config)).items()
    }
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "source/model.safetensors", {"format": "pt"})
    quantize(tmp_path / "source", tmp_path / "out", Policy(scheme(name)), progress=False)
    logits = run(load_model(tmp_path / "out"), torch.tensor([[0, 2, 1]]))
    assert logits.shape == (1, 3, 3) and bool(logits.isfinite().all())
