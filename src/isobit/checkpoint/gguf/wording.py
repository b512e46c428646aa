"""What is said of a GGUF file in its own words: its tensors and keys, and no config.json, which it has not.

Everything else goes by Hugging Face's names, under which a file's tensors and metadata are read
(:mod:`isobit.checkpoint.gguf.members`). Here is the way back, for texts that people see.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from isobit.checkpoint.gguf import members
from isobit.checkpoint.gguf.families import Family, family_of, shape_of
from isobit.checkpoint.gguf.header import is_gguf
from isobit.checkpoint.gguf.model import Gguf, opened
from isobit.checkpoint.gguf.names import OUTSIDE
from isobit.checkpoint.gguf.placing import placed
from isobit.errors import IsobitError

# Keys of config.json -> those of the metadata that they are made of, without the architecture in front.
KEYS: Mapping[str, str] = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "intermediate_size_mlp": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "layer_types": "attention.sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "partial_rotary_factor": "rope.dimension_count",
    "rotary_dim": "rope.dimension_count",
    "rope_type": "rope.scaling.type",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "attention_factor": "rope.scaling.yarn_attn_factor",
    "mscale": "rope.scaling.yarn_log_multiplier",
    "mscale_all_dim": "rope.scaling.yarn_log_multiplier",
    "llama_4_scaling_beta": "attention.temperature_scale",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "n_routed_experts": "expert_count",
    "moe_num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_topk": "expert_used_count",
    "moe_k": "expert_used_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "topk_method": "expert_group_count",
    "norm_topk_prob": "expert_weights_norm",
    "routed_scaling_factor": "expert_weights_scale",
    "n_shared_experts": "expert_shared_count",
    "moe_num_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "moe_layer_start_index": "leading_dense_block_count",
    "moe_layer_interval": "interleave_moe_layer_step",
    "interleave_moe_layer_step": "interleave_moe_layer_step",
    "num_nextn_predict_layers": "nextn_predict_layers",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "qk_nope_head_dim": "attention.key_length_mla less {}.rope.dimension_count",
    "v_head_dim": "attention.value_length_mla",
}
_IDS = {"bos_token_id": "tokenizer.ggml.bos_token_id", "eos_token_id": "tokenizer.ggml.eos_token_id"}
# Families of whose folders intermediate_size is the width of experts.
_WIDTH_OF_EXPERTS = frozenset({"gpt-oss", "hunyuan-moe", "llama4", "minimax-m2"})
_TABLE_ROWS = "rows of token_embd.weight"
_SECTIONS = re.compile(r"\b(rope_parameters|rope_scaling|full_attention|sliding_attention): ")
_BEGINNING = re.compile(r"^config\.json(?=: | asks)")
_CONFIG = re.compile(r"(?<![\w/.])config\.json")
_QUANTIZATION = re.compile(r"\bquantization_config\b")
_LAYER = re.compile(r"\bmodel\.layers\.(?P<layer>\d+)\.(?P<name>\w+(?:\.\w+)+)")
_OUTSIDE = re.compile(r"(?<![\w.])(?P<module>model\.embed_tokens|model\.norm|lm_head)\.(?P<end>weight|bias)\b")
_OUTSIDE_HERE = {module: part for part, module in OUTSIDE.items()}
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@contextmanager
def in_its_words(path: Path | None) -> Iterator[None]:
    """Errors that are raised within, about what was read of a GGUF file, in the words of that file.

    Args:
        path: the model; what is no GGUF file, or nothing, changes nothing.
    """
    try:
        yield
    except IsobitError as error:
        if path is not None and is_gguf(path):
            error.reword(lambda text: reworded(path, text)[0])
        raise


def notes_in_its_words(path: Path | None, notes: Iterable[str]) -> tuple[str, ...]:
    """Notes about a model, in the words of its GGUF file, if it is one."""
    said = tuple(notes)
    return tuple(reworded(path, *said)) if said and path is not None and is_gguf(path) else said


def reworded(path: Path, *texts: str) -> list[str]:
    """Texts about a model, in the words of the GGUF file that it is read of."""
    found = [*texts]
    for name in members.NAMES:
        found = [text.replace(str(path / name), str(path)) for text in found]
    try:
        words = _Words(opened(path))
    except IsobitError:  # which is what was to be said
        return found
    return [words.of(text, path.name) for text in found]


class _Words:
    """The names of one file."""

    def __init__(self, gguf: Gguf) -> None:
        arch, row = family_of(gguf)
        self._names = row.names
        self._keys, self._key_here = _keys(row, arch)
        self._part_of = {module: part for part, module in row.names.layer.items()}
        self._vector_of = {name: part for part, name in row.names.whole.items()}
        self._found: dict[str, str] = {}
        for part in placed(gguf.tensors, row.names, shape_of(gguf)):
            expert = _EXPERT.search(part.name)
            piece = f", expert {expert[1]}" if expert and part.shape != part.entry.shape else ""
            self._found[part.name] = part.entry.name + piece

    def of(self, text: str, file: str) -> str:
        """The text with this file's names in it."""
        text = _LAYER.sub(self._in_layer, text)
        text = _OUTSIDE.sub(lambda found: f"{_OUTSIDE_HERE[found['module']]}.{found['end']}", text)
        text = self._keys.sub(lambda found: self._key_here[found[0]], _SECTIONS.sub("", text))
        text = _BEGINNING.sub(f"the metadata of {file}", text)
        return _QUANTIZATION.sub("the type of the tensor", _CONFIG.sub("the metadata", text))

    def _in_layer(self, found: re.Match[str]) -> str:
        """A tensor of the file, or what it would call one that it has not."""
        if found[0] in self._found:
            return self._found[found[0]]
        block, (module, _, end) = f"blk.{found['layer']}.", found["name"].rpartition(".")
        if found["name"] in self._vector_of:
            return block + self._vector_of[found["name"]]
        if self._names.latent and module == "self_attn.kv_b_proj":
            return f"{block}attn_k_b.{end} (and attn_v_b.{end})"
        if module in self._part_of:
            return f"{block}{self._part_of[module]}.{end}"
        expert = _EXPERT.search(f".{found['name']}")
        stacked = (part for part, place in self._names.experts.items() if expert and module == place.format(expert[1]))
        part = next(stacked, None)
        return found[0] if part is None or expert is None else f"{block}{part}_exps.{end}, expert {expert[1]}"


def _keys(row: Family, arch: str) -> tuple[re.Pattern[str], dict[str, str]]:
    """Where keys of config.json stand in a text, and what the metadata has for each.

    What may be a word like others counts where a value follows.
    """
    found = {ours: f"{arch}.{key.format(arch)}" for ours, key in {**KEYS, row.eps[0]: row.eps[1]}.items()}
    if arch in _WIDTH_OF_EXPERTS:
        found["intermediate_size"] = f"{arch}.{KEYS['moe_intermediate_size']}"
    found |= _IDS | {"vocab_size": _TABLE_ROWS}
    words = sorted(found, key=len, reverse=True)
    listed = "|".join(re.escape(name) + ("" if "_" in name else "(?= = )") for name in words)
    return re.compile(rf"(?<![\w.])(?:{listed})(?!\w)"), found
