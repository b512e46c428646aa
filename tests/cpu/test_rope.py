"""Rotary embeddings against transformers' own numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from isobit.models.archs import model_config
from isobit.models.config import ModelConfig
from isobit.models.rope import RotaryTable, frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": YARN,
    "yarn, attention factor": YARN | {"attention_factor": 0.75},
    "yarn, mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn, betas": YARN | {"beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, not truncated": YARN | {"truncate": False},
    "yarn, equal betas": YARN | {"beta_fast": 1.0, "beta_slow": 1.0},
}  # fmt: skip
SIZES = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
         "head_dim": 64, "max_position_embeddings": 256}  # fmt: skip


def configs(name: str, theta: float) -> tuple[ModelConfig, LlamaConfig]:
    keys = SIZES | {"rope_parameters": ROPES[name] | {"rope_theta": theta}}
    return model_config({"architectures": ["LlamaForCausalLM"]} | keys), LlamaConfig(**keys)


@pytest.mark.parametrize("theta", [10000.0, 5e5])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_equal_transformers(name: str, theta: float) -> None:
    ours, theirs = configs(name, theta)
    found, factor = frequencies(ours.layers[0].attention.rope, ours.layers[0].attention.dim)
    kind = ROPES[name]["rope_type"]
    if kind == "default":
        wanted, wanted_factor = LlamaRotaryEmbedding(theirs).inv_freq, 1.0
    else:
        wanted, wanted_factor = ROPE_INIT_FUNCTIONS[kind](theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert factor == pytest.approx(wanted_factor, rel=1e-12)


@pytest.mark.parametrize("name", ROPES)
def test_both_spellings_at_once_equal_transformers(name: str) -> None:
    old = {("type" if key == "rope_type" else key): value for key, value in ROPES[name].items()}
    keys = {"rope_theta": 5e5, "rope_scaling": old, "rope_parameters": ROPES[name] | {"rope_theta": 5e5}}
    ours = model_config({"architectures": ["LlamaForCausalLM"]} | SIZES | copy.deepcopy(keys))
    theirs = LlamaRotaryEmbedding(LlamaConfig(**SIZES, **copy.deepcopy(keys)))
    found, factor = frequencies(ours.layers[0].attention.rope, ours.layers[0].attention.dim)
    torch.testing.assert_close(found, theirs.inv_freq, rtol=1e-6, atol=0)
    assert factor == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize(
    "changes", [{"beta_fast": 0, "beta_slow": None}, {"beta_fast": 1e-5}, {"beta_fast": 1e6, "beta_slow": 1e-5},
                {"beta_fast": 1.0, "beta_slow": 32.0}, {"mscale": 0, "mscale_all_dim": 0}, {"mscale": 2.0},
                {"factor": None}, {"truncate": None}, {"factor": 0.5}],
)  # fmt: skip
def test_odd_numbers_of_yarn_mean_what_they_mean_to_transformers(changes: dict[str, Any]) -> None:
    keys = SIZES | {"rope_parameters": YARN | {"rope_theta": 1e4} | changes}
    ours = model_config({"architectures": ["LlamaForCausalLM"]} | copy.deepcopy(keys))
    wanted, wanted_factor = ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(**keys))
    found, factor = frequencies(ours.layers[0].attention.rope, ours.layers[0].attention.dim)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert factor == pytest.approx(wanted_factor, rel=1e-12)


@pytest.mark.parametrize("name", ROPES)
def test_cosines_and_sines_equal_transformers(name: str) -> None:
    ours, theirs = configs(name, 10000.0)
    positions = torch.arange(250)[None]
    wanted = LlamaRotaryEmbedding(theirs)(torch.zeros(1, dtype=torch.float32), positions)
    for found, expected in zip(
        RotaryTable(ours.layers[0].attention.rope, 64).at(torch.arange(250), 250), wanted, strict=True
    ):
        torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-5)


def test_the_table_grows_without_changing() -> None:
    ours, _ = configs("yarn", 10000.0)
    table = RotaryTable(ours.layers[0].attention.rope, 64)
    positions = torch.arange(10, 20)
    early = table.at(positions, 20)[0].clone()
    table.at(torch.tensor([5000]), 5001)
    assert torch.equal(table.at(positions, 20)[0], early)
