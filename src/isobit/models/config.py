"""What a decoder is: one frozen configuration with flags, read from a `config.json` without transformers.

``archs/`` maps each family's keys onto these flags. A key that would change the computation and that isobit does not
implement is refused by name: nothing is dropped quietly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from isobit.errors import ModelError

QkNorm = Literal["none", "head"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]

LARGEST_SIZE = 1 << 24  # of any width or count: beyond it a config is a mistake or an attack


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (halves rotated, as in Llama).

    Attributes:
        kind: how frequencies are stretched beyond the original context.
        theta: base of the wavelengths.
        factor: how much longer the context is than the original one (linear, llama3, yarn).
        original_context: the context that frequencies were made for (llama3, yarn).
        low_freq_factor, high_freq_factor: the band that llama3 interpolates in.
        beta_fast, beta_slow: rotations that bound yarn's band.
        attention_factor: what yarn multiplies cosines and sines by; None to derive it from ``factor``.
        mscale, mscale_all_dim: yarn's other way to derive the attention factor.
        truncate: whether yarn's band is rounded to whole dimensions.
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        family: name of the file in ``archs/``.
        vocab_size, hidden_size, intermediate_size: widths.
        num_layers: decoder layers.
        num_heads, num_kv_heads: query heads, and key-value heads that divide them.
        head_dim: width of a head; ``num_heads * head_dim`` need not be ``hidden_size``.
        norm_eps: epsilon of every RMSNorm.
        rope: rotary embedding.
        max_position_embeddings: the longest context, in tokens.
        tie_word_embeddings: the output projection is the embedding.
        qkv_bias, o_bias, mlp_bias: which projections have a bias.
        qk_norm: ``head``: an RMSNorm over each query and key head, before the rotary embedding.
        windows: per layer, how many of the latest tokens (itself included) a token attends to; None for all.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    max_position_embeddings: int
    tie_word_embeddings: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: QkNorm = "none"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"config.json: num_attention_heads = {self.num_heads} is not a multiple of"
                f" num_key_value_heads = {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"config.json: head_dim = {self.head_dim} is odd; rotary embeddings need pairs")
        if len(self.windows) != self.num_layers:
            raise ModelError(f"config.json: {len(self.windows)} layer types for {self.num_layers} layers")

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> ModelConfig:
        """The configuration of a Hugging Face ``config.json``.

        Raises:
            ModelError: the architecture is unknown, or a key is missing, wrong, or asks for what is not implemented.
        """
        from isobit.models.archs import model_config

        return model_config(config)


@dataclass(frozen=True)
class Common:
    """What differs between families in how the common keys are read.

    Attributes:
        kv_heads: num_key_value_heads when the key is absent; None for the number of query heads.
        head_dim: head_dim when the key is absent; None for hidden_size / num_attention_heads.
        max_positions: max_position_embeddings when the key is absent.
    """

    kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int = 2048


class Fields:
    """Typed access to an untrusted ``config.json``; every complaint names the key and the value."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self._config = config
        self._where = where

    def raw(self, key: str) -> Any:
        """The value as it is; None if absent."""
        return self._config.get(key)

    def error(self, key: str, why: str) -> ModelError:
        """An error about one key."""
        return ModelError(f"{self._where}: {key} = {self._config.get(key)!r}: {why}")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST_SIZE) -> int:
        """A whole number between ``low`` and ``high``."""
        value = self._config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self._where}: {key} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"expected a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number above ``low`` and at most ``high``."""
        value = self._config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self._where}: {key} is missing")
            return default
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not low < value <= high:
            raise self.error(key, f"expected a number above {low:g} and at most {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "expected true or false")
        return value

    def section(self, key: str) -> Fields | None:
        """A nested object; None if absent or null."""
        value = self._config.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, "expected an object")
        return Fields(value, f"{self._where}: {key}")

    def only(self, key: str, allowed: tuple[Any, ...], what: str) -> None:
        """Refuses a key that asks for something not implemented."""
        if self._config.get(key) is not None and self._config[key] not in allowed:
            raise self.error(key, f"isobit does not implement this {what}; it knows {', '.join(map(str, allowed))}")

    def keys(self) -> tuple[str, ...]:
        """The keys that are there."""
        return tuple(self._config)


