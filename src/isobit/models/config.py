"""What a decoder is: frozen descriptions of its layers and of what stands around them.

``archs/`` and ``hf`` map the keys of a ``config.json`` onto these fields; ``blueprint`` turns them into modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from isobit.errors import ModelError

Activation = Literal["silu", "gelu_tanh", "gelu", "relu2"]
RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
SectionLayout = Literal["pairs", "columns", "woven"]
QkNorm = Literal["none", "head", "head-behind", "heads", "width", "l2"]
NormKind = Literal["rms", "layer"]

LARGEST_CONTEXT = 1 << 30  # tokens


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        dims: how many dimensions of a head, the first ones, are rotated; None: all.
        interleaved: whether pairs are neighbours (0 and 1, 2 and 3, ...) and not halves, as in Llama.
        kind: how frequencies are stretched beyond the original context.
        theta: base of the wavelengths.
        factor: how much longer the context is than the original one (linear, llama3, yarn, longrope).
        original_context: the context that frequencies were made for (llama3, yarn, longrope); 0 where it is not known
            (linear).
        low_freq_factor, high_freq_factor: the band that llama3 interpolates in.
        beta_fast, beta_slow: rotations that bound yarn's band.
        attention_factor: what yarn and longrope multiply cosines and sines by; None to derive it from ``factor``.
        mscale, mscale_all_dim: yarn's other way to derive the attention factor.
        truncate: whether yarn's band is rounded to whole dimensions.
        short_factors, long_factors: longrope's, one for each pair of dimensions: of contexts up to the original one,
            and of longer ones.
        sections: where a token has a position on each of several axes (of an image: time, row, column): how many pairs
            of dimensions are turned by each; empty: a token has one position.
        section_layout: which these are: ``pairs``: the first pairs by the first axis, those behind them by the second,
            and so on; ``woven``: pair ``i`` by axis ``i % axes`` as long as that axis has pairs, and by the first where
            it has none; ``columns``: as ``pairs``, but of single dimensions, twice as many, so that the two dimensions
            of a pair may be turned by different axes (Hunyuan).
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
    dims: int | None = None
    interleaved: bool = False
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    sections: tuple[int, ...] = ()
    section_layout: SectionLayout = "pairs"

    @property
    def axes(self) -> int:
        """How many positions a token has."""
        return max(1, len(self.sections))

    def axis_of(self, rotated: int) -> tuple[int, ...]:
        """Which axis turns each of so many dimensions; the two of pair ``i`` are ``i`` and ``i + rotated / 2``."""
        if self.section_layout == "columns":
            return tuple(axis for axis, count in enumerate(self.sections) for _ in range(2 * count))
        if self.section_layout == "pairs":
            found = [axis for axis, count in enumerate(self.sections) for _ in range(count)]
        else:
            found = [0] * (rotated // 2)
            for axis, count in enumerate(self.sections[1:], 1):
                for pair in range(axis, min(len(self.sections) * count, len(found)), len(self.sections)):
                    found[pair] = axis
        return (*found, *found)

    @property
    def scale(self) -> float:
        """What cosines and sines are multiplied by; yarn and longrope derive it where it is not given."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "longrope":
            longer = self.factor > 1 and self.original_context > 1
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context)) if longer else 1.0
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


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


@dataclass(frozen=True)
class QueryScale:
    """Queries grow with their positions, by ``1 + beta * ln(1 + floor((position + ahead) / floor))``.

    Attributes:
        floor: tokens of a step.
        beta: how much a step adds.
        ahead: 1 where positions are counted from one (Llama 4), 0 where from zero (Ministral 3).
    """

    floor: int
    beta: float
    ahead: int = 0


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


@dataclass(frozen=True)
class GatedMlp:
    """``down(activation(gate(x)) * up(x))``.

    Attributes:
        size: outputs of gate and up.
        activation: ``silu``; ``gelu``, or ``gelu_tanh``: GELU by its tanh approximation; ``relu2``: a ReLU's square.
        bias: whether the three have a bias.
        limit: gpt-oss's gate: gate below the limit, up within it, ``(up + 1) * gate * sigmoid(1.702 * gate)``; None:
            the plain one.
        joined: whether checkpoints have gate and up as one matrix, the gate above.
    """

    size: int
    activation: Activation = "silu"
    bias: bool = False
    limit: float | None = None
    joined: bool = False


