"""iFLYTEK's Spark (X1): written from what is public of its ancestor, and believed only where tensors agree.

Nobody outside has described this model: its code is in its repository, and is not run. Its ancestor iFlytekSpark-13B is
known from a conversion script and from MindFormers: LayerNorms with biases, biases everywhere, rotary embeddings of
halves, a GELU gate that is stored with what it multiplies as one matrix. A sibling of X1 is said to have RMSNorms and
fewer key-value heads. Which of these a checkpoint is shows in the names of its tensors: every one must be among those
that are expected, and every expected one there; every key of config.json must be known. Otherwise it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from isobit.errors import ModelError
from isobit.models.config import LayerSpec, ModelConfig, Norms
from isobit.models.feed_forward import Activation
from isobit.models.fields import Fields
from isobit.models.hf import MOST_LAYERS, Style, read_common
from isobit.models.hf_rope import Common

KNOWN = (
    "Spark-Formalizer-X1-7B: 28 GB of float32, about 7.5 billion parameters; end-of-text 5, padding 0; thoughts between"
    " <unused6> and <unused7>; sampled with top_k 1 and a repetition penalty of 1.02 (its sibling)"
)
MISSING = (
    "its widths, layers and heads; the names of its tensors; which norms and biases it has; the order of the gate and"
    " of what it multiplies in a fused matrix; whether its GELU is exact; whether attention has a window; its tokenizer"
    " and chat template"
)
LIFTS = (
    "isobit runs it once config.json has no key that it does not know and the index of the weights has exactly the"
    " tensors of this family (docs/models.md)"
)
# What a layer may have, by its names in checkpoints -> what it is called here.
ALSO = (
    ("self_attn.dense.", "self_attn.o_proj."),
    ("mlp.dense_h_to_4h.", "mlp.gate_up_proj."),
    ("mlp.dense_4h_to_h.", "mlp.down_proj."),
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_APART, _JOINED = ("mlp.gate_proj", "mlp.up_proj"), ("mlp.gate_up_proj",)
_ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "gelu_tanh": ("gelu_gate", "fast_gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    "gelu": ("gelu",),
    "silu": ("silu", "swish"),
}
_OLD = "rotary_emb.inv_freq"
_LISTED = 6


def from_hf(fields: Fields, tensors: Collection[str]) -> ModelConfig:
    """Reads a SparkForCausalLM configuration, with the names of the tensors beside it.

    Raises:
        ModelError: there are none, or they are not those of this family; says what is known and what is missing.
    """
    if not tensors:
        raise ModelError(f"config.json: {refusal('no weights and no index of them are beside it')}")
    layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    inner = _layer(tensors)
    joined = _JOINED[0] in inner
    layer_norms = f"{_NORMS[0]}.bias" in inner
    style = Style(
        norms=Norms(kind="layer" if layer_norms else "rms", bias=layer_norms),
        qkv_bias=f"{_QKV[0]}.bias" in inner,
        o_bias="self_attn.o_proj.bias" in inner,
        mlp_bias="mlp.down_proj.bias" in inner,
        activation=_activation(fields),
        joined=("gate_up",) if joined else (),
        vary=_named,
    )
    _require(fields, tensors, layers, style, joined)
    _agree(fields, style)
    window = fields.integer("sparse_local_size", 0, low=0) or None
    common = Common(
        max_positions=32768, norm_eps="layer_norm_eps" if layer_norms else "rms_norm_eps", eps=1e-5, theta=1e6,
        activation="",  # read already: its names are not those of others
    )  # fmt: skip
    notes = (
        "the Spark family is written from public descriptions of its ancestor, and no checkpoint of it was ever"
        f" compared: unverified are {MISSING}",
    )
    try:
        return read_common(fields, "spark", common, style, (window,) * layers, notes)
    except ModelError as error:
        raise ModelError(f"{error}\n  ({refusal('its configuration is another')})") from None


def refusal(why: str) -> str:
    """Why the family is refused."""
    return f"Spark (iFLYTEK) is refused: {why}. Known: {KNOWN}. Not known: {MISSING}. {LIFTS}"


def _named(number: int, layer: LayerSpec) -> LayerSpec:
    return replace(layer, also=ALSO)


def _ours(name: str) -> str:
    """A tensor as it is called here."""
    for theirs, ours in ALSO:
        name = name.replace(f".{theirs}", f".{ours}")
    return name


def _layer(tensors: Iterable[str]) -> frozenset[str]:
    """Modules of the first layer, by their names here, and their biases."""
    found = set()
    for name in tensors:
        _, mark, rest = _ours(name).partition("layers.0.")
        if mark:
            module, _, part = rest.rpartition(".")
            found |= {module} | ({rest} if part == "bias" else set())
    return frozenset(found)


def _expected(layers: int, style: Style, joined: bool, tied: bool) -> frozenset[str]:
    """Modules that there must be, and biases."""
    inside = [*_NORMS, *_QKV, "self_attn.o_proj", *(_JOINED if joined else _APART), "mlp.down_proj"]
    biased = {*(_NORMS if style.norms.bias else ()), *(_QKV if style.qkv_bias else ())}
    biased |= {"self_attn.o_proj"} if style.o_bias else set()
    biased |= {*(_JOINED if joined else _APART), "mlp.down_proj"} if style.mlp_bias else set()
    found = {f"layers.{at}.{name}" for at in range(layers) for name in inside}
    found |= {f"layers.{at}.{name}.bias" for at in range(layers) for name in biased}
    found |= {"embed_tokens", "norm"} | ({"norm.bias"} if style.norms.bias else set())
    return frozenset(found if tied else found | {"lm_head"})


def _require(fields: Fields, tensors: Collection[str], layers: int, style: Style, joined: bool) -> None:
    """Complains of tensors that this family has not, and of those that are missing."""
    found = set()
    for name in tensors:
        if name.endswith(_OLD):
            continue
        module, _, part = _ours(name).removeprefix("model.").rpartition(".")
        found |= {module} | ({f"{module}.bias"} if part == "bias" else set())
    tied = fields.flag("tie_word_embeddings", False)
    wanted = _expected(layers, style, joined, tied)
    surplus, lacking = sorted(found - wanted - {"lm_head"}), sorted(wanted - found)
    for names, what in ((surplus, "has tensors that this family has not"), (lacking, "lacks tensors of this family")):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            fields.complain(refusal(f"the checkpoint {what}: {', '.join(names[:_LISTED])}{more}"))
    fields.check()


def _agree(fields: Fields, style: Style) -> None:
    """What config.json says of biases and the gate, as the tensors have it."""
    for key in ("attention_bias", "qkv_bias"):
        if fields.flag(key, style.qkv_bias) != style.qkv_bias:
            fields.problem(key, f"the tensors say {str(style.qkv_bias).lower()}")
    if fields.flag("mlp_bias", style.mlp_bias) != style.mlp_bias:
        fields.problem("mlp_bias", f"the tensors say {str(style.mlp_bias).lower()}")
    fields.only("gated_linear_unit", (True,), "MLP")


def _activation(fields: Fields) -> Activation:
    """What hidden_act names; of ``gelu_gate`` nobody says which GELU it is, and the ancestor's is taken."""
    named = fields.raw("hidden_act")
    found = next((activation for activation, names in _ACTIVATIONS.items() if named in names), None)
    if found is None:
        known = ", ".join(name for names in _ACTIVATIONS.values() for name in names)
        fields.problem("hidden_act", f"isobit knows {known} in this family")
    return found or "gelu_tanh"