def read_common(fields: Fields, family: str, common: Common, **flags: Any) -> ModelConfig:
    """A configuration from the keys that all families share, plus a family's own flags."""
    if fields.raw("text_config") is not None:
        raise ModelError("config.json: text_config: isobit runs text models only, not the text part of a larger model")
    fields.only("hidden_act", ("silu", "swish"), "activation")
    fields.only("hidden_activation", ("silu", "swish"), "activation")
    fields.only("attention_multiplier", (1, 1.0), "attention scale")
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    if fields.raw("head_dim") is None and common.head_dim is None and hidden % heads:
        raise fields.error(
            "hidden_size", f"is not a multiple of num_attention_heads = {heads} and there is no head_dim"
        )
    layers = fields.integer("num_hidden_layers", high=10_000)
    # An explicit null means one per query head in every family; only an absent key takes the family's default.
    kv_heads = heads if "num_key_value_heads" in fields.keys() else common.kv_heads or heads
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", kv_heads),
        head_dim=fields.integer("head_dim", common.head_dim or hidden // heads, high=4096),
        norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
        max_position_embeddings=fields.integer("max_position_embeddings", common.max_positions, high=1 << 30),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        rope=read_rope(fields, common),
        windows=flags.pop("windows", (None,) * layers),
        **flags,
    )


_ROPE_KEYS = frozenset(
    "type rope_type rope_theta factor original_max_position_embeddings low_freq_factor high_freq_factor beta_fast"
    " beta_slow attention_factor mscale mscale_all_dim truncate partial_rotary_factor".split()
)


def read_rope(fields: Fields, common: Common) -> Rope:
    """The rotary embedding, from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``."""
    for key in ("partial_rotary_factor",):
        fields.only(key, (1, 1.0), "partial rotary embedding")
    parameters, scaling = fields.section("rope_parameters"), fields.section("rope_scaling")
    if parameters and scaling and fields.raw("rope_parameters") != fields.raw("rope_scaling"):
        raise fields.error("rope_scaling", f"disagrees with rope_parameters = {fields.raw('rope_parameters')!r}")
    section = parameters or scaling or Fields({}, "config.json")
    unknown = sorted(set(section.keys()) - _ROPE_KEYS)
    if unknown:
        raise ModelError(f"config.json: rope parameters {', '.join(unknown)}: isobit does not implement them")
    section.only("partial_rotary_factor", (1, 1.0), "partial rotary embedding")
    theta = section.number("rope_theta", fields.number("rope_theta", 10000.0, low=1.0), low=1.0)
    kind = section.raw("rope_type") or section.raw("type") or "default"
    if kind == "default":
        return Rope(theta=theta)
    if kind not in ("linear", "llama3", "yarn"):
        raise ModelError(
            f"config.json: rope type {kind!r} is not implemented; isobit knows default, linear, llama3, yarn"
        )
    context = fields.integer("max_position_embeddings", common.max_positions, high=1 << 30)
    original = section.integer(
        "original_max_position_embeddings",
        fields.integer("original_max_position_embeddings", context, high=1 << 30),
        high=1 << 30,
    )
    factor = section.number("factor", max(1.0, context / original) if kind == "yarn" else None)
    if kind == "linear":
        return Rope("linear", theta, factor)
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if low >= high:
            raise section.error("low_freq_factor", f"must be below high_freq_factor = {high:g}")
        return Rope("llama3", theta, factor, original, low, high)
    return Rope(
        "yarn",
        theta,
        factor,
        original,
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        attention_factor=_optional(section, "attention_factor"),
        mscale=_optional(section, "mscale"),
        mscale_all_dim=_optional(section, "mscale_all_dim"),
        truncate=section.flag("truncate", True),
    )


def _optional(fields: Fields, key: str) -> float | None:
    return None if fields.raw(key) is None else fields.number(key)


def read_windows(fields: Fields, *, enabled: bool, default_window: int, first_full: int) -> tuple[int | None, ...]:
    """Per-layer windows from ``layer_types``, or from ``sliding_window`` for the layers from ``first_full`` on.

    Args:
        fields: the configuration.
        enabled: whether windows are used at all.
        default_window: ``sliding_window`` when the key is absent.
        first_full: how many of the first layers attend to everything.
    """
    layers = fields.integer("num_hidden_layers", high=10_000)
    if "sliding_window" in fields.keys() and fields.raw("sliding_window") is None:
        enabled = False
    window = fields.integer("sliding_window", default_window, high=1 << 30) if enabled else None
    types = fields.raw("layer_types")
    if types is None:
        return tuple(window if layer >= first_full else None for layer in range(layers))
    if not isinstance(types, list) or any(name not in ("full_attention", "sliding_attention") for name in types):
        raise fields.error("layer_types", "isobit knows full_attention and sliding_attention")
    if window is None and "sliding_attention" in types:
        raise fields.error("layer_types", "has sliding_attention, but no sliding_window is in use")
    return tuple(window if name == "sliding_attention" else None for name in types)
