"""Rotary embeddings against transformers' own numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from isobit.errors import ModelError
from isobit.models.archs import model_config
from isobit.models.config import ModelConfig
from isobit.models.fields import Fields
from isobit.models.hf_rope import Common, read_rope
from isobit.models.rope import MOST_LENGTHS, Angles, RotaryTable, frequencies, rotate
from isobit.models.rotary import Rope

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
SHORT, LONG = [1.0 + pair / 16 for pair in range(32)], [2.0 + pair / 2 for pair in range(32)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64}
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


@pytest.mark.parametrize("more", [{}, {"factor": 3.0}, {"attention_factor": 0.75}, {"factor": 0.5}])
def test_both_sets_of_longrope_equal_transformers(more: dict[str, Any]) -> None:
    keys = SIZES | {"rope_parameters": LONGROPE | {"rope_theta": 1e4} | more}
    rope = model_config({"architectures": ["LlamaForCausalLM"]} | copy.deepcopy(keys)).layers[0].attention.rope
    for long, length in ((False, 64), (True, 65)):
        wanted, wanted_factor = ROPE_INIT_FUNCTIONS["longrope"](LlamaConfig(**keys), seq_len=length)
        found, factor = frequencies(rope, 64, long=long)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
        assert factor == pytest.approx(wanted_factor, rel=1e-12)


def test_a_sequence_has_one_set_of_longrope_from_its_first_token_on() -> None:
    keys = SIZES | {"rope_parameters": LONGROPE | {"rope_theta": 1e4}}
    config = model_config({"architectures": ["LlamaForCausalLM"]} | keys)
    rope = config.layers[0].attention.rope
    assert "up to 64 tokens" in config.notes[0] and "--context 64 has the former" in config.notes[0]
    angles = Angles(rope, 64, torch.float32, None)
    short, long = (RotaryTable(rope, 64, long=long).upto(100) for long in (False, True))
    positions = torch.tensor([0, 1, 2, 98, 99, 5])  # of sequences of 3, of 100 and of 64 tokens
    mixed = angles.at(positions, 100, [(3, 3), (2, 100), (1, 64)])
    for part, near, far in zip(mixed, short, long, strict=True):
        wanted = torch.cat((near[:3], far[98:100], near[5:6]))
        assert torch.equal(part, wanted) and not torch.equal(near[5], far[5])
    for room, table in ((64, short), (65, long)):
        assert torch.equal(angles.at(positions, 100, room)[0], table[0][positions])
        assert torch.equal(angles.upto(100, room)[1][:100], table[1][:100])
    assert torch.equal(angles.at(positions[3:5], 100, [(2, 100)])[0], long[0][98:100])


def test_pairs_that_are_neighbours_are_the_halves_of_reordered_heads() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 24, generator=generator)
    cos, sin = (part.repeat(1, 2) for part in torch.randn(2, 5, 8, generator=generator))
    order = torch.tensor([*range(0, 16, 2), *range(1, 16, 2)])
    found = rotate(x, cos, sin, interleaved=True)
    halves = rotate(x[..., order], cos, sin)
    assert torch.equal(found[..., order], halves) and torch.equal(found[..., 16:], x[..., 16:])
    assert torch.equal(rotate(x, cos[:, :0], sin[:, :0]), x)


def test_yarn_over_a_part_of_each_head_equals_transformers() -> None:
    keys = SIZES | {"rope_parameters": YARN | {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    rope = Rope("yarn", 1e4, 4.0, 64, dims=32)
    wanted, wanted_factor = ROPE_INIT_FUNCTIONS["yarn"](LlamaConfig(**keys))
    found, factor = frequencies(rope, 64)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert len(found) == 16 and factor == pytest.approx(wanted_factor, rel=1e-12)


HEAD = 64
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 1000])
def test_dynamic_equals_transformers_at_every_length(length: int) -> None:
    keys = SIZES | {"rope_parameters": DYNAMIC, "max_position_embeddings": 64}
    wanted, _ = ROPE_INIT_FUNCTIONS["dynamic"](LlamaConfig(**keys), seq_len=length)
    rope = read_rope(Fields(keys), Common(), HEAD)
    found, factor = frequencies(rope, HEAD, length=length)
    assert torch.allclose(found, wanted, rtol=1e-6) and factor == 1.0


def test_a_sequence_has_one_theta_of_dynamic_from_its_first_token_on() -> None:
    rope, head = Rope("dynamic", 1e4, 3.0, 64), HEAD
    angles = Angles(rope, head, torch.float32, None)
    tables = {length: RotaryTable(rope, head, length=length) for length in (64, 70, 80)}
    positions, rooms = torch.tensor([3, 4, 0, 79, 5]), [(2, 70), (1, 30), (1, 80), (1, 64)]
    wanted = [tables[length].at(piece, 80) for length, piece in (
        (70, positions[:2]), (64, positions[2:3]), (80, positions[3:4]), (64, positions[4:]))]  # fmt: skip
    for found, parts in zip(angles.at(positions, 80, rooms), zip(*wanted, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))
    for room in (64, 70, 64):
        assert torch.equal(angles.at(positions, 80, room)[0], tables[room].at(positions, 80)[0])
        assert torch.equal(angles.upto(10, room)[1][:10], tables[room].upto(10)[1][:10])
    for room in range(65, 100):  # and keeps but a few
        assert angles.at(positions, 80, room)[0].shape == (5, head)
    assert len(angles._longer) <= MOST_LENGTHS


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"rope_type": "dynamic"}, "factor"),
        ({"rope_type": "dynamic", "factor": 0}, "factor"),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}, "max_position_embeddings"),
        ({"rope_type": "dynamic", "factor": 2.0, "beta_fast": 32}, "beta_fast"),
    ],
)
def test_what_dynamic_cannot_mean(section: dict[str, Any], named: str) -> None:
    fields = Fields({"max_position_embeddings": 64, "rope_scaling": section})
    read_rope(fields, Common(), 32)
    with pytest.raises(ModelError, match=named):
        fields.check()
