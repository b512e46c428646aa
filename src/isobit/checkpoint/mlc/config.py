"""``mlc-chat-config.json`` as a config.json, and how a family's matrices are joined in MLC's files. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.checkpoint.jsontext import parse_json
from isobit.checkpoint.regular import is_regular, read_regular
from isobit.checkpoint.shown import short
from isobit.errors import CheckpointError, Unsupported

CHAT_CONFIG, METHOD = "mlc-chat-config.json", "mlc"
_LARGEST = 16 << 20  # bytes
_ORIGINAL = "convert the original model with isobit quantize instead"


@dataclass(frozen=True)
class Kind:
    """One of MLC's ways to store weights.

    Attributes:
        bits: of a code; 16 where nothing is quantized, 8 for floats.
        group: weights that share a scale.
        turned: whether matrices lie by their inputs, and outputs are the last axis.
        element: of floats, which.
        awq: whether tensors are AutoAWQ's, as they were, of matrices that are joined.
    """

    bits: int
    group: int = 0
    turned: bool = False
    element: str = "e4m3fn"
    awq: bool = False


KINDS = {
    "q0f16": Kind(16), "q0bf16": Kind(16), "q0f32": Kind(16),
    "q3f16_0": Kind(3, 40, True), "q3f16_1": Kind(3, 40),
    "q4f16_0": Kind(4, 32, True), "q4bf16_0": Kind(4, 32, True),
    "q4f16_1": Kind(4, 32), "q4bf16_1": Kind(4, 32), "q4f32_1": Kind(4, 32), "q4f16_2": Kind(4, 32),
    "q4f16_autoawq": Kind(4, 128, awq=True),
    "e4m3_e4m3_f16": Kind(8), "e5m2_e5m2_f16": Kind(8, element="e5m2"),
}  # fmt: skip
# Others that MLC has, and why they are not read.
_NOT_READ = {
    "q4f16_ft": "its words are put into an order for CUTLASS on one kind of GPU, which nothing describes",
    "e4m3_e4m3_f16_max_calibrate": "it is to be calibrated first: `mlc_llm calibrate` makes e4m3_e4m3_f16 of it",
    "fp8_e4m3fn_bf16_block_scale": "the folder that it was made of holds the same blocks, and isobit reads that",
    "fp8_e4m3fn_bf16_block_scale_static_activation": "inputs are rounded in groups by scales that are stored",
}
# A family -> its architecture, and what it calls queries, keys and values in one matrix.
FAMILIES = {
    "llama": ("LlamaForCausalLM", "qkv_proj"), "mistral": ("MistralForCausalLM", "qkv_proj"),
    "qwen2": ("Qwen2ForCausalLM", "c_attn"), "qwen3": ("Qwen3ForCausalLM", "c_attn"),
}  # fmt: skip
_SAME = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "head_dim",
    "rms_norm_eps", "vocab_size", "rope_scaling", "hidden_act", "attention_bias",
)  # fmt: skip
# What says how the model is run there, or how it was converted.
_INERT = frozenset(
    """context_window_size prefill_chunk_size tensor_parallel_shards pipeline_parallel_stages max_batch_size dtype
    disaggregation attention_sink_size kwargs position_embedding_base rope_theta sliding_window_size weight_block_size
    tie_word_embeddings""".split()
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a chat configuration says.

    Attributes:
        path: the file.
        family: MLC's name of it.
        kind: how weights are stored.
        quantization: the name of that.
        model: the sizes of the model.
        whole: all of it.
    """

    path: Path
    family: str
    kind: Kind
    quantization: str
    model: Mapping[str, Any]
    whole: Mapping[str, Any]

    def fail(self, why: str) -> CheckpointError:
        """An error about this file."""
        return CheckpointError(why, file=self.path)

    def size(self, key: str, default: int | None = None) -> int:
        """A size of the model.

        Raises:
            CheckpointError: it is no size.
        """
        found = self.model.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 1 << 24:
            raise self.fail(f"model_config: {key} is {short(found)}, which is no size")
        return found

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of queries and of keys (and values), and of gate (and up)."""
        heads = self.size("num_attention_heads")
        dim = self.size("head_dim", max(1, self.size("hidden_size") // heads))
        return heads * dim, self.size("num_key_value_heads", heads) * dim, self.size("intermediate_size")


def contains(path: Path) -> bool:
    """Whether this is the config.json of a folder that has MLC's configuration in its place."""
    return path.name == "config.json" and not os.path.lexists(path) and is_regular(path.with_name(CHAT_CONFIG))


def said(folder: Path) -> Said:
    """Reads the configuration of a folder.

    Raises:
        CheckpointError: it is damaged.
        Unsupported: isobit does not read such a model.
    """
    path = folder / CHAT_CONFIG
    whole = parse_json(read_regular(path, _LARGEST), path, "the file")
    model, family, name = whole.get("model_config"), whole.get("model_type"), whole.get("quantization")
    if not isinstance(model, dict):
        raise CheckpointError(f"model_config is {short(model)}; it is a JSON object", file=path)
    reasons = []
    if not isinstance(family, str) or family not in FAMILIES:
        reasons.append(f"its model_type is {short(family)}; isobit reads {', '.join(FAMILIES)} of MLC's files")
    if not isinstance(name, str) or name not in KINDS:
        why = f" ({_NOT_READ[name]})" if isinstance(name, str) and name in _NOT_READ else ""
        reasons.append(f"its quantization is {short(name)}{why}; isobit reads {', '.join(KINDS)}")
    left = sorted(key for key in model if key not in _SAME and key not in _INERT)
    if left and not reasons:
        reasons.append(f"model_config asks for what isobit does not read there: {', '.join(map(short, left[:6]))}")
    if reasons:
        raise Unsupported(f"this model of MLC ({path.parent.name})", reasons, _ORIGINAL)
    return Said(path, str(family), KINDS[str(name)], str(name), model, whole)


def read(path: Path) -> bytes:
    """The config.json that a folder's configuration stands for; raises as :func:`said` does."""
    found = said(path.parent)
    return (json.dumps(_config(found), indent=2, ensure_ascii=False) + "\n").encode()


def _config(found: Said) -> dict[str, Any]:
    model, window = found.model, found.model.get("sliding_window_size")
    architecture, _ = FAMILIES[found.family]
    context = model.get("context_window_size")
    made = {"architectures": [architecture], "model_type": found.family, "rms_norm_eps": 1e-6}
    made |= {key: model[key] for key in _SAME if model.get(key) is not None}
    made["rope_theta"] = model.get("rope_theta", model.get("position_embedding_base", 10000))
    if isinstance(context, int) and context > 0:
        made["max_position_embeddings"] = context
    windowed = isinstance(window, int) and window > 0
    if found.family == "mistral":
        made["sliding_window"] = window if windowed else None
    elif windowed:
        raise found.fail(f"sliding_window_size is {short(window)}: isobit reads windows of mistral alone there")
    made["tie_word_embeddings"] = model.get("tie_word_embeddings", False)
    made["dtype"] = "bfloat16" if "bf16" in found.quantization or "f32" in found.quantization else "float16"
    for key in ("bos_token_id", "eos_token_id"):
        if found.whole.get(key) is not None:
            made[key] = found.whole[key]
    if found.kind.awq:
        how = {"bits": 4, "group_size": found.kind.group, "zero_point": True, "modules_to_not_convert": ["lm_head"]}
        made["quantization_config"] = {"quant_method": "awq", "version": "gemm", **how}
    elif found.kind.bits < 16:
        made["quantization_config"] = {"quant_method": METHOD, "quantization": found.quantization}
    return made
