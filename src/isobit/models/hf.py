"""Hugging Face's ``config.json`` as a ``ModelConfig``: every key is read, known to be harmless, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from isobit.models.config import LARGEST_CONTEXT, LayerSpec, ModelConfig, Norms, QkNorm, SelfAttention
from isobit.models.feed_forward import Activation, Experts, GatedMlp, PlainMlp
from isobit.models.fields import Fields, shown
from isobit.models.hf_keys import complain_of_unread
from isobit.models.hf_rope import Common, positions, read_rope
from isobit.models.rotary import Rope

DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32", "half": "float16", "float": "float32"}
ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "silu": ("silu", "swish"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh"),
    "gelu": ("gelu", "gelu_python"),
    "relu2": ("relu2", "relu_squared"),
}
MOST_LAYERS = 1000
MOST_EXPERTS_IN_ALL = 40_000  # of all layers: Kimi-K2 has 23,040


@dataclass(frozen=True)
class Style:
    """What a family's layers are beside their sizes; the names as in :mod:`isobit.models.config`.

    Attributes:
        norms: where a layer has norms, and of what kind.
        norm_offset: what is added to the weights of norms.
        qk_norm, qk_names: the norm of queries and keys.
        qkv_bias, o_bias, mlp_bias: which linears have a bias.
        activation: of the MLP; other values of its key are refused. None: whichever the key names, silu without it.
        plain: what checkpoints call the two linears of an MLP without a gate; None: there is a gate.
        joined: of ``qkv`` and ``gate_up``, those that checkpoints have as one matrix.
        scale, softcap: of attention scores.
        parallel, residual_factor: of a layer.
        embedding_factor: of embeddings; ``root``: the root of the hidden size, rounded to the dtype of the activations.
        logit_factor, logit_softcap: of logits.
        vary: the description of a layer, by its number and what it would be without this: for families whose layers
            differ, or have other parts.
    """

    norms: Norms = Norms()  # noqa: RUF009 - frozen
    norm_offset: float = 0.0
    qk_norm: QkNorm = "none"
    qk_names: tuple[str, str] = ("q_norm", "k_norm")
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: Activation | None = "silu"
    plain: tuple[str, str] | None = None
    joined: tuple[str, ...] = ()
    scale: float | None = None
    softcap: float | None = None
    parallel: bool = False
    residual_factor: float = 1.0
    embedding_factor: float | Literal["root"] = 1.0
    logit_factor: float = 1.0
    logit_softcap: float | None = None
    vary: Callable[[int, LayerSpec], LayerSpec] = lambda number, layer: layer


def read_common(
    config: Fields,
    family: str,
    common: Common = Common(),  # noqa: B008 - frozen
    style: Style = Style(),  # noqa: B008 - frozen
    windows: tuple[int | None, ...] | None = None,
    notes: tuple[str, ...] = (),
    rope: Rope | None = None,
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
        rope: the rotary embedding, if the family has read it already.

    Raises:
        ModelError: keys are missing, wrong, or ask for what is not implemented; all of them are named.
    """
    activation = _activation(config, common, style)
    read = _sizes(config, common)
    if rope is None:
        rope = read_rope(config, common, read["head_dim"])
    dtype = _dtype(config)
    said = (*notes, *_own_code(config))
    _check_heads(config, read)
    complain_of_unread(config, read)
    config.check()
    attention = SelfAttention(
        read["num_heads"], read["num_kv_heads"], read["head_dim"], rope, scale=style.scale, softcap=style.softcap,
        qk_norm=style.qk_norm, qk_names=style.qk_names, bias=style.qkv_bias, o_bias=style.o_bias,
        joined="qkv" in style.joined,
    )  # fmt: skip
    layer = LayerSpec(
        attention, _mlp(read["intermediate_size"], activation, style), style.norms, style.parallel,
        style.residual_factor,
    )  # fmt: skip
    layers = tuple(
        style.vary(number, replace(layer, attention=replace(attention, window=window)))
        for number, window in enumerate(windows if windows is not None else (None,) * read["num_layers"])
    )
    experts = sum(one.mlp.router.experts for one in layers if isinstance(one.mlp, Experts))
    if experts > MOST_EXPERTS_IN_ALL:
        config.complain(f"{experts:,} experts in all layers together; isobit runs up to {MOST_EXPERTS_IN_ALL:,}")
        config.check()
    root = style.embedding_factor == "root"
    model = ModelConfig(
        family,
        read["vocab_size"],
        read["hidden_size"],
        layers,
        read["norm_eps"],
        read["max_position_embeddings"],
        read["tie_word_embeddings"],
        norm_offset=style.norm_offset,
        embedding_factor=math.sqrt(read["hidden_size"]) if root else float(style.embedding_factor),
        embedding_rounded=root,
        logit_factor=style.logit_factor,
        logit_softcap=style.logit_softcap,
        dtype=dtype,
    )
    return replace(model, notes=(*said, *_stretched(model, rope), *_two_sets(model, rope)))


