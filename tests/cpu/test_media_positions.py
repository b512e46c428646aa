"""Positions on several axes against transformers' own rotary embeddings, and tokens with embeddings of their own."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import transformers
from families import make_model, save, token_ids

from isobit.errors import ModelError, UsageError
from isobit.models.archs import model_config
from isobit.models.batch import Batch, Overlay, lay_out
from isobit.models.config import SelfAttention
from isobit.models.decoder import Decoder
from isobit.models.fields import Fields
from isobit.models.hf_rope import Common, read_rope
from isobit.models.rope import Angles, rotate
from isobit.models.rotary import Rope
from isobit.models.weights import load_model

# Family -> (its config class and its rotary embedding in transformers, its rope there, how isobit reads it).
PARTIAL = {"rope_theta": 1e4, "partial_rotary_factor": 0.5}
FAMILIES: dict[str, tuple[str, str, dict[str, Any], Common]] = {
    "glm4v": ("Glm4vTextConfig", "Glm4vTextRotaryEmbedding", PARTIAL | {"mrope_section": [8, 12, 12]},
              Common(partial=1.0, interleaved=True, sections=(8, 12, 12))),
    "glm4v_moe": ("Glm4vMoeTextConfig", "Glm4vMoeTextRotaryEmbedding", PARTIAL,
                  Common(partial=1.0, sections=(8, 12, 12))),
    "qwen2_vl": ("Qwen2VLTextConfig", "Qwen2VLRotaryEmbedding", {"rope_theta": 1e6, "mrope_section": [16, 24, 24]},
                 Common(sections=(16, 24, 24))),
    "qwen3_vl": ("Qwen3VLTextConfig", "Qwen3VLTextRotaryEmbedding",
                 {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
                 Common(sections=(24, 20, 20), section_layout="woven")),
    "hunyuan_vl": ("HunYuanVLTextConfig", "HunYuanVLRotaryEmbedding",
                   {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0,
                    "mrope_section": [16, 16, 16, 16]},
                   Common(alpha=("dynamic", "xdrope"), sections=(), section_layout="columns")),
}  # fmt: skip


def theirs(family: str) -> Any:
    name, rotary, rope, _ = FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    keys = {"hidden_size": 256, "num_attention_heads": 2, "head_dim": 128, "rope_parameters": {"rope_type": "default"}}
    return getattr(module, rotary)(
        getattr(transformers, name)(**(keys | {"rope_parameters": keys["rope_parameters"] | rope}))
    )


def ours(family: str) -> Rope:
    fields = Fields({"rope_parameters": FAMILIES[family][2]})
    rope = read_rope(fields, FAMILIES[family][3], 128)
    assert fields.sound
    return rope


def three(axes: int, tokens: int = 40) -> torch.Tensor:
    return torch.randint(0, 500, (tokens, axes), generator=torch.Generator().manual_seed(axes))


@pytest.mark.parametrize("family", FAMILIES)
def test_angles_equal_transformers(family: str) -> None:
    rope = ours(family)
    positions = three(rope.axes)
    cos, sin = Angles(rope, 128, torch.float32, None).at(positions, 500, 500)
    wanted = theirs(family)(torch.zeros(1, dtype=torch.float32), positions.T[:, None])
    for found, given in zip((cos, sin), wanted, strict=True):
        given = given[0]
        if rope.interleaved:  # transformers has the angle of a pair at both of its neighbours
            given = torch.cat((given[:, ::2], given[:, 1::2]), dim=-1)
        torch.testing.assert_close(found, given, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_that_are_equal_on_all_axes_are_one(family: str) -> None:
    rope, positions = ours(family), three(1)
    table = Angles(rope, 128, torch.float32, None)
    same = table.at(positions.expand(-1, rope.axes).contiguous(), 500, 500)
    for one, other in zip(table.at(positions[:, 0], 500, 500), same, strict=True):
        assert torch.equal(one, other)


def test_the_two_dimensions_of_a_pair_may_have_different_axes() -> None:
    """Hunyuan's order, in transformers: which is no rotation, so that nothing may take it for one."""
    rope = Rope(sections=(1, 1), section_layout="columns")
    cos, sin = Angles(rope, 4, torch.float32, None).at(torch.tensor([[3, 7]]), 8, 8)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    first, second = (torch.tensor([[position, position * 0.01]]) for position in (3.0, 7.0))
    wanted = torch.cat((x[0, :, :2] * first.cos() - x[0, :, 2:] * first.sin(),
                        x[0, :, 2:] * second.cos() + x[0, :, :2] * second.sin()), dim=-1)  # fmt: skip
    torch.testing.assert_close(rotate(x, cos, sin)[0], wanted)


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ({"mrope_section": [8, 12, 13]}, "expected 1 to 8 whole numbers that make 32"),
        ({"mrope_section": [8, -12, 36]}, "expected 1 to 8 whole numbers that make 32"),
        ({"mrope_section": [8, 12.5, 11.5]}, "expected 1 to 8 whole numbers that make 32"),
        ({"mrope_section": "8"}, "expected 1 to 8 whole numbers that make 32"),
        ({"mrope_section": []}, "expected 1 to 8 whole numbers that make 32"),
        ({"mrope_section": [float("nan"), 12, 12]}, "expected 1 to 8 whole numbers that make 32"),
        ({"mrope_section": [8, 12, 12], "xdrope_section": [12, 8, 12]}, "mrope_section and xdrope_section disagree"),
        ({"mrope_section": [8, 12, 12], "mrope_interleaved": True}, "isobit does not implement this order"),
    ],
)
def test_sections_that_cannot_be_are_refused(section: dict[str, Any], wrong: str) -> None:
    fields = Fields({"rope_parameters": PARTIAL | section})
    read_rope(fields, Common(partial=1.0, sections=(8, 12, 12)), 128)
    with pytest.raises(ModelError, match=wrong):
        fields.check()


