"""Reading config.json: old and new spellings, defaults of each family, and every way it can be wrong."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from isobit.errors import ModelError
from isobit.models.archs import ARCHS, WITHIN, family, model_config
from isobit.models.config import LayerSpec, ModelConfig, SelfAttention
from isobit.models.feed_forward import GatedMlp
from isobit.models.others import OTHERS, Other, why_not
from isobit.models.rotary import Rope
from isobit.models.wrappers import WRAPPERS

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
# What a family needs besides, as its tiny model has it.
OWN = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def read(arch: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    sizes = family(ARCHS[arch]).tiny() if arch in ARCHS else {}
    own = {key: sizes[key] for key in OWN if key in sizes}
    return model_config(BASE | own | {"architectures": [arch]} | changes)


@pytest.mark.parametrize(("arch", "name"), ARCHS.items())
def test_a_family_is_one_file_and_one_line(arch: str, name: str) -> None:
    module = family(name)
    config = model_config({"architectures": [arch]} | module.tiny())
    assert callable(module.from_hf) and config.family == name


def rope_of(config: ModelConfig) -> Rope:
    return config.layers[0].attention.rope


def test_defaults_of_llama() -> None:
    config = read()
    assert config.layers == (LayerSpec(SelfAttention(4, 4, 16), GatedMlp(96)),) * 4
    assert (config.norm_eps, config.norm_offset, config.embedding_factor, config.logit_softcap) == (1e-6, 0, 1, None)
    assert not config.tie_word_embeddings


def test_old_and_new_rope_spellings_are_one() -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    old = read(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | numbers)
    older = read(rope_theta=5e5, rope_scaling={"type": "llama3"} | numbers)
    new = read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | numbers)
    assert rope_of(old) == rope_of(older) == rope_of(new) == Rope("llama3", 5e5, 8.0, 32, 1.0, 4.0)


def test_the_first_name_of_longrope_is_read_as_it() -> None:
    scaling = {"short_factor": [1.05] * 8, "long_factor": [1.5] * 8}
    sizes = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
    first, later = (
        read("Phi3ForCausalLM", rope_scaling={"type": name} | scaling, **sizes) for name in ("su", "longrope")
    )
    assert rope_of(first) == rope_of(later)
    assert (rope_of(first).kind, rope_of(first).original_context) == ("longrope", 32)


@pytest.mark.parametrize("arch", ["MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_a_null_number_of_key_value_heads_is_that_of_the_heads(arch: str) -> None:
    assert read(arch, num_key_value_heads=None).layers[0].attention.kv_heads == 4


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [({}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"), ({"dtype": "torch.float32"}, "float32"),
     ({"dtype": None, "torch_dtype": "half"}, "float16"), ({"dtype": "float16", "torch_dtype": "float32"}, "float16")],
)  # fmt: skip
def test_the_dtype_in_old_and_new_spelling(keys: dict[str, Any], dtype: str) -> None:
    assert read(**keys).dtype == dtype


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
        model_config({name: value for name, value in BASE.items() if name != key})


@pytest.mark.parametrize("kind", ["ntk", "mrope", "proportional", 7, ["yarn"]])
def test_an_unknown_rope_type_is_refused(kind: Any) -> None:
    with pytest.raises(ModelError, match="rope type .* default, linear, llama3, yarn"):
        read(rope_scaling={"rope_type": kind, "factor": 2.0})


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "truncate"),
        ({"rope_type": "yarn", "factor": "4.0"}, "factor"),
        ({"rope_type": "yarn", "factor": 10**400}, "factor"),
        ({"rope_type": "yarn", "factor": math.nan}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1e-320}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": -1}, "beta_slow"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": "1"}, "mscale"),
        ({"rope_type": "yarn", "factor": 4.0, "attn_factor": 1.5}, "attn_factor"),
        ({"rope_type": "default", "factor": 8.0}, "factor"),
        ({"rope_type": "linear", "factor": 4.0, "beta_fast": 32}, "beta_fast"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
        ({"rope_type": "yarn", "factor": 4.0, "mrope_section": [1, 2, 3]}, "mrope_section"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.5, "high_freq_factor": 4.0}, "low_freq_factor"),
    ],
)
def test_bad_rope_parameters_are_named(scaling: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        read(rope_scaling=scaling)


KINDS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "linear": {"partial_rotary_factor": 1.0},
    "llama3": {"partial_rotary_factor": 1},
    "yarn": {
        "beta_fast": 32,
        "beta_slow": 1.0,
        "attention_factor": 0.1 * math.log(4) + 1,
        "mscale": 0,
        "truncate": True,
    },
}


# Keys and defaults that others have not: their own tests.
OWN_ROPE = {
    "Gemma3ForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "GlmForCausalLM", "GraniteMoeHybridForCausalLM",
    "MellumForCausalLM", "Ministral3ForCausalLM", "NemotronForCausalLM", "Olmo3ForCausalLM", "Phi3ForCausalLM",
    "PhiForCausalLM", "PhimoeForCausalLM", "StableLmForCausalLM",
}  # fmt: skip


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch not in OWN_ROPE])
@pytest.mark.parametrize("kind", KINDS)
def test_rope_in_both_spellings_that_agree_is_read(arch: str, kind: str) -> None:
    new = KINDS[kind] | {"rope_type": kind, "rope_theta": 5e5}
    whole = {key: int(value) for key, value in KINDS[kind].items()}
    heads = {"num_key_value_heads": 4} | ({"head_dim": 16} if arch == "HeliumForCausalLM" else {})  # 128 by itself
    wanted = rope_of(read(arch, **heads, rope_parameters=new))
    for scaling in (
        KINDS[kind] | {"type": kind},
        KINDS[kind] | {"rope_type": kind, "type": kind},
        whole | {"type": kind},
        DEFAULTS[kind] | KINDS[kind] | {"rope_type": kind, "rope_theta": 500000},
    ):
        for parameters in (None, new, new | DEFAULTS[kind], whole | {"rope_type": kind}, {}):
            beside = {"rope_theta": 500000, "rope_scaling": scaling, "rope_parameters": parameters}
            rope = rope_of(read(arch, **heads, **beside))
            assert replace(rope, attention_factor=None) == wanted and rope.scale == pytest.approx(wanted.scale)
    assert rope_of(read(arch, **heads, rope_parameters=new, rope_theta=5e5, rope_scaling=None)) == wanted


OLD, NEW = KINDS["yarn"] | {"type": "yarn"}, KINDS["yarn"] | {"rope_type": "yarn"}
DISAGREEMENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "kinds": ({"rope_scaling": OLD, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
              ("rope_type yarn against linear",)),
    "default": ({"rope_scaling": OLD, "rope_parameters": {"rope_type": "default"}},
                ("rope_type yarn against default",)),
    "factors": ({"rope_scaling": OLD, "rope_parameters": NEW | {"factor": 2.0}}, ("factor 4.0 against 2.0",)),
    "contexts": ({"rope_scaling": OLD, "rope_parameters": NEW | {"original_max_position_embeddings": 64}},
                 ("original_max_position_embeddings 32 against 64",)),
    "betas": ({"rope_scaling": OLD, "rope_parameters": NEW | {"beta_fast": 16}}, ("beta_fast 32.0 against 16.0",)),
    "attention": ({"rope_scaling": OLD, "rope_parameters": NEW | {"mscale": 1.0, "mscale_all_dim": 1.0}},
                  ("attention_factor 1.1386", "against 1.0")),
    "truncation": ({"rope_scaling": OLD, "rope_parameters": NEW | {"truncate": False}},
                   ("truncate True against False",)),
    # transformers takes rope_scaling with the rope_theta beside it, which is 10000 where there is none
    "theta in one": ({"rope_scaling": OLD, "rope_parameters": NEW | {"rope_theta": 5e5}},
                     ("rope_theta 10000.0 against 500000.0",)),
    "theta beside": ({"rope_theta": 1e6, "rope_scaling": OLD | {"rope_theta": 5e5}}, ("500000.0", "1000000.0")),
    "theta beside new": ({"rope_theta": 1e6, "rope_parameters": NEW | {"rope_theta": 5e5}}, ("500000.0", "1000000.0")),
    "context beside": ({"original_max_position_embeddings": 64, "rope_scaling": OLD}, ("= 32", "= 64")),
    "names": ({"rope_scaling": OLD | {"rope_type": "linear"}}, ("rope_type 'linear'", "type 'yarn'")),
}  # fmt: skip


@pytest.mark.parametrize("name", DISAGREEMENTS)
def test_ropes_that_disagree_are_refused_with_both_values(name: str) -> None:
    changes, named = DISAGREEMENTS[name]
    with pytest.raises(ModelError) as error:
        read(**changes)
    assert all(part in str(error.value) for part in named)


@pytest.mark.parametrize(
    ("rope", "said", "allowed"),
    [
        # Qwen's recipe, as it stands in its READMEs and as people write it
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 40960, 131072),
        ({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}, 131072, 131072),
        ({"rope_type": "yarn", "factor": 4.0}, 32768, 131072),
        ({"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 32768}, 32768, 81920),
        ({"rope_type": "yarn", "factor": 1.5, "original_max_position_embeddings": 1000}, 32768, 32768),
        ({"rope_type": "yarn", "factor": 1e6, "original_max_position_embeddings": 1 << 30}, 32768, 1 << 30),
        ({"type": "linear", "factor": 4.0}, 4096, 16384),  # Vicuna 16k; DeepSeek-Coder writes 16384 for the same
        ({"type": "linear", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384, 16384),
        (KINDS["llama3"] | {"rope_type": "llama3", "original_max_position_embeddings": 8192}, 131072, 131072),
        (KINDS["llama3"] | {"rope_type": "llama3", "original_max_position_embeddings": 8192}, 8192, 8192),
        ({"rope_type": "default"}, 4096, 4096),
    ],
)
def test_the_longest_context(rope: dict[str, Any], said: int, allowed: int) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        config = read("Qwen3ForCausalLM", num_key_value_heads=4, max_position_embeddings=said, **{key: rope})
        assert config.max_context == allowed and config.max_position_embeddings == said
        assert bool(config.notes) == (said != allowed) and all(str(allowed) in note for note in config.notes)


def test_a_context_beside_the_rope_is_read_as_one_within() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    inside = read(rope_scaling=yarn | {"original_max_position_embeddings": 32})
    assert rope_of(read(rope_scaling=yarn, original_max_position_embeddings=32)) == rope_of(inside)


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
        model_config(BASE | {"architectures": names})


OTHER_FAMILIES = (
    "MixtralForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3_5ForCausalLM"
    " Qwen4ForCausalLM QwenForCausalLM Llama4ForCausalLM LlamaModel LlamaForSequenceClassification"
    " LlamaForTokenClassification MistralModel Mistral3ForConditionalGeneration"
    " MinistralForCausalLM Mistral4ForCausalLM MistralForSequenceClassification GemmaForCausalLM GlmForCausalLM"
    " Olmo2ForCausalLM Qwen2VLForConditionalGeneration LlamaForCausalLMEagle3"
    " xLlamaForCausalLM"
).split()
MISSPELT = {
    "LLaMAForCausalLM": "LlamaForCausalLM", "llamaforcausallm": "LlamaForCausalLM", "Llama": "LlamaForCausalLM",
    "LlamaForCasualLM": "LlamaForCausalLM", "MistralForCausalLLM": "MistralForCausalLM",
    "mistral": "MistralForCausalLM",
    "QWen2ForCausalLM": "Qwen2ForCausalLM", "qwen3_for_causal_lm": "Qwen3ForCausalLM", "Qwen2": "Qwen2ForCausalLM",
}  # fmt: skip


RUN = ARCHS.keys() | WITHIN.keys() | WRAPPERS.keys()
UNKNOWN = [name for name in OTHER_FAMILIES if name not in RUN and why_not(name, ARCHS) is None]


@pytest.mark.parametrize("name", [*UNKNOWN, "", "x" * 100_000, "Llama\x1b[31m"])
def test_another_architecture_gets_the_list_and_no_guess(name: str) -> None:
    with pytest.raises(ModelError, match="isobit runs .*, Llama, .*, Qwen3,") as error:
        read(name)
    said = str(error.value)
    assert all(re.search(rf"\b{one.removesuffix('ForCausalLM')}\b", said) for one in ARCHS)
    assert "mean" not in said and len(said) < 1000 and said.isprintable()


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.called)
def test_families_of_other_kinds_are_refused_with_what_runs_them(other: Other) -> None:
    for name in other.names:
        assert name not in ARCHS
        with pytest.raises(ModelError) as error:
            read(name)
        said = str(error.value)
        assert all(part in said for part in (other.called, name, other.has, other.runs)) and len(said) < 400
        assert (other.nearest in ARCHS) == ("nearest that isobit runs is" in said)


def test_no_architecture_is_refused_twice() -> None:
    names = [name for other in OTHERS for name in other.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
def test_a_misspelt_architecture_gets_the_right_name(name: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"Did you mean {meant}\\?"):
        read(name)


def test_model_type_alone_is_enough() -> None:
    assert model_config({k: v for k, v in BASE.items() if k != "architectures"} | {"model_type": "llama"}).family


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"attn_logit_softcapping": 0.0}, "attn_logit_softcapping = 0.0"),
     ({"final_logit_softcapping": 0}, "final_logit_softcapping = 0: expected"),
     ({"query_pre_attn_scalar": 1e-80}, "query_pre_attn_scalar = 1e-80"),
     ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"), ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
     ({"sliding_window_size": 7}, "sliding_window_size")],
)  # fmt: skip
def test_what_gemma_2_cannot_mean(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        read("Gemma2ForCausalLM", **({"sliding_window": 8, "num_key_value_heads": 2} | keys))


def test_gemma_2_without_caps_and_with_its_own() -> None:
    plain = read("Gemma2ForCausalLM", num_key_value_heads=2, attn_logit_softcapping=None, final_logit_softcapping=None)
    usual = read("Gemma2ForCausalLM", num_key_value_heads=2)
    assert plain.logit_softcap is None and plain.layers[0].attention.softcap is None
    assert usual.logit_softcap == 30.0 and usual.layers[0].attention.softcap == 50.0
    assert usual.windows == (4096, None, 4096, None) and usual.layers[0].attention.scale == 256**-0.5
    assert usual.tie_word_embeddings and usual.norm_offset == 1.0 and usual.embedding_factor == 8.0
