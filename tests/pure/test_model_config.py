"""Reading config.json: old and new spellings, defaults of each family, and every way it can be wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from isobit.errors import ModelError
from isobit.models.archs import ARCHS, family
from isobit.models.config import ModelConfig, Rope

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


def read(arch: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    return ModelConfig.from_hf(BASE | {"architectures": [arch]} | changes)


@pytest.mark.parametrize(("arch", "name"), ARCHS.items())
def test_a_family_is_one_file_and_one_line(arch: str, name: str) -> None:
    module = family(name)
    config = ModelConfig.from_hf({"architectures": [arch]} | module.tiny())
    assert callable(module.from_hf) and config.family == name


def test_defaults_of_llama() -> None:
    config = read()
    assert (config.num_kv_heads, config.head_dim, config.norm_eps) == (4, 16, 1e-6)
    assert config.rope == Rope() and config.windows == (None,) * 4
    assert not (config.tie_word_embeddings or config.qkv_bias or config.o_bias or config.mlp_bias)


def test_old_and_new_rope_spellings_are_one() -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = read(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | numbers)
    older = read(rope_theta=5e5, rope_scaling={"type": "llama3"} | numbers)
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | numbers)
    assert old.rope == older.rope == new.rope == Rope("llama3", 5e5, 8.0, 32, 1.0, 4.0)


@pytest.mark.parametrize("arch", ["MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_a_null_number_of_key_value_heads_is_that_of_the_heads(arch: str) -> None:
    assert read(arch, num_key_value_heads=None).num_kv_heads == 4


def test_windows() -> None:
    qwen = {"sliding_window": 8, "max_window_layers": 3, "num_key_value_heads": 2}
    assert read("MistralForCausalLM", sliding_window=8, num_key_value_heads=2).windows == (8,) * 4
    assert read("MistralForCausalLM", sliding_window=None, num_key_value_heads=2).windows == (None,) * 4
    assert read("Qwen2ForCausalLM", **qwen).windows == (None,) * 4
    assert read("Qwen2ForCausalLM", use_sliding_window=True, **qwen).windows == (None, None, None, 8)
    types = ["sliding_attention", "full_attention"] * 2
    assert read("Qwen3ForCausalLM", use_sliding_window=True, layer_types=types, **qwen).windows == (8, None) * 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"), ("hidden_size", 0), ("hidden_size", -64), ("hidden_size", 1 << 40),
        ("hidden_size", True), ("hidden_size", 64.0), ("hidden_size", 66), ("vocab_size", []),
        ("num_hidden_layers", 10**9), ("num_key_value_heads", 3), ("num_key_value_heads", 8), ("head_dim", 15),
        ("rms_norm_eps", math.nan), ("rms_norm_eps", "small"), ("rope_theta", math.inf), ("rope_theta", 1.0),
        ("tie_word_embeddings", "yes"), ("attention_bias", 1), ("hidden_act", "gelu"), ("hidden_act", ["silu"]),
        ("partial_rotary_factor", 0.5), ("text_config", {"hidden_size": 64}), ("rope_scaling", "linear"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=key):
        read(**{key: value})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelError, match=f"{key} is missing"):
        ModelConfig.from_hf({name: value for name, value in BASE.items() if name != key})


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "mrope", "proportional", 7, ["yarn"]])
def test_an_unknown_rope_type_is_refused(kind: Any) -> None:
    with pytest.raises(ModelError, match="rope type .* default, linear, llama3, yarn"):
        read(rope_scaling={"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "mrope_section": [1, 2, 3]}, "mrope_section"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "low_freq_factor"),
    ],
)
def test_bad_rope_parameters_are_named(scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        read(rope_scaling=scaling)


def test_two_rope_sections_that_disagree_are_refused() -> None:
    with pytest.raises(ModelError, match="rope_scaling.*rope_parameters"):
        read(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default"})


@pytest.mark.parametrize(
    ("types", "window"),
    [
        (["chunked_attention"] * 4, 8),
        ("full_attention", 8),
        (["full_attention"] * 3, 8),
        (["sliding_attention"] * 4, None),
    ],
)
def test_bad_layer_types(types: Any, window: int | None) -> None:
    with pytest.raises(ModelError, match="layer.types"):
        read("Qwen3ForCausalLM", layer_types=types, use_sliding_window=True, sliding_window=window,
             num_key_value_heads=2)  # fmt: skip


@pytest.mark.parametrize("names", [[], "LlamaForCausalLM", [3], ["LlamaForCausalLM", "Qwen2ForCausalLM"]])
def test_bad_architectures(names: Any) -> None:
    with pytest.raises(ModelError, match="architectures"):
        ModelConfig.from_hf(BASE | {"architectures": names})


OTHER_FAMILIES = (
    "MixtralForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3_5ForCausalLM"
    " Qwen4ForCausalLM QwenForCausalLM Llama4ForCausalLM LlamaModel LlamaForSequenceClassification"
    " LlamaForTokenClassification MistralModel Mistral3ForConditionalGeneration Ministral3ForCausalLM"
    " MinistralForCausalLM Mistral4ForCausalLM MistralForSequenceClassification GemmaForCausalLM GlmForCausalLM"
    " Olmo2ForCausalLM Qwen2VLForConditionalGeneration LlamaForCausalLMEagle3 SmolLM3ForCausalLM"
    " xLlamaForCausalLM"
).split()
MISSPELT = {
    "LLaMAForCausalLM": "LlamaForCausalLM", "llamaforcausallm": "LlamaForCausalLM", "Llama": "LlamaForCausalLM",
    "LlamaForCasualLM": "LlamaForCausalLM", "MistralForCausalLLM": "MistralForCausalLM",
    "mistral": "MistralForCausalLM",
    "QWen2ForCausalLM": "Qwen2ForCausalLM", "qwen3_for_causal_lm": "Qwen3ForCausalLM", "Qwen2": "Qwen2ForCausalLM",
}  # fmt: skip


@pytest.mark.parametrize("name", [*OTHER_FAMILIES, "", "x" * 100_000, "Llama\x1b[31m"])
def test_another_architecture_gets_the_list_and_no_guess(name: str) -> None:
    with pytest.raises(ModelError, match="isobit runs LlamaForCausalLM, .*, Qwen3ForCausalLM") as error:
        read(name)
    assert "mean" not in str(error.value) and len(str(error.value)) < 400 and str(error.value).isprintable()


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
def test_a_misspelt_architecture_gets_the_right_name(name: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"Did you mean {meant}\\?"):
        read(name)


def test_model_type_alone_is_enough() -> None:
    assert ModelConfig.from_hf({k: v for k, v in BASE.items() if k != "architectures"} | {"model_type": "llama"}).family
