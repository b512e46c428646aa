"""The families isobit runs: architecture name (``config.json``) -> the file here that reads it.

A new family is one file with ``from_hf(fields) -> ModelConfig``, which ends in :func:`isobit.models.hf.read_common`,
and ``tiny() -> dict`` (the keys of a tiny random test model), and its line in this table; a model that also sees or
hears, and whose decoder is a section of config.json, has it in :data:`WITHIN`; one of which text alone is run is a row
of :mod:`isobit.models.wrappers`.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from isobit.errors import ModelError
from isobit.models.config import ModelConfig
from isobit.models.fields import Fields, shown
from isobit.models.others import why_not
from isobit.models.wrappers import WRAPPERS, read

ARCHS: dict[str, str] = {
    "ArceeForCausalLM": "arcee",
    "Cohere2ForCausalLM": "cohere2",
    "CohereForCausalLM": "cohere",
    "CwmForCausalLM": "cwm",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Dots1ForCausalLM": "dots1",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "Ernie4_5_MoeForCausalLM": "ernie4_5_moe",
    "Exaone4ForCausalLM": "exaone4",
    "ExaoneMoeForCausalLM": "exaone_moe",
    "FlexOlmoForCausalLM": "flex_olmo",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "GemmaForCausalLM": "gemma",
    "Glm4ForCausalLM": "glm4",
    "Glm4MoeForCausalLM": "glm4_moe",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
    "GlmForCausalLM": "glm",
    "GptOssForCausalLM": "gpt_oss",
    "GraniteForCausalLM": "granite",
    "GraniteMoeForCausalLM": "granitemoe",
    "GraniteMoeHybridForCausalLM": "granitemoehybrid",
    "GraniteMoeSharedForCausalLM": "granitemoeshared",
    "HYV3ForCausalLM": "hy_v3",
    "HeliumForCausalLM": "helium",
    "HunYuanDenseV1ForCausalLM": "hunyuan_v1_dense",
    "HunYuanMoEV1ForCausalLM": "hunyuan_v1_moe",
    "HyperCLOVAXForCausalLM": "hyperclovax",
    "Jais2ForCausalLM": "jais2",
    "Llama4ForCausalLM": "llama4_text",
    "LlamaForCausalLM": "llama",
    "MellumForCausalLM": "mellum",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "Ministral3ForCausalLM": "ministral3",
    "MinistralForCausalLM": "ministral",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "NemotronForCausalLM": "nemotron",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo3",
    "OlmoeForCausalLM": "olmoe",
    "Phi3ForCausalLM": "phi3",
    "PhiForCausalLM": "phi",
    "PhimoeForCausalLM": "phimoe",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "SeedOssForCausalLM": "seed_oss",
    "SmolLM3ForCausalLM": "smollm3",
    "SolarOpenForCausalLM": "solar_open",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
    "VaultGemmaForCausalLM": "vaultgemma",
    "YoutuForCausalLM": "youtu",
}
# Models that see or hear and have their decoder within: its keys are a section of the file (``hf_within``).
WITHIN: dict[str, str] = {
    "Glm46VForConditionalGeneration": "glm4v",
    "Glm4vForConditionalGeneration": "glm4v",
    "Glm4vMoeForConditionalGeneration": "glm4v_moe",
    "GlmAsrForConditionalGeneration": "glmasr",
    "HunYuanVLForConditionalGeneration": "hunyuan_vl",
}
# Families that nobody outside has described: what is written is their ancestors', and is believed where the tensors of
# a checkpoint agree. ``from_hf`` takes their names, too.
UNSEEN: dict[str, str] = {
    "IFlytekSparkForCausalLM": "spark",
    "SparkForCausalLM": "spark",
    "SparkModel": "spark",
}
# Llamas by other names: transformers has no class for them and saves them as LlamaForCausalLM, with their model_type.
LLAMAS: dict[str, str] = {"IQuestCoderForCausalLM": "iquestcoder", "InternLM3ForCausalLM": "internlm3"}
# Names that models are published under, of classes that transformers calls otherwise.
PUBLISHED: dict[str, str] = {"PhiMoEForCausalLM": "phimoe"}
# What model_type says where a model is one of a family and goes by a name of its own.
ALSO = {"glm46v": "glm4v", "iflytekspark": "spark", "kimi_k2": "deepseek_v3"}

_KNOWN = ARCHS | LLAMAS | WITHIN | {architecture: row.model_type for architecture, row in WRAPPERS.items()}
_KNOWN |= PUBLISHED
_CAUSAL, _WHOLE = "ForCausalLM", "ForConditionalGeneration"
_END = _CAUSAL.lower()


def family(name: str) -> Any:
    """The module of a family."""
    return importlib.import_module(f"isobit.models.archs.{name}")


def model_config(config: Mapping[str, Any], tensors: Collection[str] = ()) -> ModelConfig:
    """The configuration of a ``config.json``, whatever its family.

    Args:
        config: its contents.
        tensors: names of the tensors beside it, as far as they are known; families of :data:`UNSEEN` go by them.

    Raises:
        ModelError: the architecture is unknown, or keys are missing, wrong or ask for what is not implemented.
    """
    if not isinstance(config, Mapping):
        raise ModelError(f"config.json: expected an object, not {shown(config)}")
    architecture, fields = _architecture(config), Fields(config)
    name, wrapper = (_KNOWN | UNSEEN)[architecture], WRAPPERS.get(architecture)
    notes = _model_type(fields, name)
    model: ModelConfig
    if architecture in UNSEEN:
        model = family(name).from_hf(fields, tensors)
    else:
        model = family(name).from_hf(fields) if wrapper is None else read(fields, wrapper, family)
    return replace(model, notes=(*notes, *model.notes)) if notes else model


def architecture(config: Mapping[str, Any]) -> str | None:
    """The architecture that a ``config.json`` names, by ``model_type`` if by nothing else; None for one not known."""
    try:
        return _architecture(config)
    except ModelError:
        return None


def is_within(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` that :func:`model_config` reads is of a model that also sees or hears."""
    return _architecture(config) in WITHIN.keys() | WRAPPERS.keys()


