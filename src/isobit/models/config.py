"""What a decoder is: one frozen configuration with flags.

``archs/`` and ``hf`` map the keys of a ``config.json`` onto these fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from isobit.errors import ModelError

QkNorm = Literal["none", "head"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]

LARGEST_CONTEXT = 1 << 30  # tokens


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (halves rotated, as in Llama).

    Attributes:
        kind: how frequencies are stretched beyond the original context.
        theta: base of the wavelengths.
        factor: how much longer the context is than the original one (linear, llama3, yarn).
        original_context: the context that frequencies were made for (llama3, yarn); 0 where it is not known (linear).
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

    @property
    def scale(self) -> float:
        """What cosines and sines are multiplied by: 1 but for yarn, which derives it where it is not given."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


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
        max_position_embeddings: what config.json says about the longest context, in tokens; see :attr:`max_context`.
        tie_word_embeddings: the output projection is the embedding.
        qkv_bias, o_bias, mlp_bias: which projections have a bias.
        qk_norm: ``head``: an RMSNorm over each query and key head, before the rotary embedding.
        windows: per layer, how many of the latest tokens (itself included) a token attends to; None for all.
        dtype: torch dtype of the weights that are not quantized, as config.json has it.
        notes: what a user should know about how config.json was understood.
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
    dtype: str = "bfloat16"
    notes: tuple[str, ...] = field(default=(), compare=False)

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

    @property
    def max_context(self) -> int:
        """The longest context, in tokens: with the factor by which yarn and linear ropes stretch it.

        Configurations write max_position_embeddings before or after stretching, and the larger of both readings counts:
        Qwen's recipe for yarn leaves 32768 or 40960 there and means 131072. llama3's factor is no ratio of contexts.
        """
        if self.rope.kind not in ("yarn", "linear"):
            return self.max_position_embeddings
        original = self.rope.original_context or self.max_position_embeddings
        return max(self.max_position_embeddings, min(round(original * self.rope.factor), LARGEST_CONTEXT))
