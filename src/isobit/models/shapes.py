"""Which tensors a model has, and what kind of module each belongs to: from its configuration alone, without torch."""

from __future__ import annotations

from isobit.formats.rules import ModuleKind
from isobit.models.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def expected_tensors(config: ModelConfig) -> Shapes:
    """Every tensor of the unquantized model, by its name in a checkpoint, with its shape."""
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config.num_layers):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in _layer_tensors(config).items()})
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _layer_tensors(config: ModelConfig) -> Shapes:
    """The tensors of one layer, by their names within it."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.o_bias),
        "mlp.gate_proj": (mlp, hidden, config.mlp_bias),
        "mlp.up_proj": (mlp, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, mlp, config.mlp_bias),
    }
    shapes: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    for name, (n, k, bias) in linears.items():
        shapes[f"{name}.weight"] = (n, k)
        if bias:
            shapes[f"{name}.bias"] = (n,)
    if config.qk_norm == "head":
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def classify(tensor: str) -> ModuleKind:
    """What kind of module a tensor belongs to, by the tensor's name."""
    module = tensor.rpartition(".")[0]
    name = module.rpartition(".")[2]
    if module == "lm_head":
        return "lm_head"
    if name == "embed_tokens":
        return "embedding"
    if "norm" in name:
        return "norm"
    if name in ("gate", "router"):
        return "router"
    return "linear" if name.endswith("_proj") else "other"
