"""What GGUF calls the tensors of a model, and what Hugging Face's folders do: one table of names, a row a family."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from isobit.checkpoint.gguf.header import Entry

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA2_LAYER = LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QWEN_EXPERTS = {"ffn_gate": "mlp.experts.{}.gate_proj", "ffn_up": "mlp.experts.{}.up_proj",
                 "ffn_down": "mlp.experts.{}.down_proj"}  # fmt: skip
QWEN_MOE_LAYER = LAYER | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
MIXTRAL_LAYER = LAYER | {"ffn_gate_inp": "block_sparse_moe.gate"}
_MIXTRAL_EXPERTS = {"ffn_gate": "block_sparse_moe.experts.{}.w1", "ffn_up": "block_sparse_moe.experts.{}.w3",
                    "ffn_down": "block_sparse_moe.experts.{}.w2"}  # fmt: skip

PHI3_LAYER = LAYER | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}

POST_LAYER = LAYER | {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
SEED_LAYER = LAYER | {"post_attention_norm": "post_attention_layernorm"}
GPT_OSS_LAYER = SEED_LAYER | {"ffn_gate_inp": "mlp.router", "attn_sinks": "self_attn.sinks"}
GLM4_LAYER = LAYER | {
    "post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}  # fmt: skip
_WHOLE = ("attn_sinks",)  # vectors that have their module's name elsewhere

# Tensors that are read where the configuration is made, and are none of the model's.
CONSUMED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_PART = re.compile(r"blk\.(?P<layer>\d{1,5})\.(?P<part>[a-z_]+)(?:\.(?P<expert>\d{1,5}))?\.(?P<end>weight|bias)")
_STACKED = "_exps"
_MOST_EXPERTS = 4096


@dataclass(frozen=True)
class Names:
    """How a family's tensors are called and laid out.

    Attributes:
        layer: name within a block -> name within a layer.
        experts: the same of the matrices of one expert, with a place for its number.
        pairs: parts whose rows lie so that rotation pairs neighbours, where Hugging Face's pairs the halves of a head.
        offset: what was added to the weights of norms.
    """

    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    experts: Mapping[str, str] = field(default_factory=dict)
    pairs: tuple[str, ...] = ()
    offset: float = 0.0


LLAMA = Names(pairs=("attn_q", "attn_k"))
PLAIN = Names()
MIXTRAL = Names(MIXTRAL_LAYER, _MIXTRAL_EXPERTS, ("attn_q", "attn_k"))
QWEN_MOE = Names(QWEN_MOE_LAYER, _QWEN_EXPERTS)
GEMMA = Names(offset=1.0)
GEMMA2 = Names(GEMMA2_LAYER, offset=1.0)
PHI3 = Names(PHI3_LAYER)
GLM4 = Names(GLM4_LAYER)
OLMO2 = Names(POST_LAYER)
SEED_OSS = Names(SEED_LAYER)
GPT_OSS = Names(GPT_OSS_LAYER, _QWEN_EXPERTS)


@dataclass(frozen=True)
class Placed:
    """A tensor of a model, or one expert's part of what a file holds as one tensor.

    Attributes:
        name: in Hugging Face's folders.
        entry: the tensor of the file.
        shape: of this part.
        skip: bytes of the file's tensor in front of it.
        heads: of how many heads the rows are to be put into another order; 0 where they stay.
        offset: what is to be taken off its numbers.
    """

    name: str
    entry: Entry
    shape: tuple[int, ...]
    skip: int = 0
    heads: int = 0
    offset: float = 0.0


def placed(tensors: Mapping[str, Entry], names: Names, heads: int, kv_heads: int) -> Iterator[Placed]:
    """The tensors of a model by Hugging Face's names; what no family has keeps its own.

    Args:
        tensors: those of the file.
        names: how the family calls them.
        heads, kv_heads: of the attention.
    """
    for entry in tensors.values():
        if entry.name in CONSUMED:
            continue
        module, _, end = entry.name.rpartition(".")
        if module in OUTSIDE and end in ("weight", "bias"):
            offset = names.offset if module == "output_norm" else 0.0
            yield Placed(f"{OUTSIDE[module]}.{end}", entry, entry.shape, offset=offset)
            continue
        found = _PART.fullmatch(entry.name)
        if found is None:
            yield Placed(entry.name, entry, entry.shape)
        else:
            yield from _of_layer(entry, names, found, {"attn_q": heads, "attn_k": kv_heads})


def _of_layer(entry: Entry, names: Names, found: re.Match[str], heads: Mapping[str, int]) -> Iterator[Placed]:
    part, end, prefix = found["part"], found["end"], f"model.layers.{int(found['layer'])}."
    stacked = names.experts.get(part.removesuffix(_STACKED)) if part.endswith(_STACKED) else None
    axes = 3 if end == "weight" else 2
    if stacked is not None and len(entry.shape) == axes and entry.shape[0] <= _MOST_EXPERTS and found["expert"] is None:
        count, size = entry.shape[0], entry.nbytes // entry.shape[0]
        for expert in range(count):
            yield Placed(f"{prefix}{stacked.format(expert)}.{end}", entry, entry.shape[1:], expert * size)
    elif found["expert"] is not None and part in names.experts:
        yield Placed(f"{prefix}{names.experts[part].format(int(found['expert']))}.{end}", entry, entry.shape)
    elif found["expert"] is None and part in names.layer:
        turned = heads.get(part, 0) if part in names.pairs else 0
        offset = names.offset if part.endswith("norm") else 0.0
        shape = (1, *entry.shape) if part == "ffn_gate_inp_shexp" and len(entry.shape) == 1 else entry.shape
        name = f"{prefix}{names.layer[part]}" if part in _WHOLE else f"{prefix}{names.layer[part]}.{end}"
        yield Placed(name, entry, shape, heads=turned, offset=offset)
    else:
        yield Placed(entry.name, entry, entry.shape)
