"""Keys of config.json about attention that single families have: what they mean, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from published_configs import EXAONE4, GEMMA3, HUNYUAN, PUBLISHED, SMOLLM3

from isobit.errors import ModelError
from isobit.models.archs import family, model_config
from isobit.models.config import ModelConfig, SelfAttention
from isobit.models.fields import Fields
from isobit.models.hf_rope import Common, read_rope
from isobit.models.rotary import QueryScale, Rope

MINISTRAL3: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 4,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "sliding_window": None, "vocab_size": 131072,
    "max_position_embeddings": 262144,
    "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
                        "max_position_embeddings": 262144, "mscale": 1.0, "mscale_all_dim": 1.0,
                        "original_max_position_embeddings": 16384, "rope_theta": 1000000.0, "rope_type": "yarn",
                        "type": "yarn"},
}  # fmt: skip


def attention(config: ModelConfig, layer: int = 0) -> SelfAttention:
    found = config.layers[layer].attention
    assert isinstance(found, SelfAttention)
    return found


def without(keys: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key not in names}


def test_gemma_3_has_a_rope_for_each_kind_of_layer() -> None:
    config = model_config(GEMMA3)
    assert config.windows == ((512,) * 5 + (None,)) * 4 + (512, 512)
    thetas = {(part.window, part.rope and part.rope.theta) for part in (layer.attention for layer in config.layers)}
    assert thetas == {(512, 1e4), (None, 1e6)}
    new = model_config(PUBLISHED["Gemma 3 by transformers 5"])
    assert new.layers == config.layers and not new.notes


def test_a_stretched_rope_of_gemma_3_is_of_the_layers_without_a_window() -> None:
    stretched = {"rope_type": "linear", "factor": 8.0}
    old = model_config(GEMMA3 | {"rope_scaling": stretched, "max_position_embeddings": 131072})
    assert attention(old, 5).rope == Rope("linear", 1e6, 8.0, 16384) and attention(old, 0).rope == Rope(theta=1e4)
    assert old.max_context == 131072 and not old.notes  # that number counts the factor already
    sections = {"full_attention": stretched | {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    new = without(GEMMA3, "rope_theta", "rope_local_base_freq", "rope_scaling")
    assert model_config(new | {"rope_parameters": sections, "max_position_embeddings": 131072}).layers == old.layers


def test_ministral_3_grows_its_queries() -> None:
    config = model_config(MINISTRAL3)
    assert attention(config).query_scale == QueryScale(16384, 0.1) and not config.notes
    assert config.max_context == 262144 and config.windows == (None,) * 4
    usual = model_config(without(MINISTRAL3, "rope_parameters"))
    assert usual.layers == config.layers  # transformers' own, where the file has none
    again = MINISTRAL3 | {"rope_scaling": MINISTRAL3["rope_parameters"]}
    assert model_config(again).layers == config.layers
    assert model_config(MINISTRAL3 | {"sliding_window": 4096}).windows == (4096,) * 4


def test_layers_of_smollm3_and_exaone_4() -> None:
    every = [attention(model_config(SMOLLM3), layer).rope is not None for layer in range(8)]
    assert every == [True, True, True, False] * 2
    derived = model_config(without(SMOLLM3, "no_rope_layers"))
    assert derived.layers == model_config(SMOLLM3).layers
    windowed = SMOLLM3 | {"use_sliding_window": True, "sliding_window": 64, "layer_types": None}
    assert model_config(windowed).windows == (None, None, None, 64) * 9
    large = model_config(EXAONE4)
    assert large.windows == (4096, 4096, 4096, None) * 16
    assert [attention(large, layer).rope is None for layer in range(4)] == [False, False, False, True]
    for pattern in ("LLLG", 4):
        derived = model_config(without(EXAONE4, "layer_types") | {"sliding_window_pattern": pattern})
        assert derived.windows[:60] == large.windows[:60]
    assert model_config(without(EXAONE4, "layer_types") | {"sliding_window_pattern": "LLL"}).windows[-1] is None
    small = model_config(PUBLISHED["EXAONE 4 1.2B"])
    assert set(small.windows) == {None} and attention(small).rope is not None


def test_hunyuan_stretches_theta_once() -> None:
    part = attention(model_config(HUNYUAN))
    assert part.rope == Rope(theta=1e4 * 1000.0 ** (128 / 126)) and part.qk_names == (
        "query_layernorm",
        "key_layernorm",
    )


@pytest.mark.parametrize(
    ("base", "changes", "named"),
    [
        (GEMMA3, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters: rope_type"),
        (GEMMA3, {"rope_parameters": {"full_attention": {"rope_theta": 2e6}}}, "rope_theta = 1000000.0 stands beside"),
        (GEMMA3, {"rope_parameters": {"sliding_attention": {"rope_theta": 2e4}}}, "rope_local_base_freq = 10000"),
        (GEMMA3, {"rope_scaling": {"rope_type": "linear", "factor": 8.0},
                  "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}}, "disagree: factor 8"),
        (GEMMA3, {"rope_scaling": None, "rope_parameters": {"full_attention": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "truncate": False}}}, "truncate = False"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3, {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        (GEMMA3, {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping"),
        (MINISTRAL3, {"rope_parameters": MINISTRAL3["rope_parameters"] | {"llama_4_scaling_beta": None}}, "beta"),
        (MINISTRAL3, {"rope_parameters": MINISTRAL3["rope_parameters"] | {"max_position_embeddings": 8}}, "context"),
        (MINISTRAL3, {"rope_scaling": MINISTRAL3["rope_parameters"] | {"llama_4_scaling_beta": 0.2}}, "disagree"),
        (MINISTRAL3, {"rope_parameters": None, "rope_theta": 5e5}, "rope_theta = 500000"),
        (SMOLLM3, {"no_rope_layers": [1, 1]}, "no_rope_layers"),
        (SMOLLM3, {"no_rope_layers": [1, 2] * 18}, "no_rope_layers"),
        (SMOLLM3, {"no_rope_layers": "all"}, "no_rope_layers"),
        (SMOLLM3, {"layer_types": ["sliding_attention"] * 36}, "layer_types"),
        (EXAONE4, {"sliding_window_pattern": "LXG"}, "sliding_window_pattern"),
        (EXAONE4, {"sliding_window_pattern": -1}, "sliding_window_pattern"),
        (HUNYUAN, {"rope_scaling": HUNYUAN["rope_scaling"] | {"alpha": None}}, "rope type"),
        (HUNYUAN, {"rope_scaling": HUNYUAN["rope_scaling"] | {"alpha": "x"}}, "alpha"),
        (HUNYUAN, {"use_cla": True}, "use_cla"),
        (HUNYUAN, {"use_qk_norm": False}, "use_qk_norm"),
        (SMOLLM3, {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 63, "long_factor": [1.0] * 64}},
         "short_factor .* expected 64 numbers"),
        (SMOLLM3, {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [0] * 64}},
         "long_factor"),
        (SMOLLM3, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 4.0}}, "rope type"),
    ],
)  # fmt: skip
def test_what_they_cannot_mean(base: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        model_config(base | changes)


def test_heads_that_are_rotated_in_part() -> None:
    common = Common(theta=5e6, partial=1.0, dims_key="rotary_dim")
    for keys, dims in (({}, None), ({"rotary_dim": 64}, 64), ({"rotary_dim": 64, "partial_rotary_factor": 0.5}, 64),
                       ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, 32)):  # fmt: skip
        assert read_rope(Fields(keys), common, 128) == Rope(theta=5e6, dims=dims)
    assert read_rope(Fields({}), Common(partial=0.5), 128).dims == 64
    for keys in ({"rotary_dim": 64, "partial_rotary_factor": 0.25}, {"partial_rotary_factor": 1.5}, {"rotary_dim": 63}):
        fields = Fields(keys)
        read_rope(fields, common, 128)
        assert not fields.sound, keys


def test_growing_queries_of_llama_4() -> None:
    keys = {"architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text"} | family("llama4_text").tiny()
    for tuned, grows in ((None, True), (True, True), (4, True), (False, False)):
        config = model_config(keys | {"attn_temperature_tuning": tuned})
        scales = [attention(config, layer).query_scale for layer in range(4)]
        assert scales == [None, None, None, QueryScale(16, 0.1, 1) if grows else None]
        assert [attention(config, layer).qk_norm for layer in range(4)] == ["l2"] * 3 + ["none"]
    with pytest.raises(ModelError, match="attn_temperature_tuning"):
        model_config(keys | {"attn_temperature_tuning": "yes"})
