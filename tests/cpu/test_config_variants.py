"""Keys that people publish, in every spelling: a plan with as many parameters as transformers' model, or a refusal."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from isobit.errors import IsobitError
from isobit.models.archs import ARCHS, family
from isobit.models.planning import plans

Config = dict[str, Any]
QUICK = ("DeepseekV3ForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
WALKED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHS]


def old(**scaling: Any) -> Callable[[Config], Config]:
    """Rotary embeddings as they were spelled before transformers 5."""

    def change(config: Config) -> Config:
        now = config.pop("rope_parameters", None) or {}
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in now:
                config[key] = now[key]
        return config | {"rope_scaling": scaling or None}

    return change


def without(*keys: str) -> Callable[[Config], Config]:
    return lambda config: {key: value for key, value in config.items() if key not in keys}


VARIANTS: dict[str, Callable[[Config], Config]] = {
    "as it is": lambda config: config,
    "old rope": old(),
    "old yarn": old(type="yarn", factor=4.0, original_max_position_embeddings=4096),
    "old llama3": old(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=8192),
    "old linear": old(type="linear", rope_type="linear", factor=4.0),
    "heads of 128": lambda config: config | {"head_dim": 128},
    "head_dim null": lambda config: config | {"head_dim": None},
    "no head_dim": without("head_dim"),
    "tied": lambda config: config | {"tie_word_embeddings": True},
    "not tied": lambda config: config | {"tie_word_embeddings": False},
    "a window": lambda config: without("layer_types")(config) | {"sliding_window": 4096},
    "no window": lambda config: config | {"sliding_window": None},
    "biases": lambda config: config | {"attention_bias": True, "mlp_bias": True},
    "half of heads rotated": lambda config: config | {"partial_rotary_factor": 0.5},
    "no key-value heads": without("num_key_value_heads"),
    "all key-value heads": lambda config: config | {"num_key_value_heads": config["num_attention_heads"]},
    "few keys": lambda config: {
        key: value for key, value in config.items() if "size" in key or "num" in key or "arch" in key or "max" in key
    },
}  # fmt: skip


def counted(config: Config) -> int | None:
    """Numbers of transformers' model, and of what its routers add; None where it has none."""
    cls = getattr(transformers, config["architectures"][0])
    try:
        with torch.device("meta"):
            model = cls(cls.config_class.from_dict(copy.deepcopy(config)))
    except Exception:
        return None
    buffers = {name: part for name, part in model.named_buffers() if name.endswith("e_score_correction_bias")}
    return sum(part.numel() for part in [*model.parameters(), *buffers.values()])


def planned(config: Config) -> int | None:
    """Numbers of the plan; None where isobit refuses, in its own words."""
    try:
        return plans(config, targets=["a6000"], scheme_names=["bf16"], calibration=False)[0].parameters
    except IsobitError as error:
        assert str(error).strip()
        return None


def tiny(architecture: str) -> Config:
    cls = getattr(transformers, architecture)
    made = cls.config_class(**family(ARCHS[architecture]).tiny()).to_dict()
    return dict(json.loads(json.dumps(made, default=str)), architectures=[architecture])


@pytest.mark.parametrize("architecture", WALKED)
def test_as_many_numbers_or_a_refusal(architecture: str) -> None:
    base = tiny(architecture)
    assert planned(base) == counted(base) is not None
    for name, change in VARIANTS.items():
        config = change(copy.deepcopy(base))
        ours, theirs = planned(config), counted(config)
        assert ours is None or theirs is None or ours == theirs, (name, ours, theirs)
    assert planned(without("hidden_size")(base)) is planned(base | {"vocab_size": "many"}) is None


@pytest.mark.parametrize("architecture", ["HeliumForCausalLM", "OlmoeForCausalLM", "StableLmForCausalLM"])
def test_heads_that_share_the_width_of_a_model_have_no_other(architecture: str) -> None:
    base = tiny(architecture)
    width = base["hidden_size"] // base["num_attention_heads"]
    assert planned(base | {"head_dim": width}) == counted(base)
    with pytest.raises(IsobitError, match=f"head_dim = {2 * width}: .* heads of {2 * width} are not the"):
        plans(base | {"head_dim": 2 * width}, targets=["a6000"], scheme_names=["bf16"])


@pytest.mark.slow
def test_what_transformers_takes_for_usual_is_planned_or_refused() -> None:
    for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in [names] if isinstance(names, str) else names:
            try:
                config = json.loads(json.dumps(CONFIG_MAPPING[kind]().to_dict(), default=str)) | {
                    "architectures": [name]
                }
            except Exception:  # no defaults that can be
                continue
            ours = planned(config)
            theirs = None if ours is None or name not in ARCHS else counted(config)
            assert theirs is None or ours == theirs, name
