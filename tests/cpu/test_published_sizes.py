"""Published configurations: as many parameters, and as many bytes of a cache, as transformers' own model has."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from isobit.legalize.memory import kv_bytes_per_token
from isobit.models.archs import model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.workload import workload

sys.path.append(str(Path(__file__).parents[1] / "pure"))
from published_configs import PUBLISHED
from published_dense import DENSE

ALL = {name: config for name, config in (PUBLISHED | DENSE).items() if not any("quantization" in key for key in config)}
LAYERS = 6  # of those that are compared in seconds: a pattern of layers is never longer


def short(config: dict[str, Any]) -> dict[str, Any]:
    """The same with its first layers alone."""
    found = config | {"num_hidden_layers": min(LAYERS, config["num_hidden_layers"])}
    return {key: value[:LAYERS] if key in ("layer_types", "no_rope_layers") and value else value
            for key, value in found.items()}  # fmt: skip


def theirs(config: dict[str, Any]) -> Any:
    """transformers' model, without memory."""
    cls = getattr(transformers, config["architectures"][0])
    keys = {key: value for key, value in copy.deepcopy(config).items() if key != "architectures" and value is not None}
    with torch.device("meta"):
        return cls(cls.config_class(**keys))


def kept(model: Any) -> int:
    """Numbers that transformers keeps of a token, of all layers: what it makes keys and values of."""
    total = 0
    for layer in model.model.layers:
        part = layer.self_attn
        if hasattr(part, "qkv_proj"):
            total += part.qkv_proj.out_features - part.o_proj.in_features
        else:
            total += part.k_proj.out_features + part.v_proj.out_features
    return total


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALL)
def test_parameters_and_cache(name: str, whole: bool) -> None:
    config = ALL[name] if whole else short(ALL[name])
    found, model = expected_tensors(model_config(config)), theirs(config)
    wanted = {key: tuple(tensor.shape) for key, tensor in model.named_parameters()}
    assert {key: shape for key, shape in found.items() if key in wanted} == wanted
    assert sum(torch.Size(shape).numel() for shape in found.values()) == sum(one.numel() for one in model.parameters())
    assert kv_bytes_per_token(workload(config), "bfloat16") == 2 * kept(model)