@dataclass(frozen=True)
class PlainMlp:
    """``down(activation(up(x)))``.

    Attributes:
        size: outputs of up.
        activation: as of :class:`GatedMlp`.
        bias: whether both have a bias.
        names: what checkpoints call both.
    """

    size: int
    activation: Activation = "gelu_tanh"
    bias: bool = False
    names: tuple[str, str] = ("up_proj", "down_proj")


@dataclass(frozen=True)
class Router:
    """Which experts a token goes to, in float32. Of equal scores the expert with the lower number is chosen.

    Attributes:
        experts, active: how many there are, and how many a token goes to.
        scores: ``softmax`` or ``sigmoid`` of the router's logits; ``softmax-behind``: a softmax over those chosen.
        bias: whether the router is a linear with a bias.
        correction: whether each expert has a number that is added to its score for the choice, not for its weight.
        groups, active_groups: experts are in so many groups, of which the best so many take part.
        group_score: what makes a group good: its best expert (``max``), or its two best together (``two``).
        renormalize: whether the weights of a token's experts are divided by their sum.
        scale: what the weights are multiplied by.
        least_sum: what they are divided by at least.
        on_input: whether the weight multiplies what goes into an expert, not what comes out (Llama 4).
    """

    experts: int
    active: int
    scores: Literal["softmax", "sigmoid", "softmax-behind"] = "softmax"
    bias: bool = False
    correction: bool = False
    groups: int = 1
    active_groups: int = 1
    group_score: Literal["max", "two"] = "max"
    renormalize: bool = True
    scale: float = 1.0
    least_sum: float = 1e-20
    on_input: bool = False


@dataclass(frozen=True)
class StackedNames:
    """Tensors of all experts of a layer: ``[E, 2I, K]`` of gate and up, ``[E, K, I]`` of down.

    Attributes:
        gate_up, down: their names within the MLP; of biases with ``_bias`` behind.
        transposed: whether they lie as ``[E, K, 2I]`` and ``[E, I, K]``.
        either: whether they may lie like that, where their shapes say so (Qwen3-VL: as published, and as transformers 5
            saves it).
        interleaved: whether gate and up take turns; otherwise all of gate comes first.
    """

    gate_up: str = "experts.gate_up_proj"
    down: str = "experts.down_proj"
    transposed: bool = False
    either: bool = False
    interleaved: bool = False


@dataclass(frozen=True)
class ExpertNames:
    """Under which names checkpoints have the modules of a mixture, within the MLP of a layer.

    Attributes:
        router: a linear.
        correction: a vector of numbers.
        correction_rows: whether it is stored as the one row of a matrix.
        experts: what stands in front of an expert's number.
        gate, up, down: linears of an expert.
        shared, shared_gate: the expert of all tokens, and its gate.
        stacked: tensors of all experts together, as some checkpoints have them.
        one_by_one: whether transformers loads experts that have tensors of their own.
        also: beginnings of names within a layer as some checkpoints have them, and what they stand for here.
    """

    router: str = "gate"
    correction: str = "gate.e_score_correction_bias"
    correction_rows: bool = False
    experts: str = "experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    shared: str = "shared_experts"
    shared_gate: str = "shared_expert_gate"
    stacked: StackedNames = StackedNames()  # noqa: RUF009 - frozen
    one_by_one: bool = True
    also: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Experts:
    """A mixture of experts.

    Attributes:
        router: which experts a token goes to.
        expert: what each is.
        shared: one more that all tokens go to; None: there is none.
        shared_gate: whether the shared one's result is multiplied by the sigmoid of a linear of the token.
        names: of its modules.
    """

    router: Router
    expert: GatedMlp
    shared: GatedMlp | None = None
    shared_gate: bool = False
    names: ExpertNames = ExpertNames()  # noqa: RUF009 - frozen


Attention = SelfAttention | LatentAttention
Mlp = GatedMlp | PlainMlp | Experts


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
