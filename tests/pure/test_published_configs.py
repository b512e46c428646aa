"""Published configurations are read; what changes the computation is refused by name, everything at once."""

from __future__ import annotations

from typing import Any

import pytest
from published_configs import LLAMA2, LLAMA31, MISTRAL1, PUBLISHED, QWEN2, QWEN3
from published_dense import DENSE

from isobit.errors import ModelError
from isobit.models.archs import ARCHS, model_config
from isobit.models.archs import family as make
from isobit.models.hf_keys import ELSEWHERE, INERT, NEUTRAL, SAME
from isobit.models.planning import plans

EVERY = PUBLISHED | DENSE
FAMILIES = {"llama": LLAMA2, "mistral": MISTRAL1, "qwen2": QWEN2, "qwen3": QWEN3}

# What other families and tools write, with the values that they have there.
REFUSED: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (50.0, True, "50"), "final_logit_softcapping": (30.0,), "logits_soft_cap": (30,),
    "embedding_multiplier": (12.0, 0, "1"), "residual_multiplier": (0.22,), "logits_scaling": (8.0,),
    "attention_multiplier": (1.0, 0.015625, 0), "logit_scale": (0.0625,), "scale_emb": (12,), "scale_depth": (1.4,),
    "dim_model_base": (256,), "mlp_multipliers": ([0.5, 0.5],), "query_pre_attn_scalar": (224,),
    "q_lora_rank": (1536,), "kv_lora_rank": (512,), "qk_nope_head_dim": (128,), "qk_rope_head_dim": (64,),
    "v_head_dim": (128,), "num_experts": (60, 1), "num_local_experts": (8,), "n_routed_experts": (64,),
    "num_experts_per_tok": (2,), "moe_intermediate_size": (1408,), "first_k_dense_replace": (1,),
    "dual_chunk_attention_config": ({"chunk_size": 262144, "local_size": 8192},), "sliding_window_pattern": (6,),
    "use_qk_norm": (True,), "qk_layernorm": (True,), "qk_norm": (True,), "clip_qkv": (8.0,), "alibi": (True,),
    "use_parallel_residual": (True,), "parallel_attn": (True,), "partial_rotary_factor": (0.5, "1", True),
    "rotary_pct": (0.25,), "rotary_dim": (32,), "rope_interleaved": (True,), "rope_interleave": (True,),
    "rope_local_base_freq": (10000,), "no_rope_layers": ([1, 1, 1, 0],), "attention_chunk_size": (8192,),
    "attn_temperature_tuning": (4,), "norm_type": ("layernorm",), "layer_norm_eps": (1e-3,),
    "position_embedding_type": ("alibi",), "hidden_activation": ("gelu_pytorch_tanh",), "activation": ("gelu",),
    "hidden_act": ("gelu", "relu2", True, 0), "use_bidirectional_attention": (True,), "is_encoder_decoder": (True,),
    "add_cross_attention": (True,), "causal": (False,), "is_causal": (False,), "no_bias": (False,), "use_bias": (True,),
    "per_layer_config": ({"0": {"num_key_value_heads": 1}},), "text_config": ({"hidden_size": 64},),
    "vision_config": ({"depth": 32},), "audio_config": ({"layers": 2},), "num_nextn_predict_layers": (1,),
    "num_kv_shared_layers": (20,), "n_layer": (5,), "d_model": (99,), "head_size": (99,), "pruned_heads": ({"0": [1]},),
    "model_type": ("gemma3n", "mamba", 3), "auto_map": (["code"],), "dtype": ("float8", "auto", 16, True),
    "torch_dtype": ("int8", ["bfloat16"]), "something_new": (1, "x", True, {"a": 0}, [0]),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_a_published_configuration_is_read(name: str) -> None:
    config = model_config(EVERY[name])
    assert config.family == EVERY[name]["model_type"]
    assert bool(config.notes) == (name in SAID)