def is_unseen(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of a family that is believed only where tensors agree."""
    try:
        return _architecture(config) in UNSEEN
    except ModelError:
        return False


def _model_type(fields: Fields, name: str) -> tuple[str, ...]:
    """What it means that model_type names another family than architectures does."""
    named = fields.raw("model_type")
    if named is None or named == name or (isinstance(named, str) and ALSO.get(named) == name):
        return ()
    if not isinstance(named, str) or named not in {*_KNOWN.values(), *UNSEEN.values()}:
        fields.problem("model_type", f"architectures says {name}, and other programs go by model_type: correct one")
        return ()
    return (
        f"architectures says {name} and model_type says {named}: isobit goes by the first, transformers by the other",
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if names == ["LlamaForCausalLM"]:
        kind = config.get("model_type")
        return next((name for name, named in LLAMAS.items() if named == kind), "LlamaForCausalLM")
    if names is None:
        kind = config.get("model_type")
        for architecture, name in (_KNOWN | UNSEEN).items():
            if kind == name or (isinstance(kind, str) and ALSO.get(kind) == name and name in UNSEEN.values()):
                return architecture
        raise ModelError(
            f"config.json: architectures is missing and model_type is {shown(kind)}: nothing says what this is;"
            f" {_listed()}"
        )
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ModelError(f"config.json: architectures = {shown(names)}: expected a list with one name")
    if names[0] in _KNOWN or names[0] in UNSEEN:
        return names[0]
    reason = why_not(names[0], _KNOWN)
    if reason is not None:
        raise ModelError(f"config.json: {reason}.")
    meant = misspelt(names[0])
    hint = f" Did you mean {meant}? Then correct the name in config.json." if meant else ""
    raise ModelError(f"config.json: architecture {shown(names[0])} is not implemented; {_listed()}.{hint}")


def _listed() -> str:
    stems = sorted((name.removesuffix(_CAUSAL) for name in (*ARCHS, *LLAMAS)), key=str.lower)
    whole, text = (", ".join(sorted(name.removesuffix(_WHOLE) for name in rows)) for rows in (WITHIN, WRAPPERS))
    return f"isobit runs the {_CAUSAL} of {', '.join(stems)}, the {_WHOLE} of {whole} and, text alone, of {text}"


def misspelt(name: str) -> str | None:
    """The architecture that a name means in spite of its spelling: other capitals, or an end that is missing or wrong.

    One letter or digit of its beginning makes another family (Mixtral, Qwen2Moe, Llama4), so that has to be right.
    """
    letters = re.sub(r"[\W_]", "", name[:80]).lower()
    for architecture in ARCHS:
        stem = architecture.lower().removesuffix(_END)
        end = letters.removeprefix(stem)
        if end == letters or re.search(r"\d", end):
            continue
        close = end.startswith("for") and difflib.SequenceMatcher(None, end, _END).ratio() >= 0.9
        if stem and (not end or close):
            return architecture
    return None
