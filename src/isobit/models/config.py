"""What a decoder is: frozen descriptions of its layers and of what stands around them.

``archs/`` and ``hf`` map the keys of a ``config.json`` onto these fields; ``blueprint`` turns them into modules.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from isobit.errors import ModelError
from isobit.models.feed_forward import Mlp
from isobit.models.rotary import QueryScale, Rope

QkNorm = Literal["none", "head", "head-behind", "heads", "width", "l2"]
NormKind = Literal["rms", "layer"]

LARGEST_CONTEXT = 1 << 30  # tokens


@dataclass(frozen=True)
class Kept:
    """What a cache keeps of a token in one layer: two parts, each with heads of its own scale where it is rounded.

    Attributes:
        heads: of both parts.
        first, second: their widths: of keys and values; in latent attention of the latent, and of the rotated key.
    """

    heads: int
    first: int
    second: int

    @property
    def widths(self) -> tuple[int, int]:
        """Of both parts."""
        return self.first, self.second


@dataclass(frozen=True)
class SelfAttention:
    """Grouped-query attention of one layer.

    Attributes:
        heads, kv_heads: query heads, and key-value heads that divide them.
        dim: width of a head; ``heads * dim`` need not be the hidden size.
        rope: rotary embedding; None: positions are not embedded in this layer.
        window: how many of the latest tokens (itself included) a token attends to; None for all.
        scale: what scores are multiplied by; None for ``dim ** -0.5``.
        softcap: scores become ``softcap * tanh(score / softcap)``; None: they stay.
        qk_norm: over queries and keys: ``head``: an RMSNorm over each head before the rotary embedding, ``head-behind``
            behind it; ``heads``: a LayerNorm over each head before it, with weights of its own; ``width``: one over all
            heads together, before it; ``l2``: without weights, over each head, behind it.
        qk_names: what checkpoints call the norms of queries and keys.
        sinks: whether each head has a learned score that takes part in the softmax and gives nothing.
        chunk: tokens of a chunk: a token attends to those of its own chunk alone; None: to all.
        query_scale: how queries grow with their positions; None: they do not.
        bias, o_bias: whether queries, keys and values, and the output projection, have a bias.
        joined: whether checkpoints have queries, keys and values as one matrix, one below the other.
        o_name: what checkpoints call the output projection.
    """

    heads: int
    kv_heads: int
    dim: int
    rope: Rope | None = Rope()  # noqa: RUF009 - frozen
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    qk_norm: QkNorm = "none"
    qk_names: tuple[str, str] = ("q_norm", "k_norm")
    bias: bool = False
    o_bias: bool = False
    sinks: bool = False
    chunk: int | None = None
    query_scale: QueryScale | None = None
    joined: bool = False
    o_name: str = "o_proj"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ModelError(
                f"config.json: num_attention_heads = {self.heads} is not a multiple of"
                f" num_key_value_heads = {self.kv_heads}"
            )
        if self.rotated % 2 or self.rotated > self.dim:
            raise ModelError(
                f"config.json: {self.rotated} of head_dim = {self.dim} dimensions are to be rotated: rotary embeddings"
                " need pairs"
            )
        if self.rope is not None and self.rope.sections and 2 * sum(self.rope.sections) != self.rotated:
            raise ModelError(
                f"config.json: mrope_section (xdrope_section) = {list(self.rope.sections)} are"
                f" {sum(self.rope.sections)} pairs of dimensions, and {self.rotated // 2} are to be rotated"
            )

    @property
    def interleaved(self) -> bool:
        """Whether rotary pairs are neighbours."""
        return self.rope is not None and self.rope.interleaved

    @property
    def rotated(self) -> int:
        """How many dimensions of a head, the first ones, are rotated."""
        if self.rope is None:
            return 0
        return self.dim if self.rope.dims is None else self.rope.dims

    @property
    def kept(self) -> Kept:
        """What a cache keeps of a token."""
        return Kept(self.kv_heads, self.dim, self.dim)

    @property
    def angles(self) -> tuple[Rope | None, int]:
        """The rotary embedding whose angles the layer is given, if it has one, and over how many dimensions."""
        return self.rope, self.dim


@dataclass(frozen=True)
class LatentAttention:
    """Latent attention (MLA): keys and values of all heads are made of one short vector of a token.

    Attributes:
        heads: of queries, keys and values.
        query_rank: width that queries are made from, with a norm over it; None: from the residual stream.
        rank: width of the latent that keys and values are made from, with a norm over it.
        plain: dimensions of a head's query and key that carry no position.
        rotated: dimensions that do; those of the key are one for all heads.
        value: dimensions of a head's value.
        rope: rotary embedding of the rotated dimensions.
        scale: what scores are multiplied by.
        bias: whether the projections into the latent, and the output projection, have a bias.
        eps: epsilon of the norms of the latents, which is not that of the model's other norms.
    """

    heads: int
    query_rank: int | None
    rank: int
    plain: int
    rotated: int
    value: int
    rope: Rope
    scale: float
    bias: bool = False
    eps: float = 1e-6

    @property
    def window(self) -> None:
        """A token attends to all that came before it."""
        return None

    @property
    def query(self) -> int:
        """Width of a head's query, and of its key once it is made."""
        return self.plain + self.rotated

    @property
    def kept(self) -> Kept:
        """What a cache keeps of a token: the latent, and the rotated part of the key, one for all heads."""
        return Kept(1, self.rank, self.rotated)

    @property
    def angles(self) -> tuple[Rope, int]:
        """The rotary embedding whose angles the layer is given: of halves, since it puts pairs in that order itself."""
        return replace(self.rope, interleaved=False), self.rotated