def test_sections_that_are_absent_must_fit_the_heads() -> None:
    fields = Fields({"rope_parameters": PARTIAL})
    read_rope(fields, Common(partial=1.0, sections=(8, 12, 12)), 64)
    with pytest.raises(ModelError, match="mrope_section is absent"):
        fields.check()
    with pytest.raises(ModelError, match="mrope_section"):
        SelfAttention(1, 1, 64, Rope(sections=(1, 2)))


def test_a_family_without_axes_refuses_sections() -> None:
    keys = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 24, 24]}}
    with pytest.raises(ModelError, match="mrope_section"):
        model_config({"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
                      "num_hidden_layers": 1, "num_attention_heads": 1} | keys)  # fmt: skip


# Batches


@pytest.fixture(scope="module", params=["LlamaForCausalLM", "Gemma2ForCausalLM"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    """A model of transformers and the same in isobit; Gemma multiplies embeddings of tokens, and no others."""
    theirs = make_model(request.param)
    return theirs, load_model(save(theirs, tmp_path_factory.mktemp("model")), dtype="float32")


@torch.no_grad()
def test_embeddings_stand_in_the_place_of_tokens(pair: tuple[Any, Decoder]) -> None:
    theirs, model = pair
    ids = token_ids(12, batch=1)[0]
    rows = torch.tensor([2, 3, 7])
    given = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    embeds = theirs.get_input_embeddings()(ids).clone()
    embeds[rows] = given
    wanted = theirs(inputs_embeds=embeds[None]).logits[0]
    found = model.forward(Batch.of([ids.tolist()], overlays=[Overlay(rows, given)]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_overlays_of_some_sequences_and_in_pieces(pair: tuple[Any, Decoder]) -> None:
    _, model = pair
    ids = [token_ids(12, batch=1)[0].tolist(), token_ids(7, batch=1)[0].tolist()]
    rows, given = torch.tensor([1, 5, 6]), torch.randn(3, model.config.hidden_size)
    alone = [
        model.forward(Batch.of([ids[0]])),
        model.forward(Batch.of([ids[1]], overlays=[Overlay(rows, given)])),
    ]
    both = model.forward(Batch.of(ids, overlays=[None, Overlay(rows, given)]))
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-5, atol=1e-5)
    cache = model.new_cache(2, 12)
    first = model.forward(cache.next([ids[0][:6], ids[1][:6]], overlays=[None, Overlay(rows[:2], given[:2])]), cache)
    second = model.forward(
        cache.batch([ids[1][6:]], cache.sequences[1:], overlays=[Overlay(rows[2:] - 6, given[2:])]), cache
    )
    torch.testing.assert_close(torch.cat((first[6:], second)), alone[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_counts_for_attention_is_the_place_and_not_the_position(pair: tuple[Any, Decoder]) -> None:
    """All positions may be the same ones further on: only their distances matter, and who came before whom stays."""
    _, model = pair
    ids = token_ids(9, batch=1)[0].tolist()
    wanted = model.forward(Batch.of([ids]))
    moved = Batch.of([ids], positions=[torch.arange(9) + 300])
    assert moved.reach == 309 and moved.places is not None
    torch.testing.assert_close(model.forward(moved), wanted, rtol=1e-3, atol=1e-3)
    backwards = model.forward(Batch.of([ids], positions=[torch.arange(8, -1, -1)]))
    assert not torch.allclose(backwards[1:], wanted[1:], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(backwards[0], wanted[0], rtol=1e-4, atol=1e-4)  # the first token sees itself alone


def test_positions_of_some_sequences() -> None:
    batch = lay_out([[1, 2], [3], [4, 5]], [4, 0, 2], [(0,), (1,), (2,)], 8,
                    positions=[None, torch.tensor([[9, 8, 7]]), torch.tensor([30, 31])])  # fmt: skip
    assert batch.positions.tolist() == [[4] * 3, [5] * 3, [9, 8, 7], [30] * 3, [31] * 3]
    assert batch.places is not None and batch.places.tolist() == [4, 5, 0, 2, 3] and batch.reach == 32
    plain = lay_out([[1, 2], [3]], [4, 0], [(0,), (1,)], 8, positions=[None, None])
    assert plain.positions.tolist() == [4, 5, 0] and plain.places is None and plain.reach == 0


@pytest.mark.parametrize(
    "positions",
    [torch.tensor([1, 2]), torch.tensor([[1, 2]]), torch.tensor([1, 2, -3]), torch.tensor([1.0, 2.0, 3.0]),
     torch.ones(3, 2, 2, dtype=torch.int64)],
)  # fmt: skip
def test_positions_of_other_tokens_are_refused(positions: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="expected positions"):
        Batch.of([[1, 2, 3]], positions=[positions])


def test_different_axes_in_one_batch_are_refused() -> None:
    two, three = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(UsageError, match="expected positions"):
        Batch.of([[1], [2]], positions=[two, three])


@pytest.mark.parametrize(
    ("rows", "embeds"), [([3], (1, 64)), ([-1], (1, 64)), ([0], (2, 64)), ([0], (64,)), ([0, 1], (1, 64))]
)
def test_overlays_of_other_tokens_are_refused(rows: list[int], embeds: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected embeddings \[n, hidden\]"):
        Batch.of([[1, 2, 3]], overlays=[Overlay(torch.tensor(rows), torch.zeros(embeds))])


def test_an_overlay_of_another_width_is_refused(pair: tuple[Any, Decoder]) -> None:
    with pytest.raises(UsageError, match="instead of those of tokens"):
        pair[1].forward(Batch.of([[1, 2, 3]], overlays=[Overlay(torch.tensor([0]), torch.zeros(1, 8))]))