def _mlp(size: int, activation: Activation, style: Style) -> GatedMlp | PlainMlp:
    if style.plain is not None:
        return PlainMlp(size, activation, style.mlp_bias, style.plain)
    return GatedMlp(size, activation, style.mlp_bias, joined="gate_up" in style.joined)


def _activation(config: Fields, common: Common, style: Style) -> Activation:
    """Of the MLP: the family's, or whichever config.json names."""
    if style.activation is not None:
        config.only(common.activation, ACTIVATIONS[style.activation], "activation")
        return style.activation
    named = config.raw(common.activation)
    for activation, names in ACTIVATIONS.items():
        if named in names:
            return activation
    if named is not None:
        config.only(common.activation, tuple(name for names in ACTIVATIONS.values() for name in names), "activation")
    return "silu"


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
        "head_dim": read_head_dim(config, common),
        "norm_eps": config.number(common.norm_eps, common.eps, high=1.0),
        "max_position_embeddings": positions(config, common),
        "tie_word_embeddings": config.flag("tie_word_embeddings", common.tied),
    }


def own_head_dim(config: Fields, usual: int) -> int | None:
    """For :class:`Common`: a width that is the family's where the key is absent, and not where it is null."""
    return None if "head_dim" in config else usual


def read_head_dim(config: Fields, common: Common) -> int:
    """The width of a head."""
    shared = config.integer("hidden_size") // config.integer("num_attention_heads")
    return config.integer("head_dim", common.head_dim or max(1, shared), high=4096)


def require_shared_width(config: Fields, common: Common) -> Common:
    """Of families whose heads share the model's width in transformers, whatever ``head_dim`` says: others are refused.

    Returns:
        ``common``.
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    width = read_head_dim(config, common)
    if config.sound and width * heads != hidden:
        config.problem("head_dim", f"{heads} heads of {width} are not the {hidden} numbers that they share here")
    return common


def _check_heads(config: Fields, values: dict[str, Any]) -> None:
    """The numbers of heads and their width, as :class:`ModelConfig` wants them."""
    if config.sound and values["num_heads"] % values["num_kv_heads"]:
        config.problem("num_attention_heads", f"is not a multiple of num_key_value_heads = {values['num_kv_heads']}")
    if config.sound and values["head_dim"] % 2:
        config.complain(f"head_dim = {values['head_dim']} is odd; rotary embeddings need pairs")


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


def _two_sets(model: ModelConfig, rope: Rope) -> tuple[str, ...]:
    """Which factors of longrope count, and that dynamic's theta stays."""
    if rope.kind == "dynamic":
        return (
            f"the rope type dynamic changes nothing up to {rope.original_context} tokens, which is the longest context"
            " here: isobit keeps keys rotated and does not turn those of a sequence anew while it grows",
        )
    if rope.kind != "longrope" or model.max_context <= rope.original_context:
        return ()
    return (
        f"longrope has factors for up to {rope.original_context} tokens and others for longer sequences: where a"
        " sequence may become longer, the latter count from its first token on, as in vLLM (transformers changes over"
        f" within a sequence). --context {rope.original_context} has the former",
    )


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


def read_rotating(config: Fields, interval: int) -> tuple[bool, ...]:
    """Which layers have a rotary embedding: ``no_rope_layers`` says 1 of those that have one.

    Args:
        config: the file.
        interval: ``no_rope_layer_interval`` where the key is absent: every so manieth layer has none.
    """
    layers = config.integer("num_hidden_layers", high=MOST_LAYERS)
    step = config.integer("no_rope_layer_interval", interval, high=MOST_LAYERS)
    said = config.raw("no_rope_layers")
    if said is None or said == []:
        return tuple((layer + 1) % step != 0 for layer in range(layers))
    if isinstance(said, list) and len(said) >= layers and all(one in (0, 1) for one in said):
        return tuple(bool(one) for one in said[:layers])
    config.problem("no_rope_layers", f"expected 1 or 0 for each of {layers} layers: whether it has a rotary embedding")
    return (True,) * layers


def with_attention(layer: LayerSpec, **changes: Any) -> LayerSpec:
    """A layer whose attention differs, for ``Style.vary``."""
    assert isinstance(layer.attention, SelfAttention)
    return replace(layer, attention=replace(layer.attention, **changes))