Attention = SelfAttention | LatentAttention


@dataclass(frozen=True)
class Norms:
    """The norms of a layer, each by its name in checkpoints; None where there is none.

    Attributes:
        before_attention, before_mlp: of what goes in, the residual stream.
        after_attention, after_mlp: of what comes out, before it is added to the residual stream.
        kind: ``rms``, or ``layer``: the mean is taken away first.
        bias: whether they have one.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    kind: NormKind = "rms"
    bias: bool = False

    @property
    def names(self) -> dict[str, str]:
        """Role -> name of those there are, in the order of computation."""
        roles = ("before_attention", "after_attention", "before_mlp", "after_mlp")
        return {role: name for role in roles if (name := getattr(self, role)) is not None}


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: attention and MLP, each added to the residual stream.

    Attributes:
        attention, mlp: its parts.
        norms: where it has norms.
        parallel: whether both parts read the same norm of the stream (``before_attention``) and are added together.
        residual_factor: what each part's result is multiplied by before it is added.
        mlp_name: what its MLP is called in checkpoints.
        also: beginnings of names within it as some checkpoints have them, and what they stand for here.
    """

    attention: Attention
    mlp: Mlp
    norms: Norms = Norms()  # noqa: RUF009 - frozen
    parallel: bool = False
    residual_factor: float = 1.0
    mlp_name: str = "mlp"
    also: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        family: name of the file in ``archs/``.
        vocab_size, hidden_size: widths.
        layers: what each layer is.
        norm_eps: epsilon of every norm.
        norm_offset: what is added to the weights of every norm (1 in Gemma, whose weights lie around zero).
        max_position_embeddings: what config.json says about the longest context, in tokens; see :attr:`max_context`.
        tie_word_embeddings: the output projection is the embedding.
        embedding_factor: what embeddings are multiplied by.
        embedding_rounded: whether that number is rounded to the dtype of the activations first.
        logit_factor: what logits are multiplied by.
        logit_softcap: logits become ``softcap * tanh(logit / softcap)``; None: they stay.
        dtype: torch dtype of the weights that are not quantized, as config.json has it.
        norm_name: what checkpoints call the norm behind the last layer.
        head_bias: whether the output projection, which is not the embedding then, has a bias.
        predicted_layers: layers that checkpoints have behind the last one, to guess further tokens; nothing runs them.
        notes: what a user should know about how config.json was understood.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    norm_offset: float = 0.0
    embedding_factor: float = 1.0
    embedding_rounded: bool = True
    logit_factor: float = 1.0
    logit_softcap: float | None = None
    dtype: str = "bfloat16"
    norm_name: str = "model.norm"
    head_bias: bool = False
    predicted_layers: int = 0
    context: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def norms(self) -> Norms:
        """Of what kind norms are, the last one too."""
        return self.layers[-1].norms if self.layers else Norms()

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer's attention."""
        return tuple(layer.attention.window for layer in self.layers)

    @property
    def axes(self) -> int:
        """How many positions a token has."""
        ropes = (layer.attention.rope for layer in self.layers)
        return max((rope.axes for rope in ropes if rope is not None), default=1)

    @property
    def max_context(self) -> int:
        """The longest context, in tokens: :attr:`context`, or the model's own."""
        return self.own_context if self.context is None else min(self.context, self.own_context)

    @property
    def own_context(self) -> int:
        """The model's longest context, in tokens: with the factor by which yarn and linear ropes stretch it.

        Configurations write max_position_embeddings before or after stretching, and the larger of both readings counts:
        Qwen's recipe for yarn leaves 32768 or 40960 there and means 131072. llama3's factor is no ratio of contexts.
        """
        ropes = {layer.attention.rope for layer in self.layers if layer.attention.rope is not None}
        return max(
            (_stretched(rope, self.max_position_embeddings) for rope in ropes), default=self.max_position_embeddings
        )


def _stretched(rope: Rope, said: int) -> int:
    """The longest context by one rope, where config.json says ``said``."""
    if rope.kind not in ("yarn", "linear"):
        return said
    return max(said, min(round((rope.original_context or said) * rope.factor), LARGEST_CONTEXT))
