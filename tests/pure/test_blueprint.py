"""The blueprint: what a layer is made of, from its description alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isobit.checkpoint.cttargets import FUSED
from isobit.models.archs import ARCHS, family, model_config
from isobit.models.blueprint import classifier, expected_tensors, fused, layer_modules, modules
from isobit.models.config import LatentAttention, LayerSpec, ModelConfig, Norms, SelfAttention
from isobit.models.feed_forward import Experts, GatedMlp, PlainMlp

PLAIN = LayerSpec(SelfAttention(4, 2, 8), GatedMlp(48))


def config(*layers: LayerSpec) -> ModelConfig:
    return ModelConfig("llama", 100, 24, layers, 1e-5, 64, True)


def test_layers_may_differ_from_each_other() -> None:
    wide = LayerSpec(SelfAttention(2, 1, 16, qk_norm="head", bias=True), GatedMlp(96, bias=True), Norms(None, "behind"))
    shapes = expected_tensors(config(PLAIN, wide))
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (16, 24)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (32, 24)
    assert shapes["model.layers.1.self_attn.k_proj.bias"] == shapes["model.layers.1.self_attn.k_norm.weight"] == (16,)
    assert shapes["model.layers.1.mlp.down_proj.bias"] == shapes["model.layers.1.behind.weight"] == (24,)
    assert "model.layers.1.self_attn.o_proj.bias" not in shapes
    assert "model.layers.1.input_layernorm.weight" not in shapes
    assert len(shapes) == 1 + 9 + (3 * 2 + 2 + 1 + 1 + 1 + 3 * 2) + 1


@pytest.mark.parametrize("name", ARCHS.values())
def test_roles_of_a_layer_are_unique_and_what_splits_fits_together(name: str) -> None:
    model = model_config({"model_type": name} | family(name).tiny())
    for layer in model.layers:
        found = [part for part in layer_modules(layer, model.hidden_size) if not part.expert]  # none, or the first
        parts = {part.role: part for part in found}
        assert len(parts) == len(found)
        rows = {role: count for part in parts.values() for role, count in part.parts or ((part.role, part.shape[0]),)}
        if isinstance(layer.attention, LatentAttention):
            made = layer.attention.heads * layer.attention.value
            heads = parts["q_b"] if "q_b" in parts else parts["q"]
            assert parts["o"].shape[1] == made and parts["kv_b"].split == heads.split == "rows"
        else:
            assert parts["o"].shape[1] == rows["q"]
        assert parts["down"].shape[1] == rows["up"]
        assert all(sum(count for _, count in part.parts) in (0, part.shape[0]) for part in parts.values())
        # what is split by rows in front of a linear that is split by columns needs no exchange between the two
        assert {role for role, part in parts.items() if part.split == "columns"} - {"shared_down"} == {"o", "down"}
        assert all(part.split == "rows" for part in parts.values() if part.fused not in (None, "qkv_a"))
        assert all(part.split is None for part in parts.values() if part.fused == "qkv_a")  # every card makes latents
        assert all(part.split is None for part in parts.values() if part.kind == "norm")


@pytest.mark.parametrize("name", ARCHS.values())
def test_what_is_fused_here_is_what_engines_fuse(name: str) -> None:
    model = model_config({"model_type": name} | family(name).tiny())
    found = {tuple(module.rpartition(".")[2] for module in group) for group in fused(model)}
    first = {"q": "k", "q_a": "kv_a", "gate": "up"}  # each, where there is the other beside it
    roles = [{part.role for part in layer_modules(layer, 1)} for layer in model.layers]
    joined = sum(one in found and other in found for found in roles for one, other in first.items())
    # of mixtures: the other experts, and the shared one
    joined += sum(
        layer.mlp.router.experts - 1 + (layer.mlp.shared is not None and not layer.mlp.shared.joined)
        for layer in model.layers
        if isinstance(layer.mlp, Experts)
    )
    assert found <= set(FUSED) and len(fused(model)) == joined


def test_kinds_of_what_is_tied_and_of_what_is_none_of_the_models() -> None:
    kind = classifier(config(PLAIN))
    assert kind("lm_head.weight") == "lm_head" and kind("model.embed_tokens.weight") == "embedding"
    assert kind("model.layers.0.mlp.up_proj.weight") == "linear"
    assert kind("model.layers.1.mlp.up_proj.weight") == "other"
    names = [module.name for module in modules(config(PLAIN))]
    assert names[0] == "model.embed_tokens" and names[-1] == "model.norm" and "lm_head" not in names
    assert modules(replace(config(PLAIN), tie_word_embeddings=False))[-1].name == "lm_head"


def test_one_matrix_that_is_stored_for_several_linears_says_which_rows_are_whose() -> None:
    joined = LayerSpec(SelfAttention(4, 2, 8, bias=True, joined=True), GatedMlp(48, joined=True))
    parts = {part.name: part for part in layer_modules(joined, 24)}
    qkv, gate_up = parts["self_attn.qkv_proj"], parts["mlp.gate_up_proj"]
    assert qkv.shape == (64, 24) and qkv.parts == (("q", 32), ("k", 16), ("v", 16)) and qkv.bias
    assert gate_up.shape == (96, 24) and gate_up.parts == (("gate", 48), ("up", 48)) and not gate_up.bias
    assert qkv.roles == ("q", "k", "v") and parts["self_attn.o_proj"].roles == ("o",)
    assert fused(config(joined)) == ()  # nothing is left for engines to join


def test_norms_with_a_bias_have_one_everywhere_but_over_heads() -> None:
    norms = Norms(kind="layer", bias=True)
    shapes = expected_tensors(config(LayerSpec(SelfAttention(4, 2, 8, qk_norm="head"), PlainMlp(48), norms)))
    biases = {name for name in shapes if name.endswith(".bias")}
    layer = "model.layers.0."
    assert biases == {f"{layer}input_layernorm.bias", f"{layer}post_attention_layernorm.bias", "model.norm.bias"}


def test_an_mlp_without_a_gate_has_two_linears_by_the_names_of_its_family() -> None:
    layer = LayerSpec(SelfAttention(4, 2, 8), PlainMlp(48, bias=True, names=("c_fc", "c_proj")))
    parts = {part.role: part for part in layer_modules(layer, 24)}
    assert (parts["up"].name, parts["down"].name) == ("mlp.c_fc", "mlp.c_proj") and "gate" not in parts
    assert parts["up"].shape == (48, 24) and parts["down"].shape == (24, 48) and parts["up"].bias
    assert parts["up"].split == "rows" and parts["down"].split == "columns"
