"""HunyuanOCR's config.json in both layouts: flat as 1.0 is, with sections as 1.5 is and transformers writes it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from isobit.errors import ModelError
from isobit.legalize.memory import kv_bytes_per_token
from isobit.models.archs import model_config
from isobit.models.blueprint import expected_tensors
from isobit.models.config import SelfAttention
from isobit.models.feed_forward import GatedMlp
from isobit.models.rotary import Rope
from isobit.models.workload import workload

VISION: dict[str, Any] = {
    "add_patchemb_bias": True, "attention_dropout": 0.0, "cat_extra_token": 1, "hidden_act": "gelu",
    "hidden_dropout": 0.0, "hidden_size": 1152, "img_max_token_num": 4096, "intermediate_size": 4304,
    "interpolate_mode": "bilinear", "max_image_size": 2048, "max_vit_seq_len": 16384, "num_attention_heads": 16,
    "num_channels": 3, "num_hidden_layers": 27, "out_hidden_size": 1024, "patch_size": 16, "rms_norm_eps": 1e-05,
    "spatial_merge_size": 2,
}  # fmt: skip
FLAT: dict[str, Any] = {
    "architectures": ["HunYuanVLForConditionalGeneration"], "attention_bias": False, "attention_dropout": 0.0,
    "attention_head_dim": 128, "bos_token_id": 120000, "dtype": "bfloat16", "eod_token_id": 120020,
    "eos_token_id": 120020, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "image_end_token_id": 120119,
    "image_newline_token_id": 120121, "image_start_token_id": 120118, "image_token_id": 120120,
    "initializer_range": 0.02, "intermediate_size": 3584, "max_position_embeddings": 32768, "mlp_bias": False,
    "model_type": "hunyuan_vl", "norm_type": "rms", "num_attention_heads": 16, "num_experts": 1,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "org_vocab_size": 120818, "pad_id": 120002, "pad_token_id": -1,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "type": "xdrope", "xdrope_section": [16, 16, 16, 16],
    },
    "rope_theta": 10000.0, "routed_scaling_factor": 1.0, "sep_token_id": 0, "text_end_id": 8, "text_start_id": 7,
    "tie_word_embeddings": True, "use_cache": True, "use_cla": False, "use_qk_norm": True, "vision_config": VISION,
    "vocab_size": 120818,
}  # fmt: skip
NESTED: dict[str, Any] = {
    "architectures": ["HunYuanVLForConditionalGeneration"], "dtype": "bfloat16", "im_end_id": 120119,
    "im_newline_id": 120121, "im_start_id": 120118, "image_token_id": 120120, "model_type": "hunyuan_vl",
    "text_config": {
        "attention_bias": False, "bos_token_id": 120000, "dtype": "bfloat16", "eos_token_id": 120020, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3584, "max_position_embeddings": 131072,
        "model_type": "hunyuan_vl_text", "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "alpha": 1000.0, "factor": 1.0, "mrope_section": [16, 16, 16, 16], "rope_theta": 10000.0,
            "rope_type": "dynamic", "type": "dynamic",
        },
        "tie_word_embeddings": True, "vocab_size": 120818,
    },
    "tie_word_embeddings": True, "vision_config": VISION | {"model_type": "hunyuan_vl_vision"},
}  # fmt: skip


def flat(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(FLAT) | changes


def nested(**changes: Any) -> dict[str, Any]:
    """The newer layout with other keys of its decoder."""
    found = copy.deepcopy(NESTED)
    found["text_config"] |= changes
    return found


def test_both_layouts_are_one_model() -> None:
    one, other = model_config(FLAT), model_config(nested(max_position_embeddings=32768))
    assert one == other and one.family == "hunyuan_vl" and one.notes == other.notes == ()
    assert (one.hidden_size, one.num_layers, one.vocab_size, one.norm_eps) == (1024, 24, 120818, 1e-5)
    assert (one.max_context, one.tie_word_embeddings, one.dtype) == (32768, True, "bfloat16")
    assert model_config(NESTED).max_context == 131072
    attention = one.layers[0].attention
    assert isinstance(attention, SelfAttention) and one.layers[0].mlp == GatedMlp(3584)
    assert (attention.heads, attention.kv_heads, attention.dim, attention.qk_norm) == (16, 8, 128, "head-behind")
    assert attention.qk_names == ("query_layernorm", "key_layernorm") and attention.rope is not None
    assert math.isclose(attention.rope.theta, 1e4 * 1000 ** (128 / 126)) and attention.rope.kind == "default"
    assert attention.rope.sections == (16,) * 4 and attention.rope.section_layout == "columns"


@pytest.mark.parametrize("config", [FLAT, NESTED], ids=["flat", "nested"])
def test_sizes_of_the_published_model(config: dict[str, Any]) -> None:
    shapes = expected_tensors(model_config(config))
    assert sum(math.prod(shape) for shape in shapes.values()) == 539_010_048  # of 0.996 billion; the rest sees
    assert kv_bytes_per_token(workload(config), "bfloat16") == 96 * 1024


def rope(config: dict[str, Any]) -> Rope | None:
    return model_config(config).layers[0].attention.rope


def test_spellings_of_the_rope() -> None:
    sections = {"alpha": 1000.0, "xdrope_section": [16, 16, 16, 16]}
    usual = rope(FLAT)
    for names in ({"type": "xdrope"}, {"rope_type": "dynamic"}, {"rope_type": "dynamic", "type": "xdrope"}):
        assert rope(flat(rope_scaling=sections | names)) == usual
    plain = rope(flat(rope_scaling=sections | {"type": "xdrope", "alpha": 1.0}))
    assert plain is not None and plain.theta == 10000.0
    with pytest.raises(ModelError, match="rope type 'xdrope' is not implemented"):  # transformers: dynamic, by length
        rope(flat(rope_scaling={"type": "xdrope", "xdrope_section": [16, 16, 16, 16]}))


def test_other_names_of_keys_count_where_these_are_absent() -> None:
    bare = {key: value for key, value in FLAT.items() if key not in ("head_dim", "vocab_size")}
    assert model_config(bare) == model_config(FLAT)
    assert (
        model_config(bare | {"attention_head_dim": 128}).layers[0].attention == model_config(FLAT).layers[0].attention
    )


def test_keys_that_transformers_leaves_in_the_file_are_the_decoders() -> None:
    left = {key: FLAT[key] for key in ("norm_type", "num_experts", "routed_scaling_factor", "use_qk_norm", "use_cla")}
    assert model_config(NESTED | left) == model_config(NESTED)
    with pytest.raises(ModelError, match="use_cla = True"):
        model_config(NESTED | left | {"use_cla": True})


def test_the_tie_is_the_whole_models_or_the_decoders() -> None:
    assert not model_config(nested(tie_word_embeddings=False) | {"tie_word_embeddings": False}).tie_word_embeddings
    assert model_config(NESTED | {"tie_word_embeddings": False}).tie_word_embeddings
    assert model_config(nested(tie_word_embeddings=False)).tie_word_embeddings


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (flat(attention_head_dim=64), "attention_head_dim = 64"),
        (flat(org_vocab_size=7), "org_vocab_size = 7"),
        (flat(num_experts=8), "num_experts = 8"),
        (flat(text_config=[]), "text_config = []"),
        (flat(odd=1), "config.json: odd = 1"),
        (flat(vocab_size=None, org_vocab_size=None), "config.json: vocab_size is missing"),
        (nested(use_qk_norm=False), "text_config: use_qk_norm = False"),
        (nested(model_type="qwen3"), "model_type = 'qwen3'"),
        (nested(hidden_act="gelu"), "hidden_act = 'gelu'"),
        (NESTED | {"odd": 1}, "odd = 1"),
        (flat(rope_scaling={"type": "xdrope", "alpha": 9.0}), "no mrope_section of 3 axes"),
        (flat(rope_scaling={"type": "xdrope", "alpha": 9.0, "xdrope_section": [32, 32]}), "no mrope_section of 3"),
        (flat(rope_scaling={"type": "xdrope", "alpha": 9.0, "xdrope_section": [16, 16, 16]}), "that make 64"),
        (flat(vision_config=VISION | {"num_channels": 4}), "vision_config: num_channels = 4"),
        (flat(vision_config=VISION | {"interpolate_mode": "area"}), "vision_config: interpolate_mode = 'area'"),
        (
            flat(vision_config=VISION | {"num_attention_heads": 7}),
            "hidden_size = 1152: is not a multiple",
        ),
        (flat(vision_config=VISION | {"patch_size": 0}), "vision_config: patch_size = 0"),
        (flat(vision_config=VISION | {"max_image_size": 8}), "vision_config: max_image_size = 8"),
        (flat(vision_config=[]), "vision_config = []"),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as error:
        model_config(config)
    assert said in str(error.value)
