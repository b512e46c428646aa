"""Thousands of damaged configurations, seeded: each gives a plan or one clear error, and no other exception."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from isobit.errors import IsobitError
from isobit.models.archs import ARCHS, family, model_config
from isobit.models.planning import plans

CASES = 2000
PLANNED_EVERY = 10

NESTED: Any = []
for _ in range(200):
    NESTED = [NESTED]
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 10**300, -(10**300), 10**5000, 2**31, 2**63, 1 << 24, (1 << 24) + 1, 0.0, -0.0, 0.5, 1.0, 1e-300,
    5e-324, 1e300, 1e308, math.inf, -math.inf, math.nan, 1 + 2**-52, 4.0, 1e12,
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    *NUMBERS, None, True, False, "true", "false", "", "4096", "NaN", "x" * 100_000, "\x1b[31m", "\ud800", "silu",
    "gelu", [], {}, [None], [1, 2], {"a": {"b": {"c": 1}}}, NESTED, ["full_attention"] * 2, ["sliding_attention"] * 2,
    {"rope_type": "yarn"}, {"type": "llama3", "factor": 8}, {"rope_type": ["yarn"]}, {"rope_type": {}}, {1: 2},
)  # fmt: skip
KEYS = (
    "num_experts", "attn_logit_softcapping", "text_config", "auto_map", "layer_types", "sliding_window", "model_type",
    "use_sliding_window", "max_window_layers", "rope_theta", "rope_scaling", "rope_parameters", "dtype", "torch_dtype",
    "original_max_position_embeddings", "partial_rotary_factor", "architectures", "attention_multiplier", "n_layers",
    "head_dim", "query_pre_attn_scalar", "\x1b]0;", "k" * 10_000, "\ud800", "", "id2label", "layer_norm_eps",
)  # fmt: skip
ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "truncate",
    "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "mrope_section",
    "partial_rotary_factor", "attn_factor", "short_factor", "finetuned",
)  # fmt: skip
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
)  # fmt: skip


def damaged(rng: random.Random) -> Any:
    """A tiny model's configuration with one to four keys that are wrong, missing or too many."""
    architecture = rng.choice(list(ARCHS))
    config: dict[Any, Any] = {"architectures": [architecture], "model_type": ARCHS[architecture]}
    config |= family(ARCHS[architecture]).tiny()
    if rng.random() < 0.5:
        spelling = rng.choice(("rope_scaling", "rope_parameters"))
        config.pop("rope_parameters", None)
        config[spelling] = dict(rng.choice(ROPES))
        config[spelling][rng.choice(ROPE_KEYS)] = rng.choice(JUNK)
    for _ in range(rng.randint(1, 3)):
        key = rng.choice((*config, *KEYS))
        if rng.random() < 0.15:
            config.pop(key, None)
        else:
            config[key] = rng.choice(JUNK)
    return config


def only_isobit_complains(call: Any) -> bool:
    """Whether it went through; a message is short and printable."""
    try:
        call()
    except IsobitError as error:
        text = str(error)
        assert 0 < len(text) < 8000 and text.replace("\n", "").isprintable()
        return False
    return True


def test_damaged_configurations() -> None:
    rng = random.Random(11)
    good = 0
    for case in range(CASES):
        config = damaged(rng)
        good += only_isobit_complains(lambda config=config: model_config(config))
        if case % PLANNED_EVERY == 0:
            only_isobit_complains(
                lambda config=config: plans(config, targets=["a6000", "cpu-avx2"], scheme_names=["int8", "int4"])
            )
    assert CASES // 20 < good < CASES // 2  # neither a reader that takes everything nor one that takes nothing


@pytest.mark.parametrize("text", ['{"a": 1e999}', '{"a": NaN}', '{"a": %s}' % ("9" * 5000), "[" * 100_000, "null", ""])
def test_files_that_hold_no_configuration(text: str, tmp_path: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert not only_isobit_complains(lambda: plans(path, targets=["a6000"], scheme_names=["int8"]))


@pytest.mark.parametrize("value", [3, None, [], "config.json"])
def test_what_is_no_object_is_refused(value: Any) -> None:
    assert not only_isobit_complains(lambda: model_config(value))


@pytest.mark.parametrize("kind", [[], {}, ["llama"], {"a": []}])
def test_a_model_type_that_is_no_text_is_refused(kind: Any) -> None:
    with pytest.raises(IsobitError, match="model_type"):
        model_config({**family("llama").tiny(), "architectures": ["LlamaForCausalLM"], "model_type": kind})
    with pytest.raises(IsobitError, match="model_type"):
        model_config({"model_type": kind})


def test_a_message_holds_no_megabytes() -> None:
    config = {"architectures": ["LlamaForCausalLM"], **{f"unknown_{index}": "x" * 1000 for index in range(1000)}}
    with pytest.raises(IsobitError) as error:
        model_config(json.loads(json.dumps(config)))
    assert "unknown_0 " in str(error.value) and "more" in str(error.value) and len(str(error.value)) < 8000