# What a published file makes isobit say, and nothing else.
SAID = {
    **dict.fromkeys(("Gemma 2B", "Gemma 7B"), ["hidden_act says gelu and means its tanh approximation"]),
    **dict.fromkeys(("Phi 3 mini 128K", "Phi 4 mini"), ["longrope", "4096 tokens"]),
    "DeepSeek Coder 6.7B": ["up to 65536 tokens", "max_position_embeddings = 16384"],
    "Vicuna 7B 16K": ["up to 16384 tokens", "linear stretches by 4"],
    "LLaMA 2 7B 32K": ["AutoModelForCausalLM 'modeling_flash_llama", "up to 262144"],
    "Yarn Mistral 7B 128K": ["runs no code", "yarn stretches 8192 tokens by 16"],
    "Qwen2.5 Coder with yarn": ["up to 131072", "yarn stretches 32768 tokens by 4"],
    "Qwen3 with yarn": ["up to 131072", "max_position_embeddings = 40960"],
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_not_as_it_stands_is_said(name: str) -> None:
    notes = " ".join(model_config(EVERY[name]).notes)
    assert all(part in notes for part in SAID[name])
    work, _ = plans(EVERY[name], targets=["h100"], scheme_names=["int4"])
    assert set(model_config(EVERY[name]).notes) <= set(work.notes)


@pytest.mark.parametrize("name", ["Qwen2.5 Coder with yarn", "Qwen3 with yarn"])
def test_the_recipe_for_yarn_is_planned_at_its_whole_length(name: str) -> None:
    work, found = plans(PUBLISHED[name], targets=["h100"], scheme_names=["fp8"], context=131072)
    assert work.max_context == 131072 and found[0][0].request.context == 131072


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_changes_the_computation_is_refused_by_name(family: str, key: str) -> None:
    for value in REFUSED[key]:
        with pytest.raises(ModelError, match=rf"config\.json: {key} = "):
            model_config(FAMILIES[family] | {key: value})


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_them_are_named_in_one_error(family: str) -> None:
    wrong = {
        "num_experts": 8,
        "attn_logit_softcapping": 50.0,
        "something_new": "x",
        "vocab_size": "many",
        "head_dim": 7.5,
    }
    with pytest.raises(ModelError) as error:
        model_config(FAMILIES[family] | wrong | {"rope_scaling": {"type": "yarn", "factor": -1, "odd": 3}})
    assert "7 reasons" in str(error.value)
    assert all(f"\n  - {key} = " in str(error.value) for key in (*wrong, "rope_scaling: factor", "rope_scaling: odd"))


@pytest.mark.parametrize("family", FAMILIES)
def test_null_and_what_means_none_of_it_is_harmless(family: str) -> None:
    plain = model_config(FAMILIES[family])
    strict = {*SAME, *NEUTRAL, "hidden_act", "model_type", "auto_map", "partial_rotary_factor", "dtype", "torch_dtype"}
    for key in REFUSED.keys() - {"torch_dtype"}:  # without it weights are bfloat16
        assert model_config(FAMILIES[family] | {key: None}) == plain
        if key not in strict:
            for value in (False, 0, 0.0, "", [], {}):
                assert model_config(FAMILIES[family] | {key: value}) == plain
    for key, values in NEUTRAL.items():
        for value in values:
            assert model_config(FAMILIES[family] | {key: value}) == plain
    same = {
        "n_layers": plain.num_layers,
        "d_model": plain.hidden_size,
        "query_pre_attn_scalar": float(plain.layers[0].attention.dim),
    }
    assert (
        model_config(FAMILIES[family] | same | {"attention_multiplier": plain.layers[0].attention.dim ** -0.5}) == plain
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_inert_keys_are_inert_whatever_they_hold(family: str) -> None:
    plain = model_config(FAMILIES[family])
    read_here = {"architectures", "model_type"}
    for value in (7, "x", [1], {"a": 1}, True):
        everything = dict.fromkeys((INERT | ELSEWHERE) - read_here, value)
        assert model_config(FAMILIES[family] | everything) == plain


WINDOWED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


def test_windows_where_the_family_has_none() -> None:
    off = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}
    assert model_config(LLAMA31 | off).windows == (None,) * 32
    assert model_config(LLAMA31 | {"layer_types": ["full_attention"] * 32, "sliding_window": 8})
    with pytest.raises(ModelError, match="sliding_window = 8"):
        model_config(LLAMA31 | {"sliding_window": 8})
    with pytest.raises(ModelError, match="layer_types"):
        model_config(LLAMA31 | {"layer_types": ["sliding_attention"] * 32, "sliding_window": 8})


def test_windows_of_mistral() -> None:
    with pytest.raises(ModelError, match="use_sliding_window = False"):
        model_config(MISTRAL1 | {"use_sliding_window": False})
    assert model_config(MISTRAL1 | WINDOWED).windows == (8,) * 32
    mixed = model_config(MISTRAL1 | {"layer_types": ["sliding_attention", "full_attention"] * 16})
    assert mixed.windows == (4096, None) * 16 and "layer_types" in mixed.notes[0]


@pytest.mark.parametrize("architecture", ARCHS)
def test_where_model_type_and_architecture_disagree_the_latter_counts_and_it_is_said(architecture: str) -> None:
    for family in FAMILIES:
        keys = {key: value for key, value in LLAMA2.items() if key != "hidden_act"}  # each family has its own
        sizes = make(ARCHS[architecture]).tiny()
        if {"kv_lora_rank", "position_embedding_type"} & sizes.keys():
            keys = sizes
        config = model_config(keys | {"architectures": [architecture], "model_type": family})
        assert config.family == ARCHS[architecture]
        said = [note for note in config.notes if "model_type" in note]
        assert bool(said) == (family != config.family) and all(family in note for note in said)
