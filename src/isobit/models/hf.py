"""Hugging Face's ``config.json`` as a ``ModelConfig``: every key is read, known to be harmless, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from isobit.models.config import (
    LARGEST_CONTEXT,
    Activation,
    GatedMlp,
    LayerSpec,
    ModelConfig,
    Norms,
    Rope,
    RopeKind,
    SelfAttention,
)
from isobit.models.fields import Fields, Number, shown
from isobit.models.hf_keys import complain_of_unread

DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32", "half": "float16", "float": "float32"}
ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "silu": ("silu", "swish"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh"),
}
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn")
MOST_LAYERS = 10_000
TINY, HUGE = 1e-6, 1e6  # of a factor or of yarn's turns: beyond them frequencies overflow
ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Common:
    """What differs between families in how the common keys are read.

    Attributes:
        kv_heads: num_key_value_heads when the key is absent; None for the number of query heads.
        head_dim: head_dim when the key is absent; None for hidden_size / num_attention_heads.
        max_positions: max_position_embeddings when the key is absent.
        tied: tie_word_embeddings when the key is absent.
        activation: the key that names the activation of the MLP.
    """

    kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int = 2048
    tied: bool = False
    activation: str = "hidden_act"


@dataclass(frozen=True)
class Style:
    """What a family's layers are beside their sizes; the names as in :mod:`isobit.models.config`.

    Attributes:
        norms: where a layer has norms.
        norm_offset: what is added to the weights of norms.
        qk_norm: whether each query and key head has a norm.
        qkv_bias, o_bias, mlp_bias: which linears have a bias.
        activation: of the MLP; other values of its key are refused.
        scale, softcap: of attention scores.
        embedding_root: whether embeddings are multiplied by the root of the hidden size.
        logit_softcap: of logits.
    """

    norms: Norms = Norms()  # noqa: RUF009 - frozen
    norm_offset: float = 0.0
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    scale: float | None = None
    softcap: float | None = None
    embedding_root: bool = False
    logit_softcap: float | None = None


def read_common(
    config: Fields,
    family: str,
    common: Common = Common(),  # noqa: B008 - frozen
    style: Style = Style(),  # noqa: B008 - frozen
    windows: tuple[int | None, ...] | None = None,
    notes: tuple[str, ...] = (),
) -> ModelConfig:
    """A configuration from the keys that all families share.

    Args:
        config: the file.
        family: name of the file in ``archs/``.
        common: how this family reads the common keys.
        style: what its layers are; from keys that the family has read already: what it reads later is refused as
            unknown.
        windows: one for each layer; None where the family has none.
        notes: what the family has to say.

    Raises:
        ModelError: keys are missing, wrong, or ask for what is not implemented; all of them are named.
    """
    config.only(common.activation, ACTIVATIONS[style.activation], "activation")
    config.only("partial_rotary_factor", (1,), "partial rotary embedding")
    read = _sizes(config, common)
    rope, dtype = read_rope(config, common), _dtype(config)
    said = (*notes, *_own_code(config))
    _check_heads(config, read)
    complain_of_unread(config, read)
    config.check()
    attention = SelfAttention(
        read["num_heads"], read["num_kv_heads"], read["head_dim"], rope, scale=style.scale, softcap=style.softcap,
        qk_norm=style.qk_norm, bias=style.qkv_bias, o_bias=style.o_bias,
    )  # fmt: skip
    mlp = GatedMlp(read["intermediate_size"], style.activation, style.mlp_bias)
    layers = tuple(
        LayerSpec(replace(attention, window=window), mlp, style.norms)
        for window in (windows if windows is not None else (None,) * read["num_layers"])
    )
    model = ModelConfig(
        family,
        read["vocab_size"],
        read["hidden_size"],
        layers,
        read["norm_eps"],
        read["max_position_embeddings"],
        read["tie_word_embeddings"],
        norm_offset=style.norm_offset,
        embedding_factor=math.sqrt(read["hidden_size"]) if style.embedding_root else 1.0,
        logit_softcap=style.logit_softcap,
        dtype=dtype,
    )
    return replace(model, notes=(*said, *_stretched(model, rope)))


def _sizes(config: Fields, common: Common) -> dict[str, Any]:
    """The numbers that all families have, by the names that ``hf_keys`` compares other keys with."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if config.sound and config.raw("head_dim") is None and common.head_dim is None and hidden % heads:
        config.problem("hidden_size", f"is not a multiple of num_attention_heads = {heads} and there is no head_dim")
    # An explicit null means one per query head in every family; only an absent key takes the family's default.
    kv_heads = heads if "num_key_value_heads" in config else common.kv_heads or heads
    return {
        "vocab_size": config.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": config.integer("intermediate_size"),
        "num_layers": config.integer("num_hidden_layers", high=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": config.integer("num_key_value_heads", kv_heads),
        "head_dim": config.integer("head_dim", common.head_dim or max(1, hidden // heads), high=4096),
        "norm_eps": config.number("rms_norm_eps", 1e-6, high=1.0),
        "max_position_embeddings": _positions(config, common),
        "tie_word_embeddings": config.flag("tie_word_embeddings", common.tied),
    }


def _check_heads(config: Fields, values: dict[str, Any]) -> None:
    """The numbers of heads and their width, as :class:`ModelConfig` wants them."""
    if config.sound and values["num_heads"] % values["num_kv_heads"]:
        config.problem("num_attention_heads", f"is not a multiple of num_key_value_heads = {values['num_kv_heads']}")
    if config.sound and values["head_dim"] % 2:
        config.complain(f"head_dim = {values['head_dim']} is odd; rotary embeddings need pairs")


def _positions(config: Fields, common: Common) -> int:
    return config.integer("max_position_embeddings", common.max_positions, high=LARGEST_CONTEXT)


def _stretched(model: ModelConfig, rope: Rope) -> tuple[str, ...]:
    """Where the longest context is not what max_position_embeddings says, and why."""
    said = model.max_position_embeddings
    if model.max_context == said:
        return ()
    if rope.original_context:
        why = f"{rope.kind} stretches {rope.original_context} tokens by {rope.factor:g}"
    else:
        why = f"{rope.kind} stretches by {rope.factor:g}, and config.json does not say whether that is counted already"
    return (f"contexts of up to {model.max_context} tokens are allowed (max_position_embeddings = {said}): {why}",)


def _dtype(config: Fields) -> str:
    """What weights are stored in where nothing else says so; old files call it torch_dtype, and some do not say."""
    for key in ("dtype", "torch_dtype"):
        named = config.raw(key)
        if named is not None:
            dtype = DTYPES.get(named.removeprefix("torch.")) if isinstance(named, str) else None
            if dtype is None:
                config.problem(key, f"isobit reads weights in {', '.join(dict.fromkeys(DTYPES.values()))}")
            config.raw("torch_dtype")
            return dtype or "bfloat16"
    return "bfloat16"


def _own_code(config: Fields) -> tuple[str, ...]:
    """What it means that a model brings code for itself."""
    named = config.raw("auto_map")
    if not isinstance(named, Mapping):
        if named is not None:
            config.problem("auto_map", "expected an object")
        return ()
    models = [f"{auto} {shown(code)}" for auto, code in named.items() if str(auto).startswith("AutoModel")]
    if not models:
        return ()
    return (
        f"config.json names code of its own for the model ({', '.join(models[:3])}): isobit runs no code from a model's"
        " folder and computes what transformers computes for this architecture; if that code does something else, so"
        " does the model",
    )


def read_rope(config: Fields, common: Common) -> Rope:
    """The rotary embedding, from ``rope_parameters`` (transformers 5), or from ``rope_theta`` and ``rope_scaling``.

    Both spellings may be there when they mean the same; what one of them leaves out counts as its default.
    """
    sections = [section for key in ("rope_scaling", "rope_parameters") if (section := config.section(key)) is not None]
    if not sections:
        return _rope(config, Fields({}), common)
    found = [_rope(config, section, common) for section in sections]
    for section in sections:
        for key, value in section.unread():
            if value:
                section.problem(key, "isobit does not implement this for this rope type")
    if {rope.kind for rope in found} == {"linear"}:  # the original context changes no frequency here
        found = [replace(rope, original_context=max(one.original_context for one in found)) for rope in found]
    differences = _differences(found[0], found[-1])
    if config.sound and differences:
        config.complain(
            f"rope_scaling and rope_parameters disagree: {differences}; write all of it into one of them"
            " (transformers 5 reads rope_scaling, and the rope_theta beside it, when both are there)"
        )
    return found[0]


def _differences(scaling: Rope, parameters: Rope) -> str:
    """Where two rotary embeddings differ, with both values; empty where they compute the same."""
    names = {"kind": "rope_type", "theta": "rope_theta", "original_context": ORIGINAL}
    derived = ("attention_factor", "mscale", "mscale_all_dim")  # three ways to say one number
    pairs = [
        (names.get(field.name, field.name), getattr(scaling, field.name), getattr(parameters, field.name))
        for field in fields(Rope)
        if field.name not in derived
    ]
    if not math.isclose(scaling.scale, parameters.scale, rel_tol=1e-6):
        pairs.append(("attention_factor", scaling.scale, parameters.scale))
    return ", ".join(f"{name} {one} against {other}" for name, one, other in pairs if one != other)


def _rope(config: Fields, section: Fields, common: Common) -> Rope:
    """One spelling of the rotary embedding, with the keys that stand beside it."""
    kind = _rope_kind(section)
    section.only("partial_rotary_factor", (1,), "partial rotary embedding")
    section.raw("finetuned")  # YaRN's authors wrote it; without "dynamic" their own code does not look at it
    context = _positions(config, common)
    theta = _agreed(config, section, "rope_theta", config.number("rope_theta", 10000.0, low=1.0),
                    section.number("rope_theta", 10000.0, low=1.0))  # fmt: skip
    original = _agreed(config, section, ORIGINAL, config.integer(ORIGINAL, context, high=LARGEST_CONTEXT),
                       section.integer(ORIGINAL, context, high=LARGEST_CONTEXT))  # fmt: skip
    if kind == "default":
        section.only("factor", (1,), "factor of the default rope type")
        return Rope(theta=theta)
    if kind == "linear":
        known = config.raw(ORIGINAL) is not None or section.raw(ORIGINAL) is not None
        return Rope("linear", theta, section.number("factor", None, TINY, HUGE), original if known else 0)
    if kind == "llama3":
        low, high = (section.number(key, None, TINY, HUGE) for key in ("low_freq_factor", "high_freq_factor"))
        if section.sound and low >= high:
            section.problem("low_freq_factor", f"must be below high_freq_factor = {high:g}")
        return Rope("llama3", theta, section.number("factor", None, TINY, HUGE), original, low, high)
    return _yarn(section, theta, original, context)


def _rope_kind(section: Fields) -> RopeKind:
    new, old = section.raw("rope_type"), section.raw("type")
    if new is not None and old is not None and new != old:
        section.complain(f"rope_type {shown(new)} and type {shown(old)} disagree: remove one of them")
        section.skip()
        return "default"
    named = new if new is not None else old if old is not None else "default"
    for kind in ROPE_KINDS:
        if kind == named:
            return kind
    section.complain(f"rope type {shown(named)} is not implemented; isobit knows {', '.join(ROPE_KINDS)}")
    section.skip()
    return "default"


def _agreed(config: Fields, section: Fields, key: str, beside: Number, within: Number) -> Number:
    """What a rope section says, or the key beside it; both only where they agree."""
    if section.raw(key) is None:
        return beside
    if config.raw(key) is not None and config.sound and beside != within:
        section.problem(key, f"{key} = {beside} stands beside it: remove one of the two")
    return within


def _yarn(section: Fields, theta: float, original: int, context: int) -> Rope:
    section.only("extrapolation_factor", (1,), "factor")  # two of its authors' own code,
    section.only("attn_factor", (1,), "factor")
    section.only("apply_yarn_scaling", (True,), "yarn without attention factor")  # and one of vLLM's
    return Rope(
        "yarn",
        theta,
        section.number("factor", context / original, TINY, HUGE),
        original,
        beta_fast=section.optional("beta_fast", TINY, HUGE) or 32.0,
        beta_slow=section.optional("beta_slow", TINY, HUGE) or 1.0,
        attention_factor=_optional(section, "attention_factor"),
        mscale=section.optional("mscale", TINY, HUGE),
        mscale_all_dim=section.optional("mscale_all_dim", TINY, HUGE),
        truncate=section.flag("truncate", "truncate" not in section),  # null means no, to transformers and vLLM
    )


def _optional(section: Fields, key: str) -> float | None:
    return None if section.raw(key) is None else section.number(key, None, TINY, HUGE)


def from_layer(first: int) -> Callable[[int], bool]:
    """For :func:`read_windows`: the layers from ``first`` on."""
    return lambda layer: layer >= first


def read_windows(
    config: Fields, *, enabled: bool, default_window: int, windowed: Callable[[int], bool] = lambda layer: True
) -> tuple[int | None, ...]:
    """Per-layer windows from ``layer_types``, or from ``sliding_window`` for the layers that the family gives one.

    Args:
        config: the file.
        enabled: whether windows are used at all.
        default_window: ``sliding_window`` when the key is absent.
        windowed: whether a layer, by its number, has one where there is no ``layer_types``.
    """
    layers = config.integer("num_hidden_layers", high=MOST_LAYERS)
    if config.raw("sliding_window") is None and "sliding_window" in config:
        enabled = False
    length = config.integer("sliding_window", default_window, low=1 if enabled else 0, high=LARGEST_CONTEXT)
    window = length if enabled else None
    types = config.raw("layer_types")
    if types is None:
        return tuple(window if windowed(layer) else None for layer in range(layers))
    if not isinstance(types, list) or any(name not in ("full_attention", "sliding_attention") for name in types):
        config.problem("layer_types", "isobit knows full_attention and sliding_attention")
    elif len(types) != layers and config.sound:
        config.problem("layer_types", f"expected one for each of {layers} layers, found {len(types)}")
    elif window is None and "sliding_attention" in types:
        config.problem("layer_types", "has sliding_attention, but no sliding_window is in use")
    else:
        return tuple(window if name == "sliding_attention" else None for name in types)
    return (None,) * layers


def without_windows(config: Fields) -> None:
    """Refuses windows in a family that has none in transformers, which ignores them, while vLLM may use them."""
    window, types = config.raw("sliding_window"), config.raw("layer_types")
    used = config.flag("use_sliding_window", True) and window is not None
    config.raw("max_window_layers")
    if types is not None:
        if not isinstance(types, list) or any(name != "full_attention" for name in types):
            config.problem("layer_types", "isobit knows full_attention in every layer of this family, and nothing else")
        return
    if used:
        config.problem("sliding_window", "transformers attends to everything in this family, others may not; remove it")
