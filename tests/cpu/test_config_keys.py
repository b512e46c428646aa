"""The keys of transformers' own configuration classes are read, harmless or refused; other families are not ours."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import transformers
from transformers.generation import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from isobit.errors import ModelError
from isobit.models.archs import ARCHS, granitemoehybrid, misspelt, model_config
from isobit.models.hf_keys import ELSEWHERE, INERT, INERT_ENDINGS

WRONG = {"no": ["such", "value"]}  # of a type that no key has

# Those of transformers' text models whose configuration has no key that a Llama has not: what differs is in their code
# and in the tensors that they have.
NO_KEY_OF_THEIR_OWN = {
    "ernie4_5", "helium", "hunyuan_v1_dense", "internlm3", "iquestcoder", "llama", "olmo", "olmo2", "phi3", "qwen2",
    "qwen3", "seed_oss",
}  # fmt: skip


def as_json(model_type: str) -> dict[str, Any]:
    """The whole configuration that transformers would write, with its defaults."""
    content = getattr(transformers, CONFIG_MAPPING_NAMES[model_type])().to_dict()
    if "num_experts_per_tok" in content:  # None in one of them, with which transformers' own code ends
        content["num_experts_per_tok"] = content["num_experts_per_tok"] or 2
    if model_type == "dots1":  # likewise
        content |= {"n_routed_experts": 8, "n_shared_experts": 1}
    if model_type == "granitemoehybrid":  # by itself it has a state in every layer
        content = {key: value for key, value in content.items() if key not in granitemoehybrid.STATE}
        content["layer_types"] = ["full_attention"] * content["num_hidden_layers"]
    if model_type == "glm4_moe":
        content["head_dim"] = 128  # without it there would be 42 and two thirds
    return json.loads(json.dumps(content, default=str))  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", ARCHS)
def test_what_transformers_writes_is_read(architecture: str) -> None:
    written = as_json(ARCHS[architecture]) | {"architectures": [architecture]}
    assert model_config(written).family == ARCHS[architecture]


@pytest.mark.parametrize("architecture", ARCHS)
def test_every_key_of_transformers_is_known(architecture: str) -> None:
    written = as_json(ARCHS[architecture]) | {"architectures": [architecture]}
    for key in written:
        changed = written | {key: WRONG}
        try:
            model_config(changed)
        except ModelError as error:
            found = [line.removeprefix("  - ") for line in str(error).removeprefix("config.json: ").splitlines()]
            found = found[1:] if "for 2 reasons" in found[0] else found  # of a section, that a key is missing, too
            assert all(re.match(rf"{key}( =|:)", line) and "does not know" not in line for line in found), key
        else:
            assert key in INERT | ELSEWHERE or key.endswith(INERT_ENDINGS), key


def test_leftovers_of_generation_are_harmless() -> None:
    assert set(GenerationConfig._get_default_generation_params()) <= INERT


def test_configurations_of_other_families_are_refused_under_the_name_of_a_llama() -> None:
    accepted = set()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            written = as_json(model_type)
        except Exception:  # not all of transformers' classes can be made without arguments
            continue
        written.pop("model_type")
        try:
            model_config(written | {"architectures": ["LlamaForCausalLM"]})
        except ModelError:
            continue
        accepted.add(model_type)
    assert accepted == NO_KEY_OF_THEIR_OWN


def test_no_architecture_of_transformers_is_taken_for_a_misspelt_one() -> None:
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES):
        for names in mapping.values():
            for name in (names,) if isinstance(names, str) else names:
                assert name in ARCHS or misspelt(name) is None, name
    everything = [name for name in dir(transformers) if name.endswith(("Model", "LM", "Classification", "Generation"))]
    assert len(everything) > 500
    assert not [name for name in everything if name not in ARCHS and misspelt(name)]
