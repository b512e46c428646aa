"""Keys of config.json that contradict each other: refused by name with what stands against them, or what counts."""

from __future__ import annotations

from typing import Any

import pytest

from isobit.errors import ModelError
from isobit.models.archs import ARCHS, family, model_config
from isobit.models.config import ModelConfig
from isobit.models.feed_forward import Experts


def read(name: str, **changes: Any) -> ModelConfig:
    architecture = next(one for one, file in ARCHS.items() if file == name)
    return model_config({"architectures": [architecture], "model_type": name, **family(name).tiny(), **changes})


def sparse(config: ModelConfig) -> list[int]:
    """Layers with experts."""
    return [number for number, layer in enumerate(config.layers) if isinstance(layer.mlp, Experts)]


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt_oss", {"experts_per_token": 3}, "experts_per_token = 3: num_experts_per_tok is 2"),
    ("gpt_oss", {"experts_per_token": "2"}, "experts_per_token = '2'"),
    ("gpt_oss", {"initial_context_length": 4096}, "initial_context_length = 4096: original_max_position_embeddings is"),
    ("gpt_oss", {"num_experts_per_tok": 6}, "num_experts_per_tok = 6: there are 5 experts"),
    ("gpt_oss", {"num_experts": 6}, "num_local_experts = 5: num_experts says 6"),
    *((name, {"first_k_dense_replace": 4}, "first_k_dense_replace = 4: there are only 3 layers")
      for name in ("deepseek_v2", "deepseek_v3", "glm4_moe")),
    ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse"]}, "mlp_layer_types"),
    ("exaone_moe", {"mlp_layer_types": ["dense"]}, "mlp_layer_types .* expected one for each of 3 layers, found 1"),
    ("exaone_moe", {"mlp_layer_types": ["x"] * 3}, "mlp_layer_types .* dense and sparse"),
    ("exaone_moe", {"is_moe_layer": [True] * 3}, "is_moe_layer"),
    ("hy_v3", {"mlp_layer_types": "dense"}, "mlp_layer_types"),
    ("jais2", {"num_experts": 4}, "num_experts"),
    ("solar_open", {"first_k_dense_replace": 1}, "first_k_dense_replace"),
    ("solar_open", {"topk_group": 2}, "topk_group = 2: there are 1 groups"),
    ("dots1", {"use_sliding_window": False}, "use_sliding_window = False"),
    ("mellum", {"rope_parameters": {"rope_type": "default"}}, "rope_type"),
    *((name, {"mlp_only_layers": listed}, "mlp_only_layers .* there is no layer")
      for name in ("qwen2_moe", "qwen3_moe") for listed in ([99], [0, -1])),
    ("qwen3_moe", {"mlp_only_layers": ["0"]}, "mlp_only_layers .* whole numbers"),
    ("llama4_text", {"moe_layers": [1, 4]}, "moe_layers .* there is no layer 4"),
    ("ernie4_5_moe", {"moe_layer_start_index": 4}, "moe_layer_start_index = 4: there are only 3"),
    ("ernie4_5_moe", {"moe_layer_end_index": 3}, "moe_layer_end_index = 3: there is no such layer"),
    ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_layer_end_index": 0}, "moe_layer_end_index = 0: is in front"),
    ("ministral3", {"sliding_window": 0}, "sliding_window = 0"),
    ("gemma2", {"layer_types": ["sliding_attention"]}, "layer_types .* expected one for each of 2 layers, found 1"),
    ("llama", {"num_attention_heads": [5, 5]}, "num_attention_heads"),
    ("llama", {"num_key_value_heads": 4}, "num_attention_heads = 10: is not a multiple of num_key_value_heads = 4"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "said"), CONTRADICTIONS)
def test_contradictions_are_refused_by_name(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read(name, **changes)


def test_keys_that_say_the_same_twice_are_read() -> None:
    plain = read("gpt_oss")
    assert read("gpt_oss", experts_per_token=2, initial_context_length=64).layers == plain.layers
    assert sparse(read("deepseek_v3", first_k_dense_replace=3)) == []
    assert sparse(read("ernie4_5_moe", moe_layer_start_index=1, moe_layer_end_index=1)) == [1]
    types = ["dense", "dense", "sparse"]  # counts for more than the number, which transformers writes beside it
    assert sparse(read("exaone_moe", mlp_layer_types=types, first_k_dense_replace=1)) == [2]
    assert sparse(read("exaone_moe")) == [1, 2] and sparse(read("hy_v3", mlp_layer_types=types)) == [2]
    assert sparse(read("llama4_text", moe_layers=[0, 3])) == [0, 3]
    assert sparse(read("qwen3_moe", mlp_only_layers=[2, 2])) == [0, 1]
