"""Configurations whose decoder is a section of the file: GLM-ASR as it is published, and every way it can be wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from isobit.errors import ModelError
from isobit.legalize.memory import kv_bytes_per_token
from isobit.models.archs import WITHIN, family, model_config
from isobit.models.config import SelfAttention
from isobit.models.feed_forward import GatedMlp
from isobit.models.workload import workload

# As transformers 5 writes it for the published model.
GLMASR: dict[str, Any] = {
    "architectures": ["GlmAsrForConditionalGeneration"],
    "audio_config": {
        "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1280, "initializer_range": 0.02,
        "intermediate_size": 5120, "max_position_embeddings": 1500, "model_type": "glmasr_encoder",
        "num_attention_heads": 20, "num_hidden_layers": 32, "num_key_value_heads": 20, "num_mel_bins": 128,
        "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "rope_type": "default"},
    },
    "audio_token_id": 59260,
    "dtype": "bfloat16",
    "model_type": "glmasr",
    "projector_hidden_act": "gelu",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": [59246, 59253, 59255], "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "use_cache": True, "vocab_size": 59264,
    },
    "tie_word_embeddings": False,
    "transformers_version": "5.0.0.dev0",
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    """The published file with other keys; those of a section one by one."""
    found = copy.deepcopy(GLMASR)
    for key, value in changes.items():
        found[key] = {**found[key], **value} if isinstance(value, dict) and key in found else value
    return found


@pytest.mark.parametrize("name", WITHIN)
def test_a_family_within_is_one_file_and_one_line(name: str) -> None:
    config = model_config({"architectures": [name]} | family(WITHIN[name]).tiny())
    assert config.family == WITHIN[name]


def test_glm_asr_as_published() -> None:
    config = model_config(GLMASR)
    assert config.family == "glmasr" and config.notes == () and config.dtype == "bfloat16"
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (59264, 2048, 28)
    assert (config.norm_eps, config.max_context, config.tie_word_embeddings) == (1e-5, 8192, False)
    layer = config.layers[0]
    assert isinstance(layer.attention, SelfAttention) and layer.mlp == GatedMlp(6144)
    assert (layer.attention.heads, layer.attention.kv_heads, layer.attention.dim) == (16, 4, 128)
    assert kv_bytes_per_token(workload(GLMASR), "bfloat16") == 56 * 1024


def test_what_the_section_leaves_out_is_as_in_glm_asr_nano() -> None:
    bare = {"architectures": ["GlmAsrForConditionalGeneration"], "dtype": "bfloat16"}
    told = model_config(changed(tie_word_embeddings=True))
    assert model_config(bare) == model_config(bare | {"text_config": {"model_type": "llama"}}) == told
    assert model_config({"model_type": "glmasr", "dtype": "bfloat16"}) == told


def test_the_tie_is_the_whole_models() -> None:
    assert not model_config(changed(text_config={"tie_word_embeddings": True})).tie_word_embeddings
    tied = changed(tie_word_embeddings=True, text_config={"tie_word_embeddings": False})
    assert model_config(tied).tie_word_embeddings


def test_keys_of_the_decoder_may_stand_beside_it_if_they_say_the_same() -> None:
    assert model_config(changed(vocab_size=59264, hidden_size=2048)) == model_config(GLMASR)
    with pytest.raises(ModelError, match="config.json: hidden_size = 1024"):
        model_config(changed(hidden_size=1024))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text_config": {"model_type": "qwen3"}}, ("text_config", "model_type = 'qwen3'", "llama")),
        ({"text_config": {"num_attention_heads": 0}}, ("text_config", "num_attention_heads = 0")),
        ({"text_config": {"sliding_window": 9}}, ("text_config", "sliding_window = 9")),
        ({"text_config": [1]}, ("text_config = [1]", "expected an object")),
        ({"vision_config": {"depth": 2}}, ("vision_config", "beside text_config")),
        ({"n_layers": 3}, ("n_layers = 3", "text_config")),
        ({"attention_multiplier": 2.0}, ("attention_multiplier = 2.0",)),
        ({"tie_word_embeddings": "yes"}, ("tie_word_embeddings = 'yes'", "true or false")),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], said: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as error:
        model_config(changed(**wrong))
    assert all(part in str(error.value) for part in said)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ModelError) as error:
        model_config(changed(odd=1, text_config={"hidden_act": "relu", "head_dim": -1}))
    assert all(part in str(error.value) for part in ("odd = 1", "hidden_act = 'relu'", "head_dim = -1"))


def test_the_older_layout_is_refused_with_where_the_newer_is() -> None:
    older = {"architectures": ["GlmasrModel"], "model_type": "Glmasr", "whisper_config": {}, "lm_config": {}}
    with pytest.raises(ModelError) as error:
        model_config(older)
    said = str(error.value)
    assert all(part in said for part in ("GlmasrModel", "zai-org/GLM-ASR-Nano-2512", "GlmAsrForConditionalGeneration"))
